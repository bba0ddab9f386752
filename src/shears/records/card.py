"""The card of an artifact: metadata for the hub, a description, tables, code that loads it.

The same record gives the same bytes. The text stands in card.md.
"""

import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, Template

from shears.config.export_options import FORMAT_OF_RECORD
from shears.config.sparsify_options import EMBEDDED
from shears.errors import DISTRIBUTION, reading
from shears.records import artifacts
from shears.records.figures import Row, model_rows, ranks_by_kind, ranks_of, remarks, size
from shears.records.paths import HUB_NAME, last_part, without_folders

Record = Mapping[str, Any]
ACTIVE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\"'`$<>;|&\\]")  # people copy code and commands
FOLDERS = {  # names in a run, and titles
    artifacts.SPARSITY: ("sparse", "{}, sparse"),
    artifacts.HEALED: ("healed", "{}, pruned and healed"),
    artifacts.SEARCH_SPACE: ("super_adapter", "LoRA super-adapter for {}"),
    artifacts.RECOVERY: ("sparse/recovery", "LoRA recovery for {}"),
    **{record: (form.folder, form.title) for record, form in FORMAT_OF_RECORD.items()},
}
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for --max-lora-rank


class HubLocation(NamedTuple):
    """An artifact's repository on the hub (owner/name), and its folder there unless it is the top."""

    repo: str
    subfolder: str = ""


def write_card(folder: Path, figures: Sequence[Record] = ()) -> None:
    """Write README.md beside the record of a folder, with a table of figures."""
    path = artifacts.find_record(folder)
    assert path is not None, folder
    with reading(path):
        text = card(path.name, artifacts.read_json(path), figures)
    artifacts.write_text(folder / artifacts.README, text)


def card(kind: str, record: Record, figures: Sequence[Record] = ()) -> str:
    """Return the card of an artifact; `kind` is its record's file name, such as sparsity.json."""
    words = _words(kind, record, None)
    metadata = ModelCardData(
        base_model=hub_base(record),
        library_name="peft" if words["is_adapter"] else "gguf" if kind == artifacts.GGUF else "transformers",
        pipeline_tag="text-generation",
        tags=["shears", "sparse", *(["lora"] if words["is_adapter"] or "ranks" in record else [])],
    )
    ranks = ranks_by_kind(ranks_of(record))
    sizes = record.get("bytes") or {}
    tables = {
        "Figures": model_rows([{**row, "name": f"{row['name']}, {row['task']}"} for row in figures]),
        "Zeros": _zeros(record),
        "Ranks": [{"group": f"`{group}`", "rank": text} for group, text in ranks.items()],
        "Size": [{"packed": size(sizes["model"]), "dense": size(sizes["model_dense"])}] if sizes else [],
    }
    return f"{_template().render(metadata=metadata.to_yaml(), tables=tables, remarks=remarks(figures), **words)}\n"


def published(text: str, kind: str, record: Record, public: Record, location: HubLocation) -> str:
    """Return a card with the names of `public` and with code that loads from the hub.

    The names of `record` are replaced. Text that a person wrote into the card stays.
    """
    template = _template()
    old, new = (_words(kind, each, place) for each, place in ((record, None), (public, location)))
    for block in template.blocks.values():
        before, after = ("".join(block(template.new_context(words))) for words in (old, new))
        text = text.replace(before, after, 1)
    made: Any = ModelCard(text, ignore_metadata_errors=True)
    if base := hub_base(public):
        made.data.base_model = base
    return str(made)


def _template() -> Template:
    environment = Environment(keep_trailing_newline=False)
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", "\\|").split())
    return environment.from_string(files("shears.records").joinpath("card.md").read_text("utf-8"))


def _words(kind: str, record: Record, location: HubLocation | None) -> dict[str, Any]:
    """Return what the text of a card is made of; `location` is its place on the hub, None for this machine."""
    form = FORMAT_OF_RECORD.get(kind)
    holds = form.holds if form is not None else "model"
    folder, title = FOLDERS[kind]
    base = base_of(record)
    largest = record.get("max_rank", record.get("rank", 0))
    words = {"loaded": f'"{folder}"', "served": folder, "folder": folder, "download": ""}
    if location is not None:
        copy = last_part(location.repo)
        folder = f"{copy}/{location.subfolder}" if location.subfolder else copy
        inside = f', subfolder="{location.subfolder}"' if location.subfolder else ""
        words = {
            "loaded": f'"{location.repo}"{inside}',
            "served": folder if inside else location.repo,
            "folder": folder,
            "download": f"    hf download {location.repo} --local-dir {copy}\n",
        }
    return {
        "kind": kind,
        "record": record,
        "config": record.get("config") or {},
        "holds": holds,
        "is_adapter": holds == "adapter" or kind in (artifacts.SEARCH_SPACE, artifacts.RECOVERY),
        "base": base,
        "title": title.format(base),
        "rank": next((rank for rank in LORA_RANKS if rank >= largest), largest),
        "name": lambda path: f"`{_harmless(without_folders(str(path)))}`",
        "share": "{:.1%}".format,
        "embedded": EMBEDDED,
        "distribution": DISTRIBUTION,
        **words,
    }


def base_of(record: Record) -> str:
    """Return the name of the artifact's base model, without the folders of this machine."""
    name = without_folders(str(record.get("model") or record.get("base") or "sparse"))
    return name if HUB_NAME.fullmatch(name) else _harmless(last_part(name))


def _harmless(name: str) -> str:
    """Return a name that cannot end a string of Python, a word of a shell or a code span."""
    return ACTIVE.sub("_", name)


def hub_base(record: Record) -> str | None:
    """Return the hub id of the base model; None where the base is not on the hub."""
    base = str(record.get("model") or record.get("base") or "")
    if base in EMBEDDED:
        return EMBEDDED[base].hub
    return base if HUB_NAME.fullmatch(base) and not os.path.exists(base) else None


def _zeros(record: Record) -> list[Row]:
    """Return the share of zeros by kind of linear; none for a record without linears."""
    counts: dict[str, tuple[int, int]] = {}
    for name, linear in record.get("linears", {}).items():
        if "zeros" in linear:
            kind = next(part for part in reversed(name.split(".")) if not part.isdigit())
            weights, zeros = counts.get(kind, (0, 0))
            counts[kind] = (weights + linear["shape"][0] * linear["shape"][1], zeros + linear["zeros"])
    return [
        {"linear": kind, "weights": f"{weights:,}", "zeros": f"{zeros / weights:.1%}"}
        for kind, (weights, zeros) in counts.items()
    ]
