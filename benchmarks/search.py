"""What makes search cheap: common beginnings computed once, against whole forwards.

    python -m benchmarks.search --adapter FOLDER --data FILE [--evaluations 100] [--precision fp32]

FOLDER is a super-adapter, FILE its validation examples. The command climbs the validation loss; a
configuration is evaluated from the first block on in which it differs from the incumbent.
Every tenth configuration (`--naive-every`) is also evaluated by whole forwards, in turns; the
figures must have the same bits. Every whole evaluation runs the same blocks, so the time of all 100
is ten times that of these. Seconds are CPU seconds, which do not depend on what else runs.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.report import environment, log_to_stderr, parser_of
from shears.adapt.load import SuperAdapter, load_super_adapter
from shears.config import SearchConfig
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.models.blocks import decoder_blocks, linears
from shears.models.properties import own_model
from shears.searching.measure.validation import loss_evaluator
from shears.searching.strategies.base import LOSS, Evaluated, SearchPlan
from shears.searching.strategies.hill_climb import HillClimbing

NAIVE, PREFIX = "naive", "prefix"


class Arm:
    """What a way of evaluating took: CPU seconds, and runs of decoder blocks, counted by a hook in each."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds = 0.0
        self.runs = 0.0
        self._count = 0
        for block in decoder_blocks(own_model(model))[1]:
            next(iter(linears(block).values())).register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self._count += 1

    def timed(self, work: Callable[[], Any]) -> Any:
        """Return what `work` does, counting its time."""
        before, start = self._count, time.process_time()
        result = work()
        self.seconds += time.process_time() - start
        self.runs += self._count - before
        return result


def climb(
    adapter: SuperAdapter, rows: Sequence[Tokenized], settings: SearchConfig, every: int = 1
) -> tuple[dict[str, Arm], list[Evaluated]]:
    """Climb by common beginnings, and evaluate every so many configurations by whole forwards, too.

    The time of those is scaled to all of them. AssertionError if a figure differs.
    """
    arms = {NAIVE: Arm(adapter.model), PREFIX: Arm(adapter.model)}
    naive = loss_evaluator(adapter, rows, settings.model_copy(update={"cache_budget": "0"}))
    evaluator = arms[PREFIX].timed(lambda: loss_evaluator(adapter, rows, settings))
    strategy = HillClimbing(adapter.elastic.space, SearchPlan("hill-climbing", settings.max_evaluations, settings.seed))
    history: list[Evaluated] = []
    while len(history) < settings.max_evaluations and (proposed := strategy.propose(history)) is not None:
        if history:
            arms[PREFIX].timed(partial(evaluator.anchor, strategy.incumbent or history[0].ranks))
        figures = arms[PREFIX].timed(partial(evaluator, proposed))
        if len(history) % every == 0:
            whole = arms[NAIVE].timed(partial(naive, proposed))
            assert whole == figures, "a common beginning must not change a bit"
        history.append(Evaluated(proposed, figures))
        print(f"{len(history)}: " + ", ".join(f"{name} {arm.seconds:.1f} s" for name, arm in arms.items()), flush=True)
    share = len(history) / len(range(0, len(history), every))
    arms[NAIVE].seconds *= share
    arms[NAIVE].runs *= share
    return arms, history


def climb_report(arms: dict[str, Arm], history: Sequence[Evaluated]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "\n| evaluator | evaluations | block runs | CPU seconds | times as fast |\n" + "| --- " * 5 + "|"
    naive = arms[NAIVE]
    for name, arm in arms.items():
        runs = f"{arm.runs:.0f} ({arm.runs / naive.runs:.2f})"
        yield f"| {name} | {len(history)} | {runs} | {arm.seconds:.1f} | {naive.seconds / arm.seconds:.2f} |"
    yield f"\nheuristic {history[0].metrics['loss']:.5f}, best {LOSS.best(history).metrics['loss']:.5f}"


def main() -> None:
    """Load, measure, print."""
    arguments = _arguments()
    log_to_stderr()
    settings = SearchConfig(
        data=str(arguments.data), max_evaluations=arguments.evaluations, device="cpu",
        precision=arguments.precision, batch_size=arguments.batch_size, cache_budget=arguments.cache_budget,
    )  # fmt: skip
    adapter = load_super_adapter(arguments.adapter, arguments.base, device="cpu")
    examples = load_examples(settings.data, adapter.record["template"], adapter.tokenizer, arguments.limit)
    print(f"{environment()}, {settings.precision}, {len(adapter.elastic.space.ranks)} groups", flush=True)
    rows = tokenize_all(examples, adapter.tokenizer, adapter.record["config"]["max_length"])
    for line in climb_report(*climb(adapter, rows, settings, arguments.naive_every)):
        print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", help="the sparse base where it was moved")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="fp32")
    parser.add_argument("--cache-budget", default="2GB")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--naive-every", type=int, default=10, help="whole forwards for every so many of the climb")
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    return parser.parse_args()


if __name__ == "__main__":
    main()
