"""Every verb on a pretended GPU; run as a process of its own: `python -m tests.gpu.flows RESULTS.json FOLDER`."""

from tests.gpu import pretended  # isort: skip  # before torch

import gc
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import shears
from shears.models.devices import autocast
from shears.models.load import load_with_adapter
from shears.models.sources import StreamedModel
from shears.models.walk import Walk
from shears.runs.gpu_check import gpu_check
from shears.runtime.loading import load
from shears.runtime.transformers_backend import TransformersBackend
from tests.tiny import tiny_model, tiny_tokenizer

TRAINING: dict[str, Any] = {
    "ranks": (6, 4, 2), "alpha": 12, "max_steps": 3, "save_steps": 2, "batch_size": 4, "learning_rate": 1e-2,
    "warmup_steps": 1,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
CALIBRATION: dict[str, Any] = {"num_samples": 4, "sequence_length": 16}
Flow = Callable[["Folder", str], Any]


class Folder:
    """Tiny inputs in one number format: a base, a sparse model, an adapter on it, rows and a text."""

    def __init__(self, path: Path, name: str, width: int = 64) -> None:
        self.path = path / f"{name}-{width}"
        self.precision = name
        self.path.mkdir(parents=True)
        self.rows = str(self.path / "rows.jsonl")
        self.text = str(self.path / "text.txt")
        self.choices = str(self.path / "choices.jsonl")
        self.made = 0
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        examples = [{"prompt": f"{a}+{a}" + "1" * a, "completion": f" {a}", "answer": str(a)} for a in range(8)]
        choices = [{"prompt": f"q{i}", "choices": [" yes", " no"], "answer": " yes"} for i in range(4)]
        Path(self.rows).write_text("".join(json.dumps(row) + "\n" for row in examples))
        Path(self.choices).write_text("".join(json.dumps(row) + "\n" for row in choices))
        Path(self.text).write_text(" ".join(f"word{i % 97} is {i * 7 % 113}." for i in range(400)))
        self.base = self.path / "base"
        model = tiny_model("llama", 0, hidden_size=width, intermediate_size=96 * width // 64, num_hidden_layers=1)
        model.to(dtype).save_pretrained(self.base)  # type: ignore[arg-type]
        tiny_tokenizer().save_pretrained(self.base)
        self.sparse = shears.sparsify(
            str(self.base), self.new(), method="wanda", calibration=self.text, device="cpu", recover_rank=4,
            allocation="uniform", **CALIBRATION,
        )  # fmt: skip
        plain = {**TRAINING, "device": "cpu", "precision": "fp32", "init": "lora"}
        self.adapter = shears.train(self.sparse, self.new(), data=self.rows, **plain)
        self.package = shears.export_adapter(str(self.adapter), self.new(), format="package", dtype="int8")
        self.masked = shears.train(self.sparse, self.new(), data=self.rows, sparse_adapter=True, **plain)

    def new(self) -> Path:
        """Return a path that nothing has."""
        self.made += 1
        return self.path / f"made-{self.made}"


def pruned(**changes: Any) -> Flow:
    """Prune the base."""
    return lambda f, device: shears.sparsify(
        str(f.base), f.new(), calibration=f.text, device=device, precision=f.precision, **CALIBRATION, **changes
    )


def trained(**changes: Any) -> Flow:
    """Train on the sparse model."""

    def flow(f: Folder, device: str) -> Path:
        settings = {**TRAINING, "precision": f.precision, "init": "lora", **changes}
        if "teacher" in settings:
            settings["teacher"] = str(f.base)
        return shears.train(f.sparse, f.new(), data=f.rows, device=device, **settings)

    return flow


def healed(**changes: Any) -> Flow:
    """Heal the sparse model."""
    settings = {"tokens": 256, "sequence_length": 16, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1}
    return lambda f, device: shears.heal(
        f.sparse, f.new(), data=f.text, device=device, precision=f.precision, **settings, **changes
    )


def searched(**changes: Any) -> Flow:
    """Search ranks."""
    return lambda f, device: shears.search(
        f.adapter, f.new(), data=f.rows, device=device, max_evaluations=3, **{"precision": f.precision, **changes}
    )


def evaluated(data: str, **changes: Any) -> Flow:
    """Evaluate the sparse model with its adapter."""
    return lambda f, device: shears.evaluate(
        f.sparse, adapter=str(f.adapter), data=getattr(f, data), device=device, **{"precision": f.precision, **changes}
    )


def exported(source: str = "adapter", **changes: Any) -> Flow:
    """Export; with `calibration`, by the text."""

    def flow(f: Folder, device: str) -> Path:
        settings = {**changes, "calibration": f.text, **CALIBRATION} if changes.get("calibration") else changes
        return shears.export_adapter(str(getattr(f, source)), f.new(), device=device, **settings)

    return flow


def generated(f: Folder, device: str) -> str:
    """Generate a few words."""
    return load(f.sparse, f.adapter, device=device).generate("1+1", max_new_tokens=3).text


def evaluated_in_little_memory(f: Folder, device: str) -> Any:
    """Evaluate where the keys and values of two texts do not fit."""
    with patch.object(torch.cuda, "mem_get_info", lambda device=None: (1, 24 << 30)):
        return evaluated("rows", task="number", max_new_tokens=3)(f, device)


def stepped(f: Folder, device: str) -> None:
    """Step through three texts of different lengths at once, with the logits that each has alone."""
    network = load_with_adapter(f.sparse, f.adapter, dtype="fp32", device=device)[0]
    together, alone = TransformersBackend(network), TransformersBackend(network)
    for number, text in enumerate(([5, 17, 200, 3], [88, 41], [7, 9, 120, 33, 64])):
        np.testing.assert_array_equal(together.prefill(number, text), alone.prefill(number, text))
    assert together._batches  # tried once, by forwards of its own
    pretended.COUNTS.clear()
    for numbers in ([0, 1, 2], [0, 1, 2], [2, 0], [0, 1, 2]):
        logits = together.step(numbers, [9] * len(numbers))
        several = np.concatenate([alone.step([number], [9]) for number in numbers])
        np.testing.assert_allclose(logits, several, rtol=1e-4, atol=1e-5)  # sums of other lengths
    assert pretended.COUNTS["forwards"] == 4 + 11


def evaluated_package(f: Folder, device: str) -> Any:
    """Evaluate a package of int8 values."""
    return shears.evaluate(f.package, data=f.rows, task="number", max_new_tokens=3, device=device)


def generated_package(f: Folder, device: str) -> str:
    """Generate a few words by a package of int8 values."""
    return load(f.package, device=device).generate("1+1", max_new_tokens=3).text


def written(f: Folder, device: str) -> Path:
    """Let the model write."""
    return shears.write(f.sparse, f.new(), tokens=60, max_new_tokens=16, device=device)


def walked(f: Folder, device: str) -> None:
    """Walk through the base's block, whose hidden states must be in bf16."""
    source = StreamedModel(f.base, torch.float32, device)
    walk = Walk(source, [torch.tensor([[1, 2, 3]])], context=partial(autocast, f.precision, device))
    with walk.opened(0) as block, torch.no_grad():
        found = {walk.hidden[0].dtype, block.forward(0).dtype}
    assert found == {torch.bfloat16}, found


def compressed(f: Folder, device: str) -> Any:
    """Compress without rows, where only the export's rounding computes."""
    return shears.compress(
        f.base, f.new(), target="9bits", calibration=f.text, sparsities=(0.0, 0.5), dtypes=("int4",), time="quick"
    )  # fmt: skip


FLOWS: dict[str, Flow] = {
    "sparsify wanda": pruned(method="wanda"),
    "sparsify sparsegpt": pruned(method="sparsegpt"),
    "sparsify admm": pruned(method="admm"),
    "sparsify magnitude": pruned(method="magnitude"),
    "sparsify 2:4": pruned(method="wanda", pattern="2:4"),
    "sparsify sensitivity": pruned(method="wanda", allocation="sensitivity"),
    "sparsify reconstruct": pruned(method="wanda", reconstruct="block"),
    "sparsify walk": walked,
    "sparsify recovery": pruned(method="wanda", recover_rank=4),
    "train nested": trained(),
    "train auto": trained(precision="auto"),
    "train uniform": trained(sampling="uniform"),
    "train dropout": trained(dropout=0.1),
    "train sparse adapter": trained(sparse_adapter=True),
    "train recovery": trained(init="recovery", ranks=(4,)),
    "train recompute": trained(recompute=True),
    "train on a grid": trained(quantize_aware="int4", ranks=(6,)),
    "train teacher": trained(teacher=""),
    "train validation": trained(validation="0.3", early_stopping=1),
    "heal": healed(),
    "heal on a grid": healed(quantize_aware="int4"),
    "search loss": searched(),
    "search auto": searched(precision="auto"),
    "search accuracy": searched(objective=("accuracy",), task="number", max_new_tokens=3),
    "search nsga2": searched(objective=("loss", "parameters"), strategy="nsga2"),
    "evaluate perplexity": evaluated("text", task="perplexity", sequence_length=32, limit=3),
    "evaluate number": evaluated("rows", task="number", max_new_tokens=3),
    "evaluate auto": evaluated("rows", task="number", max_new_tokens=3, precision="auto"),
    "evaluate beams": evaluated("rows", task="number", max_new_tokens=3, num_beams=2),
    "evaluate choices": evaluated("choices", task="choices"),
    "export peft": exported(format="peft"),
    "export merged": exported(format="merged"),
    "export merged-sparse": exported(format="merged-sparse", calibration=True),
    "export masked": exported("masked", format="merged-sparse"),
    "export package": exported(format="package"),
    "export package int4": exported(format="package", dtype="int4", calibration=True),
    "generate": generated,
    "generate together": stepped,
    "evaluate in little memory": evaluated_in_little_memory,
    "evaluate package int8": evaluated_package,
    "generate package int8": generated_package,
    "write": written,
    "compress": compressed,
}
IN_FP16 = {
    "sparsify admm", "sparsify reconstruct", "train nested", "train auto", "train recompute", "train on a grid",
    "heal", "search loss", "search auto", "evaluate perplexity", "evaluate number", "evaluate auto",
}  # fmt: skip
"""What number formats decide: run in fp16 too."""
COMPARED = {
    "sparsify admm",
    "train uniform",
    "train sparse adapter",
    "heal",
    "evaluate perplexity",
    "export merged-sparse",
}
"""Whose results in fp32 are compared with the CPU's."""


LARGE = ("train auto", "search auto", "evaluate auto", "evaluate choices", "generate")
"""What holds a whole model; run with one whose linears are most of it."""


def attempt(flow: Flow, folder: Folder, *, fast_bf16: bool = True) -> tuple[Any, dict[str, Any]]:
    """Return what a flow returns and its figures; in these an error of one line, if it failed."""
    pretended.COUNTS.clear()
    pretended.PLACES.clear()
    gc.collect()
    before = pretended.MEMORY["peak"] = pretended.MEMORY["loaded"] = pretended.MEMORY["now"]
    result, error = None, None
    started = time.monotonic()
    try:
        with pretended.pretended_gpu(fast_bf16=fast_bf16):
            result = flow(folder, "cuda")
    except Exception as failure:  # noqa: BLE001  every verb is tried
        own = [frame for frame in traceback.extract_tb(failure.__traceback__) if "/src/shears/" in frame.filename]
        places = " > ".join(f"{frame.filename.split('/shears/')[-1]}:{frame.lineno}" for frame in own[-3:])
        error = f"{type(failure).__name__}: {str(failure)[:300]} at {places}"
    seconds = round(time.monotonic() - started, 2)
    sizes = {name: pretended.MEMORY[name] - before for name in ("peak", "loaded")}
    return result, {"error": error, "seconds": seconds, **sizes, **pretended.COUNTS}


def difference(here: Any, there: Any) -> float:
    """Return the largest difference of two results: of folders' weights, or of an evaluation's figure."""
    if not isinstance(here, Path):
        return abs(float(here.value) - float(there.value)) / abs(float(here.value))
    (first,), (second,) = (list(path.glob("*model.safetensors")) for path in (here, there))
    mine, theirs = load_file(first), load_file(second)
    return max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in mine)


def events_of_a_step(folder: Folder, sampling: str) -> dict[str, float]:
    """Return what a step of training costs in syncs and copies, by place."""
    totals = []
    for steps in (3, 7):
        attempt(trained(max_steps=steps, save_steps=100, micro_batch_size=2, sampling=sampling), folder)
        totals.append(Counter(pretended.PLACES))
    return {f"{kind} {place}": number / 4 for (kind, place), number in (totals[1] - totals[0]).items()}


def main() -> None:
    """Run the flows whose names hold an argument, all without one, and write their figures."""
    logging.basicConfig(level=logging.ERROR)
    output, path, *chosen = sys.argv[1:]
    figures: dict[str, Any] = {}
    flows = {name: flow for name, flow in FLOWS.items() if not chosen or any(part in name for part in chosen)}
    for precision in ("bf16", "fp16", "fp32"):
        folder = Folder(Path(path), precision)
        for name, flow in flows.items():
            if name not in {"bf16": flows, "fp16": IN_FP16, "fp32": COMPARED}[precision]:
                continue
            there, figures[f"{name} {precision}"] = attempt(flow, folder)
            if precision == "fp32" and there is not None:
                with sdpa_kernel(SDPBackend.MATH):  # as on the device: another rounding can move ADMM's zeros
                    figures[f"{name} {precision}"]["difference"] = difference(flow(folder, "cpu"), there)
        for sampling in ("nested", "uniform") if precision == "bf16" else ():
            figures[f"a step {sampling}"] = events_of_a_step(folder, sampling)
        if precision == "fp16" and "train auto" in flows:
            figures["train auto without bf16"] = attempt(flows["train auto"], folder, fast_bf16=False)[1]
    large = Folder(Path(path), "fp16", 512)
    weights = (Path(large.base) / "model.safetensors").stat().st_size
    for name in LARGE:
        figures[f"{name} large"] = attempt(FLOWS[name], large)[1] | {"weights": weights}
    with pretended.pretended_gpu():
        figures["check"] = gpu_check(**SMALL)
    Path(output).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    os.environ["SHEARS_TUNING"] = "off"
    main()
