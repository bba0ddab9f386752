"""Figures files as evaluations write them, without a model."""

import json
from pathlib import Path
from typing import Any

ONE = [True, True, False, True, True, False, True, True]
OTHER = [True, False, False, False, True, False, False, True]
THIRD = [False, False, False, True, False, False, False, True]


def records(bits: list[bool], task: str | None = None) -> list[dict[str, Any]]:
    more = {} if task is None else {"task": task}
    return [{"index": n, "id": f"q{n}", "correct": bit, **more} for n, bit in enumerate(bits)]


def figures_file(folder: Path, name: str, records: list[dict[str, Any]]) -> str:
    (folder / name).write_text(json.dumps({"task": "number", "metric": "accuracy", "records": records}))
    return str(folder / name)


def run_folder(folder: Path, **models: list[bool]) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    for name, bits in models.items():
        figures_file(folder / "evaluation", f"{name}.json", records(bits))
    (folder / "evaluation.json").write_text(json.dumps({"models": [{"name": name} for name in models]}))
    return folder
