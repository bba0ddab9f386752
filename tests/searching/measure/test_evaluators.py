"""Evaluators: the figures of whole evaluations; what a race decides is marked; anchors; many at once."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.config.search import Constraint
from shears.evaluation.scoring.scorers import LossScorer
from shears.searching.measure.evaluators import (
    CombinedEvaluator,
    Evaluator,
    GaugedEvaluator,
    PlainEvaluator,
    as_evaluator,
    race_report,
)
from shears.searching.measure.gauges import WholeGauge, open_gauge
from shears.searching.measure.racing import Race, parts_of
from shears.searching.measure.validation import loss_evaluator
from shears.searching.strategies.base import EXAMPLES, Evaluated, Figures, Goal, is_partial
from tests.searching.adapters import PAD, make_adapter, make_rows, make_super_adapter, walk

NUM = 160
SETTINGS = SearchConfig(data="unused", precision="fp32", device="cpu", batch_size=16)


class Simulated:
    """A gauge of made values: of each configuration one a token of its first group's rank, and noise by example."""

    def __init__(self, width: int = 1) -> None:
        self.parts = parts_of(NUM, 0)
        self.sizes, self.width = [len(part) for part in self.parts], width
        self.weights = torch.full((NUM,), 3.0, dtype=torch.float64)
        self.measured: list[tuple[list[int], int]] = []
        self.anchors: list[RankConfig] = []
        self.shifts: dict[int, float] = {}

    def values(self, ranks: RankConfig) -> Tensor:
        generator = torch.Generator().manual_seed(ranks["a"])
        return (
            ranks["a"]
            + self.shifts.get(ranks["a"], 0.0)
            + 0.2 * torch.randn(NUM, generator=generator, dtype=torch.float64)
        )

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Tensor]:
        self.measured.append(([ranks["a"] for ranks in configs], part))
        start = sum(self.sizes[:part])
        return [self.values(ranks)[start : start + self.sizes[part]] for ranks in configs]

    def anchor(self, ranks: RankConfig) -> None:
        self.anchors.append(ranks)

    def slopes(self, ranks: RankConfig) -> None:
        return None


def config(rank: int) -> RankConfig:
    return RankConfig({"a": rank})


def make(quality: str = "loss", width: int = 1, race: Race | None = None) -> tuple[GaugedEvaluator, Simulated]:
    gauge, elastic = Simulated(width), make_adapter(blocks=2)
    elastic.num_parameters = lambda config: 10 * config["a"]  # type: ignore[method-assign]
    return GaugedEvaluator(gauge, quality, elastic, race), gauge


def anchored(evaluator: GaugedEvaluator, rank: int) -> Figures:
    figures = evaluator(config(rank))
    evaluator.anchor(Evaluated(config(rank), figures))
    return figures


def test_figures_are_the_values_over_the_weights() -> None:
    evaluator, gauge = make()
    figures = evaluator(config(4))
    assert figures == {"loss": pytest.approx(float(gauge.values(config(4)).sum()) / (3 * NUM)), "parameters": 40}
    assert evaluator(config(4)) == figures
    assert len(gauge.measured) == 4  # the parts; what is known is not measured again


def test_without_an_anchor_or_a_race_nothing_is_dropped() -> None:
    evaluator, _ = make(race=Race(0.05))
    assert not any(map(is_partial, evaluator.many([config(rank) for rank in (2, 9)])))
    evaluator, _ = make()
    anchored(evaluator, 2)
    assert not is_partial(evaluator.many([config(9)])[0])


@pytest.mark.parametrize(("quality", "worse", "better"), [("loss", 9, 2), ("accuracy", 2, 9)])
def test_what_is_worse_or_better_than_the_anchor_is_decided_early_and_lies_on_its_side(
    quality: str, worse: int, better: int
) -> None:
    evaluator, gauge = make(quality, race=Race(0.05))
    anchor = anchored(evaluator, 5)
    dropped, taken = evaluator.many([config(worse), config(better)])
    assert dropped[EXAMPLES] == taken[EXAMPLES] == gauge.sizes[0]
    sign = 1 if quality == "loss" else -1
    assert sign * dropped[quality] > sign * anchor[quality] > sign * taken[quality]
    for figures, rank in ((dropped, worse), (taken, better)):
        assert figures[quality] == pytest.approx(float(gauge.values(config(rank)).sum()) / (3 * NUM), abs=0.05)


def test_what_is_hardly_better_is_measured_whole() -> None:
    evaluator, gauge = make(race=Race(0.05))
    anchored(evaluator, 5)
    gauge.shifts[6] = -1.01
    assert not is_partial(evaluator.many([config(6)])[0])


def test_an_incumbent_that_was_taken_early_is_measured_on_what_its_candidates_need() -> None:
    evaluator, gauge = make(race=Race(0.05))
    anchored(evaluator, 5)
    (taken,) = evaluator.many([config(2)])
    evaluator.anchor(Evaluated(config(2), taken))
    gauge.measured.clear()
    assert is_partial(evaluator.many([config(9)])[0])
    assert gauge.measured == [([9], 0)]
    gauge.shifts[3] = -1.0
    (close,) = evaluator.many([config(3)])
    assert gauge.measured[1:] == [([rank], part) for part in range(4) for rank in (2, 3)][1:]
    assert close[EXAMPLES] == NUM, "what is compared with an estimate stays one"
    true = evaluator(config(3))["loss"] - evaluator(config(2))["loss"]
    assert close["loss"] - taken["loss"] == pytest.approx(true)


def test_asked_alone_a_configuration_is_measured_whole_whatever_a_race_said() -> None:
    evaluator, gauge = make(race=Race(0.05))
    anchored(evaluator, 2)
    assert is_partial(evaluator.many([config(9)])[0])
    assert not is_partial(evaluator(config(9)))
    assert not is_partial(evaluator.many([config(9)])[0])
    assert gauge.anchors == [config(2)]


def test_many_are_measured_as_wide_as_the_gauge_is_and_the_decided_fall_out() -> None:
    evaluator, gauge = make(width=3, race=Race(0.05))
    anchored(evaluator, 4)
    gauge.measured.clear()
    ranks = [5, 9, 4, 2, 8, 5, 1]
    gauge.shifts[5] = -1.0
    figures = evaluator.many([config(rank) for rank in ranks])
    assert [is_partial(each) for each in figures] == [rank not in (4, 5) for rank in ranks]
    assert gauge.measured == [([5, 9, 2], 0), ([5], 1), ([5], 2), ([5], 3), ([8, 1], 0)]
    assert [each["parameters"] for each in figures] == [10 * rank for rank in ranks]


def test_the_report_is_of_the_evaluations_alone() -> None:
    evaluations = [
        Evaluated(config(1), {"loss": 1.0, "parameters": 1}),
        Evaluated(config(2), {"loss": 2.0, "parameters": 2, EXAMPLES: 20}),
    ]
    expected = {"error": 0.05, "evaluations": 2, "decided_early": 1, "examples": 180, "examples_without": 320}
    assert race_report(evaluations, 160, Race(0.05)) == expected
    assert race_report(evaluations, 160, Race(0.05, indifference=0.1)) == expected | {"indifference": 0.1}


def test_plain_callables_are_evaluators_and_several_are_one() -> None:
    def objective(ranks: RankConfig) -> Figures:
        return {"loss": float(ranks["a"])}

    evaluator = as_evaluator(objective)
    assert isinstance(evaluator, PlainEvaluator)
    assert as_evaluator(evaluator) is evaluator
    evaluator.anchor(Evaluated(config(1), {}))
    assert evaluator.many([config(1), config(3)]) == [{"loss": 1.0}, {"loss": 3.0}]
    gauged, gauge = make(width=3)
    both = CombinedEvaluator(
        [evaluator], lambda ranks: {"size": ranks["a"]}, expand=lambda ranks: config(2 * ranks["a"])
    )
    assert isinstance(both, Evaluator)
    assert both(config(2)) == {"loss": 4.0, "size": 4}
    both = CombinedEvaluator([gauged, evaluator], expand=lambda ranks: config(2 * ranks["a"]))
    both.anchor(Evaluated(config(3), {}))
    assert gauge.anchors == [config(6)]
    assert both.width == 3


def test_what_breaks_a_bound_on_a_size_is_not_measured() -> None:
    gauged, gauge = make()
    goal = Goal(constraints=(Constraint("macs", "<=", 5), Constraint("loss", "<=", 0.1)))
    both = CombinedEvaluator([gauged], lambda ranks: {"macs": ranks["a"]}, goal)
    figures = both.many([config(rank) for rank in (9, 4, 6)])
    assert [each.get("loss") is None for each in figures] == [True, False, True]
    assert figures[0] == {"macs": 9}
    assert {rank for ranks, _ in gauge.measured for rank in ranks} == {4}


def test_on_a_model_all_ways_give_the_same_bits_and_a_race_only_decides_earlier() -> None:
    adapter, rows = make_super_adapter(), make_rows(NUM)
    whole = loss_evaluator(adapter, rows, SETTINGS.model_copy(update={"cache_budget": "0"}))
    prefix = loss_evaluator(adapter, rows, SETTINGS)
    racing = loss_evaluator(adapter, rows, SETTINGS.model_copy(update={"race_error": 0.2}))
    best, decided = adapter.elastic.space.heuristic(), 0
    losses = {best: whole(best)["loss"]}
    for ranks in walk(adapter.elastic.space, 12):
        for evaluator in (whole, prefix, racing):
            evaluator.anchor(Evaluated(best, whole(best)))
        expected, same, raced = (evaluator.many([ranks])[0] for evaluator in (whole, prefix, racing))
        assert same == expected
        losses[ranks] = expected["loss"]
        decided += is_partial(raced)
        if is_partial(raced):
            assert raced["loss"] == pytest.approx(expected["loss"], rel=0.05)
        else:
            assert raced == expected
        best = min(losses, key=losses.__getitem__)
    assert decided >= 1
    assert racing(best) == whole(best)


def test_with_slopes_fewer_examples_are_enough() -> None:
    elastic, rows = make_adapter(), make_rows(NUM)
    for layer in elastic.model.modules():
        if hasattr(layer, "lora_B"):
            layer.lora_B["default"].weight.data /= 10
    scorer = LossScorer(elastic.model, rows, PAD, 16, parts_of(NUM, 0))

    class Blind(WholeGauge):
        def slopes(self, ranks: RankConfig) -> None:
            return None

    looked_at = []
    for gauge in (Blind(elastic, scorer, "fp32"), open_gauge(elastic, scorer, "fp32", 10**9)):
        evaluator = GaugedEvaluator(gauge, "loss", elastic, Race(0.05))
        heuristic = elastic.space.heuristic()
        evaluator.anchor(Evaluated(heuristic, evaluator(heuristic)))
        figures = evaluator.many(list(elastic.space.neighbours(elastic.space.heuristic())))
        looked_at.append(sum(each.get(EXAMPLES, NUM) for each in figures))
    assert looked_at[1] < 0.85 * looked_at[0]
