"""Training speed and memory of PEFT and TRL and of ours, on one sparse base and the same examples, in turns.

    python -m benchmarks.train_speed --data FOLDER [--model smollm2-135m] [--steps 6] [--rounds 5] [--length N]
    python -m benchmarks.train_speed --data FOLDER --memory
    python -m benchmarks.train_speed --data gsm8k.jsonl --base FOLDER --steps 2 --rounds 2 --only grouped "LoRA, packed"

FOLDER holds LLM-Adapters' MAWPS, or is a JSONL file of questions and answers, such as GSM8K's. The base is pruned by
magnitude to 50 %, or is `--base`. A round is one pass over `--steps` x 16 examples, the same in every arm: steps that
transformers' length grouping makes of the whole file, evenly drawn from the short to the long ones. Grouped arms take
these steps; the others take the same examples shuffled. One arm makes an optimizer step while the others wait
(benchmarks/turns.py). A first round is a warm-up and does not count.

`--only TEXT ...` keeps only arms of these names, or whose names contain one of the texts; the first that is kept is
what the others are compared with. A peak is of an arm's own process, from its start, with pages of mapped files. With
SmolLM2-135M each arm takes about 2 GB and the plain one 4 GB.

`--length N` puts solved questions before every question, for examples of about N tokens. `--memory` makes three steps
on the 16 longest examples, one arm at a time.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

import shears
from benchmarks.memory import Usage, peak_memory
from benchmarks.plain_peft import BATCH_SIZE, LEARNING_RATE, RIVALS, plain_trainer
from benchmarks.report import MODEL, environment, log_to_stderr, parser_of, quotients, spread
from benchmarks.tasks import lines_of, solved, write_mawps, write_rows
from benchmarks.turns import take_turns
from shears.adapt.prepare import prepare, read_training_rows, settings_for
from shears.adapt.train import training_of
from shears.config import TrainConfig
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.models.devices import resolved_precision
from shears.models.ref import resolve
from shears.models.tokenizers import load_tokenizer
from shears.training.batches import EpochOrder
from shears.training.fit import fit

LORA, NLS, SPARSE = "LoRA, ours", "NLS, ours", "SparsePEFT, ours"
OURS: dict[str, dict[str, Any]] = {
    LORA: {"ranks": 32},
    "LoRA, recomputed": {"ranks": 32, "recompute": True},
    NLS: {},
    SPARSE: {"ranks": 32, "sparse_adapter": True},
}
ARMS = [*RIVALS, *OURS]
MEMORY_STEPS = 3
WARM_UP = 1  # rounds
SPREAD = "(min to max)"
Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Job:
    """What every arm trains on: a base and a file of examples, for `rounds` passes; and a folder to work in."""

    base: str
    data: str
    rounds: int
    folder: str

    def settings(self, arm: str) -> TrainConfig:
        """Return the configuration of an arm; a rival reads its precision alone."""
        longest = max(len(row.input_ids) for row in self.rows())
        return TrainConfig.model_validate(
            {"data": self.data, "epochs": self.rounds, "learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE,
             "max_length": max(512, longest), "save_steps": 10**6, "warmup_steps": 0, "device": "cpu",
             "sampling": "uniform", **OURS.get(arm, {})}
        )  # fmt: skip

    def rows(self) -> list[Tokenized]:
        """Return the tokenized examples."""
        tokenizer = load_tokenizer(resolve(self.base))
        return tokenize_all(load_examples(self.data, "question", tokenizer), tokenizer, max_length=10**6)

    def order(self) -> list[int]:
        """Return the examples' numbers in the order in which arms without length grouping take them."""
        sampler = EpochOrder([1] * len(self.rows()), BATCH_SIZE, seed=0)
        numbers: list[int] = []
        for epoch in range(self.rounds):
            sampler.set_epoch(epoch)
            numbers += sampler
        return numbers


def loaded(arm: str, job: Job) -> Callable[[], object]:
    """Load an arm's model and data; return the function that trains it."""
    settings = job.settings(arm)
    work = Path(job.folder) / arm
    work.mkdir()
    if arm in RIVALS:
        rows = [asdict(row) for row in job.rows()]
        bf16 = resolved_precision(settings.precision, "cpu") == "bf16"
        ordered = rows * job.rounds if RIVALS[arm].grouped else [rows[number] for number in job.order()]
        trainer = plain_trainer(job.base, ordered, work, RIVALS[arm], bf16=bf16)
        _read(trainer.model)
        return trainer.train
    base = resolve(job.base)
    settings = settings_for(base, settings)
    tokenized = read_training_rows(base, settings)
    elastic, _ = prepare(base, settings, tokenized)
    _read(elastic.model)
    return partial(fit, training_of(elastic, tokenized, settings), work, settings)


def _read(model: nn.Module | None) -> None:
    """Read every weight into memory: the files are only mapped."""
    for parameter in model.parameters() if model is not None else ():
        parameter.detach().sum()


def train(arm: str, job: Job) -> None:
    """Load and train an arm without printing anything."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft 0.21 reads what transformers 5.24 renamed
    loaded(arm, job)()


def num_tokens(row: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the approximate number of tokens of an example."""
    return len(tokenizer(row["prompt"] + row["completion"])["input_ids"])


def lengthened(rows: Sequence[dict[str, str]], length: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Return every k-th row with the rows before it, solved, in its prompt; k gives about `length` tokens."""
    each = max(round(length / mean(num_tokens(row, tokenizer) for row in rows)), 1)
    texts = [row["prompt"] + row["completion"] for row in rows]
    return [
        {**rows[last], "prompt": "\n\n".join([*texts[last - each + 1 : last], rows[last]["prompt"]])}
        for last in range(each - 1, len(rows), each)
    ]


def grouped(rows: Sequence[dict[str, str]], steps: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Return the rows of `steps` steps, evenly drawn by length from those that transformers groups all rows into."""
    lengths = [num_tokens(row, tokenizer) for row in rows]
    order = get_length_grouped_indices(lengths, BATCH_SIZE, generator=torch.Generator().manual_seed(0))
    starts = range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE)
    batches = sorted((order[start : start + BATCH_SIZE] for start in starts), key=lambda batch: lengths[batch[0]])
    drawn = [batches[(2 * step + 1) * len(batches) // (2 * steps)] for step in range(steps)]
    return [rows[number] for batch in drawn for number in batch]


def main() -> None:
    """Prune, choose the examples, measure, print."""
    arguments = _arguments()
    log_to_stderr()
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or str(
            shears.sparsify(arguments.model, folder + "/sparse", method="magnitude", sparsity=0.5)
        )
        data = write_examples(arguments, base, Path(folder))
        rounds = MEMORY_STEPS if arguments.memory else WARM_UP + arguments.rounds
        job = Job(base, str(data), rounds, folder)
        print(f"{environment()}, {resolved_precision('auto', 'cpu')}", flush=True)
        arms = [
            arm for arm in ARMS if any(text == arm or (text not in ARMS and text in arm) for text in arguments.only)
        ]
        for line in (memory if arguments.memory else speed)(arms, job):
            print(line, flush=True)


def write_examples(arguments: argparse.Namespace, base: str, folder: Path) -> Path:
    """Write the training examples in grouped steps, or the longest for `--memory`; return the file."""
    tokenizer = load_tokenizer(resolve(base))
    if arguments.data.is_file():
        rows = list(map(solved, lines_of(arguments.data)))
    else:
        rows = lines_of(write_mawps(arguments.data, folder)["train"])
    if arguments.length:
        rows = lengthened(rows, arguments.length, tokenizer)
    if arguments.memory:
        rows = sorted(rows, key=lambda row: num_tokens(row, tokenizer))[-BATCH_SIZE:]
    else:
        rows = grouped(rows, arguments.steps, tokenizer)
    return write_rows(folder / "examples.jsonl", rows)


def speed(arms: Sequence[str], job: Job) -> Iterator[str]:
    """Time the arms; yield the lines of the report."""
    sizes = [len(row.input_ids) for row in job.rows()]
    steps = len(sizes) // BATCH_SIZE
    taken = take_turns({arm: partial(train, arm, job) for arm in arms}, job.rounds * steps)
    peaks = {arm: each.peak for arm, each in taken.items()}
    seconds = {arm: each.seconds for arm, each in taken.items()}
    yield f"\n{sum(sizes) / len(sizes):.0f} tokens an example, {BATCH_SIZE} examples a step\n"
    yield from speed_report(by_round(seconds, steps), sum(sizes) / len(sizes), peaks)


def by_round(taken: Seconds, steps: int) -> dict[str, list[float]]:
    """Return the mean seconds of an example in every round after the warm-up, by arm."""
    starts = range(WARM_UP * steps, len(next(iter(taken.values()))), steps)
    return {
        arm: [mean(seconds[start : start + steps]) / BATCH_SIZE for start in starts] for arm, seconds in taken.items()
    }


def speed_report(seconds: Seconds, tokens: float, peaks: Mapping[str, int]) -> Iterator[str]:
    """Yield the lines of both tables, of `seconds` an example; `tokens` is the mean number of tokens of an example.

    `peaks` are in bytes, by arm. The second table compares each of our arms with each rival.
    """
    first = next(iter(seconds))
    yield f"| arm | s/example {SPREAD} | tokens/s | times as fast as {first} {SPREAD} | peak, GB | over {first} |"
    yield "| --- " * 6 + "|"
    for arm, values in seconds.items():
        faster = quotients(seconds[first], values)
        yield (
            f"| {arm} | {spread(values, 3)} | {tokens / median(values):.0f} | {spread(faster)} "
            f"| {peaks[arm] / 1e9:.2f} | {peaks[arm] / peaks[first]:.2f} |"
        )
    yield f"\n| ours | rival | times as fast {SPREAD} |\n" + "| --- " * 3 + "|"
    for arm in filter(seconds.__contains__, OURS):
        for rival in filter(seconds.__contains__, RIVALS):
            yield f"| {arm} | {rival} | {spread(quotients(seconds[rival], seconds[arm]))} |"


def memory(arms: Sequence[str], job: Job) -> Iterator[str]:
    """Train the arms one after the other, each in a fresh process; yield the lines of the report of their peaks."""
    usages: dict[str, Usage] = {}
    for arm in arms:
        setup = f"from benchmarks.train_speed import Job, loaded; train = loaded({arm!r}, {job!r})"
        usages[arm] = peak_memory(setup, "train()")
        print(f"  {arm}: {usages[arm].seconds:.0f} s", flush=True)
    longest = max(len(row.input_ids) for row in job.rows())
    yield f"\n{BATCH_SIZE} examples of up to {longest} tokens a step"
    yield from memory_report(usages)


def memory_report(usages: Mapping[str, Usage]) -> Iterator[str]:
    """Yield the lines of the table: the peak memory of each process, and the part of it added after loading."""
    first = next(iter(usages))
    yield f"\n| arm | peak, GB | over {first} | loaded, GB | peak above it, GB | over {first} |\n" + "| --- " * 6 + "|"
    totals = {arm: usage.baseline + usage.peak for arm, usage in usages.items()}
    for arm, usage in usages.items():
        yield (
            f"| {arm} | {totals[arm] / 1e9:.2f} | {totals[arm] / totals[first]:.2f} | {usage.baseline / 1e9:.2f} "
            f"| {usage.peak / 1e9:.2f} | {usage.peak / usages[first].peak:.2f} |"
        )


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--base", help="a sparse model's folder, in place of pruning --model")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--memory", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
