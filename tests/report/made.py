"""The records of a run as its stages write them, without models; tests leave some out or change them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from shears.report.page import write_report

LAYERS = 3
RANKS = {f"layers.{layer}.{kind}": rank for layer in range(LAYERS)
         for kind, rank in (("q_proj+k_proj", 4), ("up_proj", (6, 4, 2)[layer]))}  # fmt: skip
MODELS = {"dense": [1, 1, 0, 0], "sparse": [1, 0, 0, 0], "sparse + sub-adapter": [1, 0, 1, 0]}
VERSIONS = {"python": "3.11.9", "torch": "2.9.0", "transformers": "5.0.0", "peft": "0.18.0"}


class Reader(HTMLParser):
    """Parses a page into its elements, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def record(index: int, name: str, right: int, prompt: str) -> dict[str, Any]:
    """Return the record of one model on one example."""
    return {"index": index, "prompt": f"{prompt} {index}", "prediction": float(right), "answer": 1.0,
            "correct": bool(right), "output": f"{name} says {right}"}  # fmt: skip


def row(name: str, right: list[int]) -> dict[str, Any]:
    """Return one model's row of evaluation.json."""
    value = sum(right) / len(right)
    return {"name": name, "metric": "accuracy", "value": value, "n": len(right), "ci95": [value / 2, (1 + value) / 2],
            "sparsity": 0.0 if name == "dense" else 0.5, "parameters": 1000,
            "nonzeros": 1000 if name == "dense" else 600, "adapter_parameters": 20 if "+" in name else 0}  # fmt: skip


def result() -> dict[str, Any]:
    """Return the result of a search: four configurations, the third chosen, the second also on the front."""
    tried = [(0.5, 40), (0.45, 30), (0.4, 35), (0.6, 50)]
    entries = [{"ranks": {**RANKS, "layers.0.up_proj": number + 1}, "metrics": {"loss": loss, "parameters": size}}
               for number, (loss, size) in enumerate(tried)]  # fmt: skip
    return {"shears_version": "0.1.0", "config": {"strategy": "random", "data": "validation.jsonl", "seed": 7},
            "objectives": ["loss", "parameters"], "evaluations": entries, "chosen": entries[2],
            "pareto": [entries[2], entries[1]], "super_adapter_fingerprint": "a" * 64}  # fmt: skip


def records(prompt: str = "Question") -> dict[str, Any]:
    """Return the content of every file of a run by its path."""
    linears = {f"model.layers.{layer}.self_attn.{name}": {"shape": [4, 8], "zeros": 8 * (layer + 1), "sparsity": 0.0}
               for layer in range(LAYERS) for name in ("q_proj", "k_proj")}  # fmt: skip
    steps = range(1, 301)
    files: dict[str, Any] = {
        "recipe.yaml": {"model": "some-model", "sparsify": {"sparsity": 0.5}, "train": {"epochs": 1.0}},
        "sparse/sparsity.json": {"shears_version": "0.1.0", "achieved": 0.5, "linears": linears, "model": "some-model",
                                 "config": {"method": "wanda", "pattern": "row", "allocation": "uniform", "seed": 3}},
        "super_adapter/search_space.json": {"shears_version": "0.1.0", "config": {"seed": 5}, "fingerprint": "b" * 64},
        "super_adapter/training_log.jsonl": [{"step": step, "loss": 3.0 / step, "tokens": 100, "learning_rate": 1e-3}
                                             for step in steps],
        "super_adapter/training_times.jsonl": [{"step": step, "seconds": 0.5} for step in steps],
        "times.jsonl": [
            {"stage": "train", "began": "2", "seconds": 154.2, "finished": True, "machine": "a processor, 2 threads",
             "versions": VERSIONS},
        ],
        "search/result.json": result(),
        "sub_adapter/sub_adapter.json": {"shears_version": "0.1.0", "config": {"seed": 0}, "ranks": RANKS},
        "evaluation.json": {"task": "number", "data": "test.jsonl",
                            "models": [row(name, right) for name, right in MODELS.items()]},
    }  # fmt: skip
    for name, right in MODELS.items():
        each = [record(index, name, hit, prompt) for index, hit in enumerate(right)]
        files[f"evaluation/{name.replace(' + ', '_').replace('-', '_')}.json"] = {
            **row(name, right), "task": "number", "config": {}, "records": each,
        }  # fmt: skip
    return files


def write_run(folder: Path, files: dict[str, Any] | None = None) -> Path:
    """Write the records below a folder; return it."""
    for name, content in (records() if files is None else files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            path.write_text(yaml.safe_dump(content) if name.endswith(".yaml") else json.dumps(content))
    return folder


def page_of(folder: Path, files: dict[str, Any] | None = None) -> str:
    return write_report(write_run(folder / "run", files)).read_text(encoding="utf-8")
