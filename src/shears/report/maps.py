"""Where the zeros are, and which ranks were chosen: a run's figures by layer and kind of linear."""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from shears.checkpoints.zeros import kinds_of, place_in_block, sparsities
from shears.report.grid import Cells, map_picture
from shears.report.words import percent

GROUP = re.compile(r"^(?:.*\.)?(?P<layer>\d+)\.(?P<kind>.+)$")


def sparsity_map(linears: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return the share of zeros of every linear of a sparsity.json, experts of a layer together."""
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for name, linear in linears.items():
        if (place := place_in_block(name)) is not None:
            weights, zeros = counts.get(place, (0, 0))
            counts[place] = weights + linear["shape"][0] * linear["shape"][1], zeros + linear["zeros"]
    cells = {int(layer): row for layer, row in sparsities(counts)["sparsity_by_linear"].items()}
    return map_picture("Share of zeros by layer and kind of linear", cells, percent) if cells else Markup()


def rank_map(ranks: Mapping[str, int]) -> Markup:
    """Return the rank of every group of a rank configuration."""
    cells = rank_cells(ranks)
    return map_picture("Rank by layer and group", cells, lambda rank: f"{rank:.0f}") if cells else Markup()


def rank_cells(ranks: Mapping[str, int]) -> Cells:
    """Return ranks by layer and group; a group that lies in no layer is left out."""
    cells: dict[int, dict[str, float]] = {}
    for name, rank in ranks.items():
        if found := GROUP.match(name):
            cells.setdefault(int(found["layer"]), {})[found["kind"]] = float(rank)
    names = kinds_of(kind for row in cells.values() for kind in row)
    return {layer: {names[kind]: row[kind] for kind in names if kind in row} for layer, row in sorted(cells.items())}
