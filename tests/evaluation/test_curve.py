"""The curve of accuracy over rank: its points, its area, its differences."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import SearchSpace
from shears.errors import InputError
from shears.evaluation.curve import allowed_ranks, area_weights, aurac, curve, tied
from shears.evaluation.records import Evaluation, accuracy_of
from shears.evaluation.statistics import pooled_accuracy


def _evaluation(right: list[bool]) -> Evaluation:
    return accuracy_of(
        "number",
        [
            {"index": index, "id": f"q{index}", "prediction": float(each), "answer": 1.0, "correct": each}
            for index, each in enumerate(right)
        ],
    )


@given(st.lists(st.integers(1, 64), min_size=2, max_size=6, unique=True), st.integers(0, 99))
def test_the_area_is_the_integral_of_the_straight_lines_over_the_span(ranks: list[int], seed: int) -> None:
    generator = random.Random(seed)
    runs = [[generator.random() < 0.6 for _ in range(9)] for _ in ranks]
    order = np.argsort(ranks)
    accuracies = np.array([np.mean(run) for run in runs])[order]
    area = np.trapezoid(accuracies, np.array(ranks)[order]) / (max(ranks) - min(ranks))
    found = aurac(ranks, runs)
    assert found.value == pytest.approx(area, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert min(area_weights(ranks)) > 0


def test_the_area_of_one_rank_is_its_accuracy_and_of_equal_runs_too() -> None:
    right = [True, False, True, True, False]
    assert aurac([8], [right]) == pooled_accuracy([right])
    assert aurac([32, 16, 8], [right] * 3).value == pytest.approx(0.6)


def test_the_interval_of_the_area_covers_the_true_area_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    weights = area_weights([32, 16, 8])
    truth = 0.0
    covered = 0
    for _ in range(400):
        skill = generator.random(60)  # of each example, the same for all ranks: the runs are correlated
        runs = [(generator.random(60) < share * skill).tolist() for share in (0.9, 0.8, 0.6)]
        truth = sum(w * share / 2 for w, share in zip(weights, (0.9, 0.8, 0.6), strict=True))
        found = aurac([32, 16, 8], runs)
        covered += found.low <= truth <= found.high
    assert 0.92 < covered / 400 <= 0.985


def test_every_point_has_its_count_its_interval_and_its_paired_difference_to_the_largest_rank() -> None:
    largest = [True] * 12 + [False] * 8
    smaller = [True] * 6 + [False] * 12 + [True] * 2
    found = curve({8: _evaluation(smaller), 32: _evaluation(largest)}, {8: 100, 32: 400})
    assert (found.value, found.n) == (0.6, 20)
    first, last = found.curve["points"]
    assert (first["rank"], first["parameters"], first["value"], first["difference"]) == (32, 400, 0.6, None)
    assert (last["rank"], last["parameters"], last["value"], last["n"]) == (8, 100, 0.4, 20)
    gap = last["difference"]
    assert (gap["n"], gap["won"], gap["lost"]) == (20, 2, 6)
    assert gap["value"] == pytest.approx(-0.2)
    assert gap["ci95"][0] < -0.2 < gap["ci95"][1]
    assert gap["p_holm"] == gap["p"]  # of one difference
    assert found.curve["aurac"] == pytest.approx(0.5)
    assert found.records[0]["by_rank"]["8"] == {"prediction": 1.0, "correct": True}
    assert found.records[19]["by_rank"]["32"] == {"prediction": 0.0, "correct": False}


def test_all_groups_have_the_rank_or_the_nearest_that_they_may_have() -> None:
    space = SearchSpace({"a": (32, 16, 8), "b": (16, 4), "c": (24,)})
    assert allowed_ranks(space) == [32, 24, 16, 8, 4]
    assert dict(tied(space, 16)) == {"a": 16, "b": 16, "c": 24}
    assert dict(tied(space, 8)) == {"a": 8, "b": 4, "c": 24}
    assert dict(tied(space, 4)) == {"a": 8, "b": 4, "c": 24}
    with pytest.raises(InputError, match="ranks must be all or one of 32, 24, 16, 8, 4, got 12"):
        tied(space, 12)
