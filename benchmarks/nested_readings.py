"""How should a nested adapter be cut? One training, its validation loss at every rank under several readings.

    python -m benchmarks.nested_readings --data FOLDER [--steps 60] [--ranks 32,24,16,8] [--examples 64]

FOLDER holds mawps/ in LLM-Adapters' form; the model is SmolLM2-135M, dense. D is the diagonal, D_r its first r numbers.
A reading multiplies the first r components: by D ("cut"), by D and sum(D) / sum(D_r) ("same sum", which training
saves) or the root of that ("root"), by 1 ("without D", as the paper's code does for equal scalings), or by sum(D) / r
("without D, same sum"). No test runs it: it needs the data.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.mawps_data import write_splits
from benchmarks.nls import MODEL, mean_loss
from benchmarks.report import environment, log_to_stderr
from shears.adapt.prepare import Prepared, prepare
from shears.config import TrainConfig
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.models.devices import autocast
from shears.models.ref import resolve
from shears.models.sparse_adapter import MASK
from shears.training.batches import padding
from shears.training.loop import fit

Reading = Callable[[Tensor, int], Tensor]  # (D, r) -> the numbers of the first r components
READINGS: Mapping[str, Reading] = {
    "cut": lambda d, rank: d[:rank],
    "same sum": lambda d, rank: d[:rank] * (d.sum() / d[:rank].sum()),
    "root": lambda d, rank: d[:rank] * (d.sum() / d[:rank].sum()).sqrt(),
    "without D": lambda d, rank: torch.ones(rank),
    "without D, same sum": lambda d, rank: torch.full((rank,), float(d.sum() / rank)),
}


def main() -> None:
    """Train once, print a line for each reading."""
    arguments = _arguments()
    log_to_stderr()
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        paths = write_splits(arguments.data / "mawps", work)
        settings = TrainConfig(
            data=str(paths["train"]), ranks=arguments.ranks, learning_rate=1e-3, max_steps=arguments.steps,
            sampling="nested",
        )  # fmt: skip
        prepared = prepare(resolve(MODEL), settings)
        fit(prepared, work, settings)
        examples = load_examples(str(paths["validation"]), settings.template, prepared.tokenizer)
        rows = tokenize_all(examples, prepared.tokenizer, settings.max_length)[: arguments.examples]
        for name, reading in READINGS.items():
            losses = {rank: f"{_loss(prepared, rows, reading, rank):.4f}" for rank in settings.ranks}
            print(f"{name}: {losses}", flush=True)


def _loss(prepared: Prepared, rows: Sequence[Tokenized], reading: Reading, rank: int) -> float:
    """Return the loss per completion token with the reading's numbers in the masks of all groups."""
    elastic = prepared.elastic
    elastic.activate(elastic.space.check(dict.fromkeys(elastic.space.ranks, rank)))
    diagonal = torch.tensor(elastic.space.nested_weights(next(iter(elastic.space.ranks))))
    for module in prepared.model.modules():
        if (mask := dict(module.named_buffers(recurse=False)).get(MASK)) is not None:
            mask.zero_()
            mask[:rank] = reading(diagonal, rank).to(mask)
    prepared.model.eval()
    with torch.no_grad(), autocast("auto", "cpu"):
        return mean_loss(prepared.model, rows, padding(prepared.tokenizer))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument(
        "--ranks", type=lambda text: tuple(int(part) for part in text.split(",")), default=(32, 24, 16, 8)
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
