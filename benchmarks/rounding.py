"""What rounding costs: WikiText-2 perplexity of a sparse model in bf16, and of its packages in int8 and int4.

    python -m benchmarks.rounding SPARSE --calibration valid.txt --test test.txt [--windows 16] [--num-samples 32]
    python -m benchmarks.rounding SPARSE --calibration valid.txt --blocks 4 [--num-samples 16]

Packages are rounded to nearest and calibrated; embeddings and head stay as they are, except in the last arm, which
chooses their format (`--embeddings auto`). Perplexities are those of transformers with the packages' weights.

With `--blocks` the ways to round are compared, and no test text is read: the first blocks are rounded to int4 on the
first half of the text, and the whole model is measured on windows of 512 tokens of the second half. The columns are
the Kullback-Leibler divergence from the model not rounded and the rise of the loss, both in nats a token.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import shears
from benchmarks.report import environment, log_to_stderr
from shears.checkpoints.packed.file import read_package
from shears.export import calibrated
from shears.quantization.with_inputs import round_with_inputs
from shears.records.artifacts import PACKAGE, read_record

ARMS: Mapping[str, Mapping[str, Any]] = {
    "int8, to nearest": {"values": "int8"},
    "int8, calibrated": {"values": "int8", "calibrated": True},
    "int4, to nearest": {"values": "int4"},
    "int4, calibrated": {"values": "int4", "calibrated": True},
    "int4, calibrated, embeddings auto": {"values": "int4", "calibrated": True, "embeddings": "auto"},
    "int4, to nearest, embeddings int4": {"values": "int4", "embeddings": "int4"},
}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "own outputs": {"missed": None},
    "own outputs, damping 0.1": {"missed": None, "damping": 0.1},
    "outputs before rounding": {},
    **{f"outputs before rounding, damping {damping}": {"damping": damping} for damping in (0.01, 0.03, 0.1, 1.0)},
}
HELD = 8  # windows of 512 tokens, on which ways are compared


def main() -> None:
    """Print a row for the sparse model and one for each package, or one for each way to round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sparse", help="a sparse model folder in bf16")
    parser.add_argument("--calibration", required=True)
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--test")
    measured.add_argument("--blocks", type=int)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    log_to_stderr()
    print(environment())
    if arguments.blocks:
        print(f"\n{arguments.sparse}, the first {arguments.blocks} blocks, {arguments.num_samples} x 512 tokens\n")
        print("| fitted to | divergence | rise of the loss | processor seconds |\n| --- | --- | --- | --- |")
        for line in _compared(arguments):
            print(line, flush=True)
        return
    print(f"\n{arguments.sparse}, {arguments.windows} windows of 1,024 tokens\n")
    print("| arm | perplexity | of sparse bf16 | MB | seconds |\n| --- | --- | --- | --- | --- |")
    for line in _rows(arguments):
        print(line, flush=True)


def _rows(arguments: argparse.Namespace) -> Iterator[str]:
    sparse = _perplexity(arguments.sparse, arguments)
    yield f"| bf16 | {sparse:.3f} | | | |"
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(arguments.arms):
            options = dict(ARMS[name])
            if options.pop("calibrated", False):
                options |= {"calibration": arguments.calibration, "num_samples": arguments.num_samples}
            start = time.monotonic()
            out = shears.export_adapter(arguments.sparse, Path(folder) / str(number), format="package", **options)
            seconds = time.monotonic() - start
            value = _perplexity(str(out), arguments)
            record = read_record(out, PACKAGE)
            chosen = ", ".join(record["embeddings"]["chosen"].values()) if "embeddings" in record else ""
            yield (
                f"| {name}{f' ({chosen})' if chosen else ''} | {value:.3f} | {value / sparse:.4f} | "
                f"{record['bytes']['model'] / 1e6:.0f} | {seconds:.0f} |"
            )


def _perplexity(model: str, arguments: argparse.Namespace) -> float:
    result = shears.evaluate(
        model, task="perplexity", data=arguments.test, sequence_length=1024, limit=arguments.windows, batch_size=1
    )
    return float(result.value)


@torch.no_grad()
def _compared(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield a row for every way to round the first blocks."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        arguments.sparse, dtype=torch.bfloat16, trust_remote_code=False
    ).eval()
    text = Path(arguments.calibration).read_text()
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    tokenizer = AutoTokenizer.from_pretrained(arguments.sparse, trust_remote_code=False)
    ids = tokenizer(halves[1], return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // 512 * 512].view(-1, 512)
    windows = windows[:: len(windows) // HELD][:HELD]
    before = [_log_probabilities(model, window) for window in windows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "fit.txt").write_text(halves[0])
        _cut(Path(arguments.sparse), folder / "cut", arguments.blocks)
        for way in arguments.ways:
            start = time.process_time()
            calibrated.round_with_inputs = _rounding(WAYS[way])  # type: ignore[attr-defined]
            shears.export_adapter(
                str(folder / "cut"), folder / way, format="package", values="int4", calibration=str(folder / "fit.txt"),
                num_samples=arguments.num_samples,
            )  # fmt: skip
            seconds = time.process_time() - start
            _take(model, folder / way)
            after = [_log_probabilities(model, window) for window in windows]
            pairs = list(zip(before, after, windows, strict=True))
            divergence = sum(float(kl_div(b, a, log_target=True, reduction="batchmean")) for a, b, _ in pairs) / HELD
            rise = sum(_loss(b, window) - _loss(a, window) for a, b, window in pairs) / HELD
            yield f"| {way} | {divergence:.5f} | {rise:+.4f} | {seconds:.0f} |"


def _rounding(options: Mapping[str, Any]) -> Any:
    """Return the rounding of exports with options of its own, which win over those that the export gives."""

    def rounded(*args: Any, **given: Any) -> Any:
        return partial(round_with_inputs, **{**given, **options})(*args)

    return rounded


def _log_probabilities(model: nn.Module, window: Tensor) -> Tensor:
    """Return the log-probabilities (511 x V) of the next tokens."""
    logits: Tensor = model(window[None], use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


def _loss(log_probabilities: Tensor, window: Tensor) -> float:
    return float(cross_entropy(log_probabilities, window[1:]))


def _cut(sparse: Path, folder: Path, blocks: int) -> None:
    """Write a model of the first blocks, whose linears have the names that they have in the whole one."""
    shutil.copytree(sparse, folder, ignore=shutil.ignore_patterns("*.safetensors", "sparsity.json", "README.md"))
    tensors = load_file(sparse / "model.safetensors")
    beyond = {name for name in tensors if name.startswith("model.layers.") and int(name.split(".")[2]) >= blocks}
    save_file({name: tensors[name] for name in tensors if name not in beyond}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = blocks
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:blocks]
    (folder / "config.json").write_text(json.dumps(config))


def _take(model: nn.Module, package: Path) -> None:
    """Give the linears of a model the weights of a package."""
    opened = read_package(package)
    for name in opened.packed:
        model.get_submodule(name).get_parameter("weight").copy_(opened.weight(name))


if __name__ == "__main__":
    main()
