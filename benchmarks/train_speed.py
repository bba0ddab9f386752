"""Training speed and memory of the plain PEFT recipe and of ours, on one sparse base and the same examples, in turns.

    python -m benchmarks.train_speed --data FOLDER [--model smollm2-135m] [--steps 6] [--rounds 5] [--length N]
    python -m benchmarks.train_speed --data FOLDER --memory
    python -m benchmarks.train_speed --data gsm8k.jsonl --base FOLDER --steps 2 --rounds 2 --only "plain PEFT" "NLS uni"

FOLDER holds LLM-Adapters' MAWPS, or is a JSONL file of questions and answers, such as GSM8K's. The base is pruned by
magnitude to 50 %, or is `--base`. A round is one pass over `--steps` x 16 examples, the same in every arm; the batches
are the same too, except in the arm in length buckets. One arm makes an optimizer step while the others wait
(benchmarks/turns.py). A first round is a warm-up and does not count.

`--only TEXT ...` keeps only arms of these names, or whose names contain one of the texts; the first that is kept is
what the others are compared with. A peak is of an arm's own process, from its start, with pages of mapped files. With
SmolLM2-135M each arm takes about 2 GB and the plain one 4 GB; larger models may leave room only for `gradient
checkpointing`.

`--length N` puts solved questions before every question, for examples of about N tokens. `--memory` makes three steps
on the 16 longest examples, one arm at a time.
"""

import argparse
import operator
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median

import shears
from benchmarks.memory import Usage, peak_memory
from benchmarks.plain_peft import BATCH_SIZE
from benchmarks.report import MODEL, environment, log_to_stderr, parser_of, spread
from benchmarks.tasks import lines_of, solved, write_mawps, write_rows
from benchmarks.train_arms import (
    ARMS,
    CHECKPOINTED,
    HOOKLESS,
    LORA,
    NLS,
    PLAIN,
    SPARSE,
    Job,
    lengthened,
    num_tokens,
    train,
)
from benchmarks.turns import take_turns
from shears.models.devices import resolved_precision
from shears.models.load import load_tokenizer

TARGETS = (  # the seconds of one arm's step over those of another
    (PLAIN, LORA, ">=", 2.2),
    (PLAIN, NLS, ">=", 2.2),
    (CHECKPOINTED, NLS, ">=", 2.2),
    (NLS, LORA, "<=", 1.02),
    (NLS, HOOKLESS, "<=", 1.02),
    (SPARSE, LORA, "<=", 1.5),
)
RELATIONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
MEMORY_TARGET = 0.4  # of the plain recipe's peak
MEMORY_STEPS = 3
WARM_UP = 1  # rounds
SPREAD = "(min to max)"
Seconds = Mapping[str, Sequence[float]]


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
    """Write the training examples, drawn at random, or the longest for `--memory`; return the file."""
    tokenizer = load_tokenizer(base)
    if arguments.data.is_file():
        rows = list(map(solved, lines_of(arguments.data)))
    else:
        rows = lines_of(write_mawps(arguments.data, folder)["train"])
    if arguments.length:
        rows = lengthened(rows, arguments.length, tokenizer)
    if arguments.memory:
        rows = sorted(rows, key=lambda row: num_tokens(row, tokenizer))[-BATCH_SIZE:]
    else:
        rows = random.Random(0).sample(rows, arguments.steps * BATCH_SIZE)
    return write_rows(folder / "examples.jsonl", rows)


def speed(arms: Sequence[str], job: Job) -> Iterator[str]:
    """Time the arms; yield the lines of the report."""
    sizes = [len(row.input_ids) for row in job.rows()]
    steps = len(sizes) // BATCH_SIZE
    taken = take_turns({arm: partial(train, arm, job) for arm in arms}, job.rounds * steps)
    peaks = {arm: each.peak for arm, each in taken.items()}
    seconds = {arm: each.seconds for arm, each in taken.items()}
    yield from speed_report(by_round(seconds, steps), sum(sizes) / steps, peaks)


def by_round(taken: Seconds, steps: int) -> dict[str, list[float]]:
    """Return the mean seconds of a step in every round after the warm-up, by arm."""
    starts = range(WARM_UP * steps, len(next(iter(taken.values()))), steps)
    return {arm: [mean(seconds[start : start + steps]) for start in starts] for arm, seconds in taken.items()}


def quotients(seconds: Seconds, arm: str, other: str) -> list[float]:
    """Return the seconds per step of an arm over those of another, in every round."""
    return [one / two for one, two in zip(seconds[arm], seconds[other], strict=True)]


def speed_report(seconds: Seconds, tokens: float, peaks: Mapping[str, int]) -> Iterator[str]:
    """Yield the lines of both tables; `tokens` is the mean number of tokens of a step, without padding.

    `peaks` are in bytes, by arm.
    """
    first = next(iter(seconds))
    yield f"\n{tokens:.0f} tokens a step of {BATCH_SIZE} examples\n"
    yield f"| arm | s/step {SPREAD} | tokens/s | times as fast as {first} {SPREAD} | peak, GB | over {first} |"
    yield "| --- " * 6 + "|"
    for arm, values in seconds.items():
        faster = quotients(seconds, first, arm)
        yield (
            f"| {arm} | {spread(values)} | {tokens / median(values):.0f} | {spread(faster)} "
            f"| {peaks[arm] / 1e9:.2f} | {peaks[arm] / peaks[first]:.2f} |"
        )
    yield f"\n| step over step | measured {SPREAD} | target | met |\n" + "| --- " * 4 + "|"
    for arm, other, relation, target in TARGETS:
        if {arm, other} <= seconds.keys():
            measured = quotients(seconds, arm, other)
            met = RELATIONS[relation](median(measured), target)
            yield f"| {arm} / {other} | {spread(measured, 3)} | {relation} {target} | {_yes(met)} |"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def memory(arms: Sequence[str], job: Job) -> Iterator[str]:
    """Train the arms one after the other, each in a fresh process; yield the lines of the report of their peaks."""
    usages: dict[str, Usage] = {}
    for arm in arms:
        setup = f"from benchmarks.train_arms import Job, loaded; train = loaded({arm!r}, {job!r})"
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
    if {NLS, PLAIN} <= totals.keys():
        measured = totals[NLS] / totals[PLAIN]
        yield f"\n{NLS} / {PLAIN}: {measured:.2f}, target <= {MEMORY_TARGET}, met: {_yes(measured <= MEMORY_TARGET)}"


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
