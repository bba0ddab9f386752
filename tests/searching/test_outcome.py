"""The chosen configuration, the front and the gain, against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig
from shears.config.evaluate_options import parse_constraint
from shears.errors import InputError
from shears.searching.outcome import Evaluated, Figures, Goal, Measured, held_out_gain, outcome, ratio_difference

GOAL = Goal(("accuracy", "parameters"))
FIGURES = st.fixed_dictionaries({"accuracy": st.integers(0, 4).map(float), "parameters": st.integers(0, 4)})


def evaluated(*figures: Figures) -> list[Evaluated]:
    return [(RankConfig({"a": number}), each) for number, each in enumerate(figures, start=1)]


@given(st.lists(FIGURES, min_size=1, max_size=14))
def test_the_front_is_what_no_configuration_beats_in_both_figures(figures: list[Figures]) -> None:
    found = outcome(evaluated(*figures), GOAL)
    costs = {number: (-each["accuracy"], each["parameters"]) for number, each in enumerate(figures, start=1)}
    expected = {
        number
        for number, (loss, size) in costs.items()
        if not any(a <= loss and b <= size and (a, b) != (loss, size) for a, b in costs.values())
    }
    front = [each["ranks"]["a"] for each in found["pareto"]]
    assert set(front) == expected
    assert [costs[number] for number in front] == sorted(costs[number] for number in front)
    assert found["chosen"] == found["pareto"][0]
    assert len(found["evaluations"]) == len(figures)


def test_a_feasible_configuration_is_chosen_before_a_better_one_and_an_unmeasured_one_never() -> None:
    goal = Goal(constraints=(parse_constraint("parameters <= 3k"), parse_constraint("loss<=2.5")))
    figures: list[Figures] = [{"parameters": 4000}, {"loss": 2.0, "parameters": 3000}, {"loss": 3.0, "parameters": 1}]
    found = outcome(evaluated(*figures), goal)
    assert found["chosen"]["metrics"] == figures[1]
    assert found["pareto"] == [found["chosen"]]
    assert goal.excesses(figures[0]) == {"parameters<=3k": 1 / 3, "loss<=2.5": 0.0}
    assert goal.cost(figures[0]) == (math.inf, 4000)


def test_nothing_feasible_is_one_line_that_names_the_nearest() -> None:
    goal = Goal(constraints=(parse_constraint("accuracy>=0.5"),))
    figures = [{"loss": 1.0, "accuracy": 0.1, "parameters": 1}, {"loss": 2.0, "accuracy": 0.4, "parameters": 1}]
    with pytest.raises(InputError, match=r"must meet accuracy>=0.5, none of the 2 .* nearest has .*accuracy 0.4"):
        outcome(evaluated(*figures), goal)


def test_the_interval_of_a_ratio_holds_the_truth_in_95_of_100_samples() -> None:
    generator, hits, truth = np.random.default_rng(0), 0, 0.03
    for _ in range(2000):
        tokens = generator.integers(3, 20, size=200).astype(float)
        differences = tokens * (truth + 0.2 * generator.normal(size=200))
        value, low, high = ratio_difference(differences, tokens)
        hits += low <= truth <= high
        assert low < value < high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def measured(mean: float, seed: int = 0) -> Measured:
    values = mean + 0.2 * np.random.default_rng(seed).normal(size=40)
    return Measured(values, np.ones(40))


def test_a_clear_gain_needs_no_note_and_what_is_inside_the_noise_has_one() -> None:
    clear = held_out_gain("loss", measured(2.0), measured(5.0, 1), is_same=False)
    assert clear["notes"] == []
    assert clear["test"]["difference"] == pytest.approx(clear["test"]["chosen"] - clear["test"]["heuristic"])
    assert clear["test"]["ci95"][1] < 0
    notes = [
        held_out_gain(*arguments)["notes"][0]
        for arguments in (
            ("loss", measured(5.0), measured(2.0, 1), False),
            ("loss", measured(2.0), measured(2.0), True),
            ("loss", measured(2.0), measured(2.0, 1), False),
            ("accuracy", Measured(np.zeros(40), np.ones(40)), Measured(np.ones(40), np.ones(40)), False),
        )
    ]
    worse = "The chosen ranks are worse than the heuristic on the test examples; use the heuristic."
    assert notes[0] == notes[3] == worse
    assert "found nothing better" in notes[1]
    assert "within the noise" in notes[2]
