"""The card of an artifact: metadata of the hub, what it is, tables, how to load it. The same record, the same bytes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from shears.artifacts import README, find_record, read_json, write_text
from shears.cards.loading import loading
from shears.cards.origin import base_of, origin, title
from shears.cards.tables import figures_table, rank_table, size_table, sparsity_table

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    parts = [f"# {title(kind, record)}", origin(kind, record)]
    if figures:
        parts += ["## Figures", figures_table(figures)]
    parts += [part for part in (sparsity_table(record), rank_table(record), size_table(record)) if part]
    parts += ["## How to load it", loading(kind, record)]
    text = "\n\n".join(parts)
    return f"---\n{_metadata(kind, record, figures).to_yaml()}\n---\n\n{text}\n"


def _metadata(kind: str, record: Record, figures: Figures) -> ModelCardData:
    adapter = kind in ("search_space.json", "sub_adapter.json")
    base = base_of(record)
    return ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) and not Path(base).exists() else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["shears", "sparse", *(["lora"] if adapter or "ranks" in record else [])],
        model_name=title(kind, record) if figures else None,
        eval_results=[_result(row) for row in figures[-1:]] or None,
    )


def _result(row: Mapping[str, Any]) -> EvalResult:
    return EvalResult(task_type="text-generation", dataset_type=Path(row["data"]).name, dataset_name=row["task"],
                      metric_type=row["metric"], metric_value=row["value"])  # fmt: skip
