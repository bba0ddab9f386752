"""What makes search cheap: shared prefixes, racing, many configurations in one batch; each against a naive evaluator.

    python -m benchmarks.search --adapter FOLDER --data FILE [--evaluations 100] [--precision fp32] [--error 0.05]
    python -m benchmarks.search --adapter FOLDER --data FILE --decode [--configs 8] [--batch-size 32]

FOLDER is a super-adapter, FILE its validation examples. The first climbs the hill of the validation loss three times,
in turns, one evaluation each: with whole forwards; from the first differing block on (the same configurations and bits,
asserted); and with racing on top (its own way; what it chooses is evaluated whole). Everything counts: trials, anchors,
slopes. The second generates answers of several configurations in one batch and one by one, in turns. Needs a trained
super-adapter, so it is no test.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.report import environment, log_to_stderr
from shears.adapt.load import SuperAdapter, load_super_adapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.data.examples import Example, Tokenized, load_examples, tokenize_all
from shears.losses import own_model
from shears.models import decoder_blocks, linears
from shears.recipe import SearchConfig
from shears.searching.decoding import DecodingGauge
from shears.searching.evaluators import GaugedEvaluator
from shears.searching.hill_climb import HillClimbing
from shears.searching.measuring import Thrift, loss_evaluator
from shears.searching.racing import parts_of
from shears.searching.strategy import EXAMPLES, LOSS, Evaluated, Plan, is_partial

NAIVE, PREFIX, RACING = "naive", "prefix", "prefix + racing"


class Blocks:
    """Counts how often decoder blocks do run, whoever calls them: by a linear in each."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        for block in decoder_blocks(own_model(model))[1]:
            next(iter(linears(block).values())).register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


@dataclass
class Climb:
    """One hill climbing and what it took."""

    name: str
    open_evaluator: Callable[[], GaugedEvaluator]
    strategy: HillClimbing
    blocks: Blocks
    seconds: float = 0.0
    runs: int = 0
    history: list[Evaluated] = field(default_factory=list)

    def steps(self, num: int) -> Iterator[None]:
        """Make an evaluation at a time."""
        evaluator = self._timed(self.open_evaluator)
        for _ in range(num):
            ranks = self.strategy.propose(self.history)
            if ranks is None:
                return
            if self.history:
                self._timed(lambda: evaluator.anchor(self.best.ranks))
            figures = self._timed(lambda ranks=ranks: evaluator(ranks))  # type: ignore[misc]
            self.history.append(Evaluated(ranks, figures))
            yield

    def _timed(self, work: Callable[[], Any]) -> Any:
        before, start = self.blocks.count, time.perf_counter()
        result = work()
        self.seconds += time.perf_counter() - start
        self.runs += self.blocks.count - before
        return result

    @property
    def best(self) -> Evaluated:
        """The best of what was evaluated on all examples."""
        return LOSS.best([each for each in self.history if not is_partial(each.metrics)])


def climb(adapter: SuperAdapter, rows: Sequence[Tokenized], settings: SearchConfig, thrift: Thrift) -> list[Climb]:
    """Climb three times, in turns; AssertionError where prefixes change a bit."""
    space, blocks = adapter.elastic.space, Blocks(adapter.model)
    plan = Plan("hill-climbing", settings.max_evaluations, settings.seed)
    ways = {
        NAIVE: Thrift("0", 0.0, thrift.seed),
        PREFIX: Thrift(thrift.cache_budget, 0.0, thrift.seed),
        RACING: thrift,
    }
    climbs = [
        Climb(
            name,
            lambda way=way: loss_evaluator(adapter, rows, settings, way),  # type: ignore[misc]
            HillClimbing(space, plan),
            blocks,
        )
        for name, way in ways.items()
    ]
    running = {each.name: each.steps(settings.max_evaluations) for each in climbs}
    for turn in range(settings.max_evaluations):
        for name in random.Random(turn).sample(list(running), len(running)):
            next(running[name], None)
        print(f"{turn + 1}: " + ", ".join(f"{each.name} {each.seconds:.1f} s" for each in climbs), flush=True)
    naive, prefix, _ = climbs
    assert naive.history == prefix.history, "a prefix must not change a bit"
    return climbs


def climb_report(climbs: Sequence[Climb], num_examples: int, whole: GaugedEvaluator) -> Iterator[str]:
    """Yield the lines of the table; `whole` evaluates what was chosen on all examples."""
    naive = climbs[0]
    yield "\n| evaluator | evaluations | dropped | examples | block runs | seconds | times as fast | chosen loss |"
    yield "| --- " * 8 + "|"
    for each in climbs:
        examples = sum(int(found.metrics.get(EXAMPLES, num_examples)) for found in each.history)
        dropped = sum(is_partial(found.metrics) for found in each.history)
        loss = whole(each.best.ranks)["loss"]
        share, faster = each.runs / naive.runs, naive.seconds / each.seconds
        yield (
            f"| {each.name} | {len(each.history)} | {dropped} | {examples} | {each.runs} ({share:.2f}) "
            f"| {each.seconds:.1f} | {faster:.2f} | {loss:.5f} |"
        )
    first = whole(naive.history[0].ranks)["loss"]
    raced = climbs[-1]
    same = sum(one.ranks == other.ranks for one, other in zip(naive.history, raced.history, strict=False))
    yield f"\nheuristic {first:.5f}; racing proposed the naive search's configuration in {same} of {len(raced.history)}"


def decode(
    adapter: SuperAdapter, examples: Sequence[Example], settings: SearchConfig, num_configs: int
) -> Iterator[str]:
    """Yield the lines of a report on generation: several configurations in one batch against one by one."""
    configs, parts = some_configs(adapter.elastic.space, num_configs), parts_of(len(examples), settings.seed)
    seconds, values = {1: 0.0, num_configs: 0.0}, {1: list[Any](), num_configs: list[Any]()}
    gauges = {width: DecodingGauge(adapter, examples, settings, parts, width) for width in seconds}
    for turn, _ in enumerate(parts):
        for width in random.Random(turn).sample(list(gauges), len(gauges)):
            start = time.perf_counter()
            for first in range(0, num_configs, width):
                values[width] += gauges[width].measure(configs[first : first + width], turn)
            seconds[width] += time.perf_counter() - start
    pairs = zip(values[1], values[num_configs], strict=True)
    differing = sum(int((one != other).sum()) for one, other in pairs)
    yield f"\n{num_configs} configurations x {len(examples)} prompts, {settings.batch_size} prompts in a batch"
    yield f"one by one {seconds[1]:.1f} s, in one batch {seconds[num_configs]:.1f} s"
    yield f"times as fast {seconds[1] / seconds[num_configs]:.2f}, answers of which the rightness differs {differing}"


def some_configs(space: SearchSpace, num: int) -> list[RankConfig]:
    """Return the heuristic and random neighbours of it."""
    neighbours = list(space.neighbours(space.heuristic()))
    return [space.heuristic(), *random.Random(0).sample(neighbours, num - 1)]


def main() -> None:
    """Load, measure, print."""
    arguments = _arguments()
    log_to_stderr()
    settings = SearchConfig(
        data=str(arguments.data), task="equation", max_evaluations=arguments.evaluations,
        precision=arguments.precision, batch_size=arguments.batch_size, max_new_tokens=32, device="cpu",
    )  # fmt: skip
    adapter = load_super_adapter(arguments.adapter, arguments.base, device="cpu")
    examples = load_examples(settings.data, adapter.record["template"], adapter.tokenizer, arguments.limit)
    print(f"{environment()}, {settings.precision}, {len(adapter.elastic.space.ranks)} groups", flush=True)
    if arguments.decode:
        lines = decode(adapter, examples, settings, arguments.configs)
    else:
        rows = tokenize_all(examples, adapter.tokenizer, adapter.record["config"]["max_length"])
        thrift = Thrift(arguments.cache_budget, arguments.error)
        climbs = climb(adapter, rows, settings, thrift)
        whole = loss_evaluator(adapter, rows, settings, Thrift("0", 0.0, thrift.seed))
        lines = climb_report(climbs, len(rows), whole)
    for line in lines:
        print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", help="the sparse base where it was moved")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="fp32")
    parser.add_argument("--cache-budget", default="2GB")
    parser.add_argument("--error", type=float, default=0.05, help="of a race")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--configs", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
