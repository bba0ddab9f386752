"""A plan's seconds are sums that can be done by hand, and the effort that fits a time is the most thorough one."""

from dataclasses import replace
from typing import Any

import pytest

from shears.config import CompressConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.runs.compress.candidates import Candidate, front, smallest_enough
from shears.runs.compress.effort import SCALES, Amounts, Costs, efforts, fitted, left_out, steps_of, total_seconds
from shears.runs.compress.speeds import Speeds

SPEEDS = Speeds(load=1.0, forward=1e-3, pruning=50.0, trained=1e-2, question=2.0, trained_question=1.0)
AMOUNTS = Amounts(rows=320, row_tokens=100.0, text_tokens=32_000, held_out_tokens=3_000, questions=30)
FIRST = Candidate(0.5, "int4", "int4", 400, 3.2, 13.0)


def settings_of(**values: Any) -> CompressConfig:
    return build(CompressConfig, "compress", {"data": "rows.jsonl", "target": "1GB", **values})


def costs_of(settings: CompressConfig) -> Costs:
    return Costs(SPEEDS, AMOUNTS, settings, FIRST)


@pytest.mark.parametrize(
    ("name", "rows", "steps"),
    [("quick", 1_600, 100), ("quick", 100_000, 120), ("quick", 100, 35), ("usual", 1_600, 300), ("usual", 320, 120),
     ("usual", 100, 70), ("thorough", 320, 200), ("usual", 3, 10)],
)  # fmt: skip
def test_few_rows_get_steps_and_many_get_epochs(name: Any, rows: int, steps: int) -> None:
    assert steps_of(SCALES[name], rows) == steps


def test_seconds_are_those_of_the_parts() -> None:
    settings = settings_of()
    usual = efforts(settings, AMOUNTS)["usual"]
    assert (usual.steps, usual.heal, usual.teaches, usual.num_samples) == (120, None, False, 64)
    seconds = costs_of(settings).seconds(usual)
    step = 16 * 100 * 1e-2
    measured = 1.0 + 3_000 * 1e-3 + 30 * 1.0 + 130 / 13.0
    pruned = 2.0 + 1.5 * 32_000 * 1e-3 + 50.0 + 12 * 512 * 1e-3
    assert seconds == pytest.approx({
        "dense": measured + 30, "sparsify": pruned, "train": 2.0 + 120 * step, "export": 2.0, "measure": measured,
        "rival": 2.0 + 120 * step + 2.0 + measured,
    })  # fmt: skip


def test_the_model_as_it_came_answers_for_a_tenth_of_a_time() -> None:
    costs = Costs(SPEEDS, AMOUNTS._replace(questions=400), settings_of(time="30min"), FIRST)
    assert costs.asked_as_it_came == 0.1 * 30 * 60 / SPEEDS.question
    assert costs._replace(settings=settings_of(time="5min")).asked_as_it_came == 50
    assert costs._replace(settings=settings_of()).asked_as_it_came == 400
    assert costs_of(settings_of(time="5min")).asked_as_it_came == AMOUNTS.questions
    usual = efforts(costs.settings, costs.amounts)["usual"]
    measured = [costs._replace(amounts=AMOUNTS._replace(questions=each)).seconds(usual)["dense"] for each in (90, 400)]
    assert measured[0] == measured[1]


def test_only_a_thorough_training_has_a_teacher_and_only_a_text_is_healed_on() -> None:
    taught = efforts(settings_of(), AMOUNTS)
    assert [each.teaches for each in taught.values()] == [False, False, True]
    assert {each.heal for each in taught.values()} == {None}
    assert all(each.teaches for each in efforts(settings_of(target=None), AMOUNTS).values())
    healed = efforts(settings_of(data=None, calibration="text.txt"), AMOUNTS)
    assert [each.heal for each in healed.values()] == [None, 100_000, 128_000]
    assert {each.steps for each in healed.values()} == {None}


def test_what_is_named_stays_as_it_is() -> None:
    found = efforts(settings_of(heal=5_000, max_steps=7, num_samples=3, method="wanda"), AMOUNTS)
    assert {(each.heal, each.steps, each.num_samples, each.method) for each in found.values()} == {
        (5_000, 7, 3, "wanda")
    }


@pytest.mark.parametrize(
    ("minutes", "name", "method", "teaches"),
    [(10_000, "thorough", "admm", True), (240, "thorough", "admm", True), (70, "usual", "admm", False),
     (25, "quick", "admm", False), (10.2, "quick", "wanda", False)],
)  # fmt: skip
def test_the_most_thorough_effort_that_fits_is_taken(minutes: float, name: str, method: str, teaches: bool) -> None:
    settings = settings_of(time=f"{minutes}min")
    costs = costs_of(settings)
    found = efforts(settings, AMOUNTS)
    effort = fitted(found, costs, spent=60.0)
    assert (effort.name, effort.method, effort.teaches) == (name, method, teaches)
    total = sum(costs.seconds(effort).values()) + 60.0
    assert total <= 60 * minutes
    longer = replace(effort, steps=(effort.steps or 0) + 1)
    is_whole = effort.steps == found[name].steps
    assert is_whole or sum(costs.seconds(longer).values()) + 60.0 > 60 * minutes  # no more steps would fit


def test_a_time_that_is_too_short_gets_the_least_and_says_what_is_left_out() -> None:
    settings = settings_of(time="3min")
    costs, found = costs_of(settings), efforts(settings, AMOUNTS)
    least = fitted(found, costs, spent=60.0)
    assert (least.method, least.steps, least.attempts, least.rival) == ("wanda", 10, 1, False)
    assert "rival" not in costs.seconds(least)
    over = total_seconds(costs, least) + 60.0 - 180.0
    assert left_out(least, found["thorough"], over) == [
        "190 of 200 training steps", "calibration on 128 sequences (16 are read)", "a teacher",
        "admm (wanda prunes)", "dense int4 to compare with",
        f"nothing more: it takes about {over / 60:.0f} min longer than the time",
    ]  # fmt: skip


@pytest.mark.parametrize("time", ["", "2", "soon", "0h", "2 days"])
def test_an_unreadable_time_is_refused(time: str) -> None:
    with pytest.raises(InputError, match=r"compress\.time must be quick, usual, thorough or a time"):
        settings_of(time=time)


def test_the_smallest_package_that_is_good_enough_is_found_by_halving() -> None:
    line = [Candidate(0.5, "int4", "int4", size, 3.2, 1.0, added_loss=10.0 / size) for size in range(1, 8)]
    line = [replace(each, sparsity=0.1 * number) for number, each in enumerate(line)]
    dominated = replace(line[6], bytes=9, sparsity=0.9, added_loss=9.0)
    assert front([dominated, *line]) == line
    for enough in range(8):
        measured: list[dict[str, Any]] = []
        while (each := smallest_enough([dominated, *line], measured)) is not None:
            measured.append({"name": each.name, "bytes": each.bytes, "holds": each.bytes > enough})
        assert len(measured) <= 3
        holding = [each["bytes"] for each in measured if each["holds"]]
        assert min(holding, default=8) == enough + 1


def test_weights_that_nothing_trained_are_rounded_with_the_text() -> None:
    settings = settings_of(data=None, calibration="text.txt", target="1GB")
    usual = efforts(settings, AMOUNTS)["usual"]
    dense = costs_of(settings)._replace(first=replace(FIRST, sparsity=0.0))
    assert dense.seconds(usual)["export"] == pytest.approx(2.0 + 4 * 32_000 * 1e-3 + 50.0)
    assert dense._replace(first=replace(FIRST, sparsity=0.0, values="bf16")).seconds(usual)["export"] == 2.0
    assert costs_of(settings).seconds(usual)["export"] == 2.0  # healed on the grid
