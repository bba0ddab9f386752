"""Smaller spaces for big models: consecutive layers share one rank, group by group. Pure."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError

LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TiedSpace:
    """A space of tied groups, and the groups that each stands for."""

    space: SearchSpace
    members: Mapping[str, tuple[str, ...]]

    def expand(self, config: Mapping[str, int]) -> RankConfig:
        """Return the configuration of the full space; InputError if it is not of the tied one."""
        checked = self.space.check(config)
        return RankConfig({group: rank for tied, rank in checked.items() for group in self.members[tied]})


def tie_layers(space: SearchSpace, num_layers: int) -> TiedSpace:
    """Return the space in which every `num_layers` consecutive layers share ranks, kind by kind.

    Layers 0 to `num_layers` - 1 are the first run; `layers.0-9.up_proj` is its group. With 1, the
    space stays the same. InputError for groups outside of layers, or tied groups whose allowed
    ranks differ.
    """
    if num_layers == 1:
        return TiedSpace(space, {group: (group,) for group in space.ranks})
    runs: defaultdict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)
    for group in space.ranks:
        match = LAYER.fullmatch(group)
        if match is None:
            raise InputError(
                f"tied groups must be in layers, such as layers.0.up_proj, got {group!r}; set tie_layers 1"
            )
        layer = int(match[1])
        runs[layer // num_layers, match[2]].append((layer, group))
    members: dict[str, tuple[str, ...]] = {}
    for (_, kind), run in runs.items():
        layers = sorted({layer for layer, _ in run})
        name = f"layers.{layers[0]}" if len(layers) == 1 else f"layers.{layers[0]}-{layers[-1]}"
        members[f"{name}.{kind}"] = tuple(group for _, group in sorted(run))
    modules = {
        tied: tuple(name for group in groups for name in space.modules.get(group, ()))
        for tied, groups in members.items()
    }
    ranks = {tied: _ranks(space, groups) for tied, groups in members.items()}
    return TiedSpace(SearchSpace(ranks, modules), members)


def _ranks(space: SearchSpace, groups: tuple[str, ...]) -> tuple[int, ...]:
    allowed = {tuple(space.ranks[group]) for group in groups}
    if len(allowed) > 1:
        raise InputError(f"tied groups must have the same ranks, got {sorted(allowed)} for {', '.join(groups)}")
    return allowed.pop()
