"""The card of an artifact: metadata of the hub, what it is, tables, how to load it. The same record, the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from shears.records.artifacts import README, find_record, read_json, write_text
from shears.records.cards.loading import Place, loading
from shears.records.cards.origin import hub_base, origin, title
from shears.records.cards.tables import figures_table, rank_table, size_table, sparsity_table
from shears.records.paths import HUB_SOURCE, is_path

Record = Mapping[str, Any]
Figures = Sequence[Mapping[str, Any]]
"""Measurements, each with name, task, data, metric, value, ci95, n. The last one is the artifact's own, which alone
goes into the metadata; those before it are what it is compared with."""


def write_card(folder: Path, figures: Figures = ()) -> None:
    """Write README.md beside the record of a folder; what the folder is called does not matter."""
    path = find_record(folder)
    assert path is not None, folder
    write_text(folder / README, card(path.name, read_json(path), figures))


def card(kind: str, record: Record, figures: Figures = ()) -> str:
    """Return the card of an artifact; `kind` is the file its record has, such as sparsity.json."""
    head, words, code = _naming(kind, record, None)
    parts = [head, words]
    if figures:
        parts += ["## Figures", figures_table(figures)]
    parts += [part for part in (sparsity_table(record), rank_table(record), size_table(record)) if part]
    parts += ["## How to load it", code]
    text = "\n\n".join(parts)
    return f"---\n{_metadata(kind, record, figures).to_yaml()}\n---\n\n{text}\n"


def published(text: str, kind: str, record: Record, public: Record, place: Place) -> str:
    """Return a card with the names that `public` has in place of those of `record`, to be loaded from its place.

    What else a person wrote into it stays.
    """
    before, after = _naming(kind, record, None), _naming(kind, public, place)
    for old, new in zip(before, after, strict=True):
        text = text.replace(old, new, 1)
    made: Any = ModelCard(text, ignore_metadata_errors=True)
    if made.data.get("model_name") == title(kind, record):
        made.data.model_name = title(kind, public)
    made.data.pop("base_model_relation", None)
    for key, value in hub_base(kind, public).items():
        made.data[key] = value
    return str(made)


def _naming(kind: str, record: Record, place: Place | None) -> tuple[str, str, str]:
    """Return the parts of a card that name the artifact or its base."""
    return f"# {title(kind, record)}", origin(kind, record), loading(kind, record, place)


def _metadata(kind: str, record: Record, figures: Figures) -> ModelCardData:
    adapter = kind in ("search_space.json", "sub_adapter.json", "recovery.json")
    return ModelCardData(
        **hub_base(kind, record),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["shears", "sparse", *(["lora"] if adapter or "ranks" in record else [])],
        model_name=title(kind, record) if figures else None,
        eval_results=[_result(row) for row in figures[-1:]] or None,
    )


def _result(row: Mapping[str, Any]) -> EvalResult:
    return EvalResult(task_type="text-generation", dataset_type=_dataset(row), dataset_name=row["task"],
                      metric_type=row["metric"], metric_value=row["value"])  # fmt: skip


def _dataset(row: Mapping[str, Any]) -> str:
    """Return a data set's name on the hub, a file's without its folders, or the task: of the hub, none is empty."""
    data = str(row["data"])
    if (found := HUB_SOURCE.fullmatch(data)) and not is_path(data):
        return found["name"]
    return Path(data).name or str(row["task"])
