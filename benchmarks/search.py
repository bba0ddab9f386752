"""What makes search cheap: shared prefixes, racing, many configurations in one batch; each against a naive evaluator.

    python -m benchmarks.search --adapter FOLDER --data FILE [--evaluations 100] [--precision fp32] [--error 0.05]
    python -m benchmarks.search --adapter FOLDER --data FILE --decode [--configs 8] [--batch-size 32]

FOLDER is a super-adapter, FILE its validation examples. The first command climbs the validation loss in several ways
(`--ways`), one evaluation of each in turn: from the first differing block on; with racing; with racing and neighbours
in the predicted order; and with an `--indifference`, too. Every tenth configuration (`--naive-every`) of the first
climb is also evaluated by whole forwards. Figures by prefix must have the same bits. Every whole evaluation runs the
same blocks, so the time of all 100 is ten times that of these. Seconds are CPU seconds, which do not depend on what
else runs. Everything counts: trials, anchors, slopes, the whole measurements of a race's finalists. The second command
generates answers of several configurations in one batch and one by one, in turns.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.report import environment, log_to_stderr
from shears.adapt.load import SuperAdapter, load_super_adapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SearchConfig
from shears.config.search import StrategyOptions
from shears.data.examples import Example, Tokenized, load_examples, tokenize_all
from shears.models.blocks import decoder_blocks, linears
from shears.models.properties import own_model
from shears.searching.explore import ranked
from shears.searching.measure.decoding import DecodingGauge
from shears.searching.measure.evaluators import GaugedEvaluator
from shears.searching.measure.racing import parts_of
from shears.searching.measure.validation import loss_evaluator
from shears.searching.strategies.base import EXAMPLES, LOSS, Evaluated, SearchPlan
from shears.searching.strategies.hill_climb import HillClimbing

NAIVE, PREFIX, RACING, PREDICTED = "naive", "prefix", "prefix + racing", "prefix + racing, predicted order"
INDIFFERENT = "prefix + racing with indifference, predicted order"
WAYS = (PREFIX, RACING, PREDICTED, INDIFFERENT)
WHOLE = {"cache_budget": "0", "race_error": 0.0}  # settings of whole forwards on all examples


class Blocks:
    """Counts how often decoder blocks run, by a hook on a linear in each."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        for block in decoder_blocks(own_model(model))[1]:
            next(iter(linears(block).values())).register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


@dataclass
class Arm:
    """What one way of evaluating took: CPU seconds, runs of blocks, examples looked at."""

    name: str
    blocks: Blocks
    seconds: float = 0.0
    runs: int = 0

    def timed(self, work: Callable[[], Any]) -> Any:
        """Return what `work` does, counting its time."""
        before, start = self.blocks.count, time.process_time()
        result = work()
        self.seconds += time.process_time() - start
        self.runs += self.blocks.count - before
        return result


@dataclass
class Climb(Arm):
    """One hill climbing."""

    open_evaluator: Callable[[], GaugedEvaluator] = field(kw_only=True)
    plan: SearchPlan = field(kw_only=True)
    space: SearchSpace = field(kw_only=True)
    history: list[Evaluated] = field(default_factory=list)
    final: list[Evaluated] = field(default_factory=list)

    def steps(self) -> Iterator[None]:
        """Make an evaluation at a time."""
        evaluator: GaugedEvaluator = self.timed(self.open_evaluator)
        strategy = HillClimbing(self.space, self._plan(evaluator))
        while len(self.history) < self.plan.max_evaluations and (proposed := strategy.propose(self.history)):
            known = {each.ranks: each for each in self.history}
            if self.history:
                anchor = known[strategy.incumbent or self.history[0].ranks]
                self.timed(lambda anchor=anchor: evaluator.anchor(anchor))  # type: ignore[misc]
            (figures,) = self.timed(partial(evaluator.many, proposed))
            self.history.append(Evaluated(proposed[0], figures))
            yield
        self.final = self.timed(lambda: ranked(self.history, evaluator, LOSS))
        yield

    def _plan(self, evaluator: GaugedEvaluator) -> SearchPlan:
        if self.plan.options.order == "random":
            return self.plan
        return replace(self.plan, predicted=self.timed(evaluator.predictor))

    @property
    def best(self) -> Evaluated:
        """The choice: the best configuration that was measured on all examples."""
        return LOSS.best([each for each in self.final if LOSS.is_measured(each.metrics)])


def climb(
    adapter: SuperAdapter, rows: Sequence[Tokenized], settings: SearchConfig, every: int = 1,
    names: Sequence[str] = WAYS,
) -> tuple[Arm, list[Climb]]:  # fmt: skip
    """Climb in several ways, in turns; AssertionError if a figure by prefixes differs from that of whole forwards."""
    blocks = Blocks(adapter.model)
    climbs = [_climb(adapter, rows, way, blocks) for way in _ways(settings) if way[0] in names]
    naive, whole = Arm(NAIVE, blocks), loss_evaluator(adapter, rows, settings.model_copy(update=WHOLE))
    running = {each.name: each.steps() for each in climbs}
    for turn in range(settings.max_evaluations + 1):
        for name in random.Random(turn).sample(list(running), len(running)):
            next(running[name], None)
        if turn % every == 0 and turn < len(climbs[0].history):
            found, own = naive.timed(partial(whole, climbs[0].history[turn].ranks)), climbs[0].history[turn].metrics
            assert found == own or climbs[0].name != PREFIX, "a prefix must not change a bit"
        print(f"{turn + 1}: " + ", ".join(f"{each.name} {each.seconds:.1f} s" for each in [naive, *climbs]), flush=True)
    share = len(climbs[0].history) / len(range(0, len(climbs[0].history), every))
    return Arm(NAIVE, blocks, naive.seconds * share, round(naive.runs * share)), climbs


def _climb(
    adapter: SuperAdapter, rows: Sequence[Tokenized], way: tuple[str, SearchConfig, StrategyOptions], blocks: Blocks
) -> Climb:
    name, settings, options = way
    plan = SearchPlan("hill-climbing", settings.max_evaluations, settings.seed, options=options)
    return Climb(
        name, blocks, open_evaluator=lambda: loss_evaluator(adapter, rows, settings),
        plan=plan, space=adapter.elastic.space,
    )  # fmt: skip


def _ways(settings: SearchConfig) -> list[tuple[str, SearchConfig, StrategyOptions]]:
    usual, predicted = StrategyOptions(), StrategyOptions(order="predicted")
    strict = settings.model_copy(update={"race_indifference": 0.0})
    return [
        (PREFIX, strict.model_copy(update={"race_error": 0.0}), usual),
        (RACING, strict, usual),
        (PREDICTED, strict, predicted),
        (INDIFFERENT, settings, predicted),
    ]


def climb_report(
    naive: Arm, climbs: Sequence[Climb], num_examples: int, whole: GaugedEvaluator, naive_loss: float = math.nan
) -> Iterator[str]:
    """Yield the table; `whole` evaluates choices. The naive one is that by prefixes, or has the loss given."""
    found = climbs[0].best.metrics["loss"] if climbs[0].name == PREFIX else naive_loss
    yield "\n| evaluator | evaluations | decided early | examples | block runs | CPU seconds | times as fast | chosen |"
    yield "| --- " * 8 + "|"
    num, own = len(climbs[0].history), f"{naive.runs} (1.00) | {naive.seconds:.1f} | 1.00 | {found:.5f}"
    yield f"| {NAIVE} | {num} | 0 | {num * num_examples} | {own} |"
    for each in climbs:
        seen = [int(one.metrics.get(EXAMPLES, num_examples)) for one in each.history]
        yield (
            f"| {each.name} | {len(each.history)} | {sum(count < num_examples for count in seen)} | {sum(seen)} "
            f"| {each.runs} ({each.runs / naive.runs:.2f}) | {each.seconds:.1f} | {naive.seconds / each.seconds:.2f} "
            f"| {whole(each.best.ranks)['loss']:.5f} |"
        )
    yield f"\nheuristic {climbs[0].history[0].metrics['loss']:.5f}"
    for each in climbs:
        reached = next((at for at, one in enumerate(each.history, 1) if one.metrics["loss"] <= found), None)
        yield f"{each.name}: the naive climb's loss of {found:.5f} is reached (by estimate) after {reached} evaluations"


def decode(
    adapter: SuperAdapter, examples: Sequence[Example], settings: SearchConfig, num_configs: int
) -> Iterator[str]:
    """Yield the lines of a report on generation: several configurations in one batch against one by one."""
    configs, parts = some_configs(adapter.elastic.space, num_configs), parts_of(len(examples), settings.seed)
    seconds, values = {1: 0.0, num_configs: 0.0}, {1: list[Any](), num_configs: list[Any]()}
    gauges = {width: DecodingGauge(adapter, examples, settings, parts, width) for width in seconds}
    for turn, _ in enumerate(parts):
        for width in random.Random(turn).sample(list(gauges), len(gauges)):
            start = time.process_time()
            for first in range(0, num_configs, width):
                values[width] += gauges[width].measure(configs[first : first + width], turn)
            seconds[width] += time.process_time() - start
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
        cache_budget=arguments.cache_budget, race_error=arguments.error, race_indifference=arguments.indifference,
    )  # fmt: skip
    adapter = load_super_adapter(arguments.adapter, arguments.base, device="cpu")
    examples = load_examples(settings.data, adapter.record["template"], adapter.tokenizer, arguments.limit)
    print(f"{environment()}, {settings.precision}, {len(adapter.elastic.space.ranks)} groups", flush=True)
    if arguments.decode:
        lines = decode(adapter, examples, settings, arguments.configs)
    else:
        rows = tokenize_all(examples, adapter.tokenizer, adapter.record["config"]["max_length"])
        naive, climbs = climb(adapter, rows, settings, arguments.naive_every, arguments.ways)
        whole = loss_evaluator(adapter, rows, settings.model_copy(update=WHOLE))
        lines = climb_report(naive, climbs, len(rows), whole, arguments.naive_loss)
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
    parser.add_argument("--indifference", type=float, default=0.0005, help="of a race, in nats a token")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--naive-loss", type=float, default=math.nan, help="of the naive choice, as measured before")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--naive-every", type=int, default=10, help="whole forwards for every so many of the climb")
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--configs", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
