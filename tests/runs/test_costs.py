"""A plan's seconds are sums that can be done by hand, and the effort that fits a time is the most thorough one."""

from dataclasses import replace
from typing import Any

import pytest

from shears.runs.candidates import Amounts, Candidate, Effort, efforts
from shears.runs.costs import Speeds, fitted, left_out, stage_seconds, timed_rows

SPEEDS = Speeds(load=1.0, forward=1e-3, pruning=50.0, trained=1e-2, question=2.0, answer=1.0)
AMOUNTS = Amounts(rows=320, row_tokens=100.0, text_tokens=32_000, held_out_tokens=3_000, questions=30)
TEXT = AMOUNTS._replace(rows=0, row_tokens=0.0, questions=0)
FIRST = Candidate(0.5, "int4", "int4", 400, 3.2, 13.0)


def seconds(effort: Effort, amounts: Amounts = AMOUNTS, first: Candidate = FIRST) -> dict[str, float]:
    return stage_seconds(effort, first, SPEEDS, amounts, 8)


def total(effort: Effort) -> float:
    return sum(seconds(effort).values())


@pytest.mark.parametrize(
    ("name", "rows", "steps"),
    [("quick", 1_600, 100), ("quick", 100_000, 120), ("quick", 100, 35), ("usual", 1_600, 300), ("usual", 320, 120),
     ("usual", 100, 70), ("thorough", 320, 200), ("usual", 3, 10)],
)  # fmt: skip
def test_few_rows_get_steps_and_many_get_epochs(name: Any, rows: int, steps: int) -> None:
    assert efforts(AMOUNTS._replace(rows=rows))[name].steps == steps


@pytest.mark.parametrize(
    ("count", "length", "rows"), [(360, 63.0, 16), (360, 128.0, 8), (360, 456.0, 4), (20, 63.0, 10), (1, 63.0, 1)]
)
def test_the_timed_step_has_more_rows_if_they_are_short(count: int, length: float, rows: int) -> None:
    assert timed_rows(count, length) == rows


def test_seconds_are_those_of_the_parts() -> None:
    usual = efforts(AMOUNTS)["usual"]
    assert (usual.steps, usual.heal, usual.teaches, usual.num_samples) == (120, 0, False, 64)
    step = 16 * 100 * 1e-2
    measured = 1.0 + 3_000 * 1e-3 + 130 / 13.0
    pruned = 2.0 + 1.5 * 32_000 * 1e-3 + 50.0 + 12 * 512 * 1e-3
    assert seconds(usual) == pytest.approx({
        "dense": measured + 60, "sparsify": pruned, "train": 2.0 + 120 * step, "export": 2.0, "measure": measured + 30,
        "rival": 2.0 + 120 * step + 2.0 + 4.0 * 32_000 * 1e-3 + 50.0 + measured + 30,  # rounded with the rows' inputs
    })  # fmt: skip
    many = AMOUNTS._replace(questions=400)
    assert seconds(usual, many)["dense"] == pytest.approx(measured + 200)  # untrained answers are long: 100 do


def test_weights_that_nothing_trained_are_rounded_with_the_text() -> None:
    usual = efforts(TEXT)["usual"]
    dense = replace(FIRST, sparsity=0.0)
    assert seconds(usual, TEXT, dense)["export"] == pytest.approx(2.0 + 4 * 32_000 * 1e-3 + 50.0)
    assert seconds(usual, TEXT, replace(dense, values="bf16"))["export"] == 2.0
    assert seconds(usual, TEXT)["export"] == 2.0  # healed on the grid


def test_only_a_thorough_training_has_a_teacher_and_only_a_text_is_healed_on() -> None:
    taught = efforts(AMOUNTS).values()
    assert [(each.teaches, each.heal) for each in taught] == [(False, 0), (False, 0), (True, 0)]
    assert [(each.heal, each.steps) for each in efforts(TEXT).values()] == [(0, 0), (100_000, 0), (128_000, 0)]
    assert {each.sequence_length for each in efforts(TEXT, context=64).values()} == {64}


@pytest.mark.parametrize(
    ("minutes", "name", "method", "teaches"),
    [(10_000, "thorough", "admm", True), (240, "thorough", "admm", True), (70, "usual", "admm", False),
     (25, "quick", "admm", False), (9.0, "quick", "wanda", False)],
)  # fmt: skip
def test_the_most_thorough_effort_that_fits_is_taken(minutes: float, name: Any, method: str, teaches: bool) -> None:
    found = efforts(AMOUNTS)
    effort = fitted(found, total, 60.0 * minutes)
    assert (effort.name, effort.method, effort.teaches) == (name, method, teaches)
    assert total(effort) <= 60 * minutes
    longer = replace(effort, steps=effort.steps + 1)
    assert effort.steps == found[name].steps or total(longer) > 60 * minutes  # no more steps would fit


def test_a_time_that_is_too_short_gets_the_least_and_says_what_is_left_out() -> None:
    found = efforts(AMOUNTS)
    least = fitted(found, total, 120.0)
    assert (least.method, least.steps, least.rival) == ("wanda", 10, False)
    assert "rival" not in seconds(least)
    over = total(least) - 120.0
    assert left_out(least, found["thorough"], over) == [
        "190 of 200 training steps", "112 of 128 calibration sequences", "the teacher",
        "pruning by admm (wanda is faster)", "the comparison with an unpruned int4 model",
        f"it still takes about {over / 60:.0f} min longer than --time",
    ]  # fmt: skip
