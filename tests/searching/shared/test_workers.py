"""Several workers on one study: every configuration once, nothing lost, whatever the strategy and the storage."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from shears.adapt.space import RankConfig
from shears.config.search import STRATEGIES
from shears.errors import InputError
from shears.searching.explore import explore
from shears.searching.shared.study import StudyLocation, open_study
from shears.searching.strategies.base import Evaluated, Figures, SearchPlan, make_strategy
from tests.processes import Process
from tests.searching.formulas import a_plan, conflicting, make_space, silent
from tests.searching.shared.test_study import refuse

NUM_WORKERS = 3
SPACE = make_space(3)
PLAN = a_plan("random", 16)
URLS = {"sqlite": "sqlite:///{}/shared.db", "journal": "journal://{}/shared.log"}
CASES = [("journal", strategy) for strategy in STRATEGIES] + [("sqlite", "hill-climbing"), ("sqlite", "nsga2")]


def location_of(storage: str, folder: Path, worker: str, stale_after: float = 60.0) -> StudyLocation:
    return StudyLocation(URLS[storage].format(folder), resume=True, worker=worker, stale_after=stale_after)


def work(location: StudyLocation, plan: SearchPlan, heard: Callable[[RankConfig], object]) -> list[Evaluated]:
    """One worker from beginning to end, with connections of its own."""
    objective = conflicting(SPACE)

    def measured(ranks: RankConfig) -> Figures:
        heard(ranks)
        return objective(ranks)

    with open_study(SPACE, plan, location) as study:
        explore(make_strategy(SPACE, plan), measured, study, silent())
        return study.state.evaluations


@pytest.mark.parametrize(("storage", "strategy"), CASES)
def test_workers_evaluate_every_configuration_once_and_end_with_the_same(
    storage: str, strategy: str, tmp_path: Path
) -> None:
    plan, asked = a_plan(strategy, 27 if strategy == "exhaustive" else 14), list[RankConfig]()

    def heard(ranks: RankConfig) -> None:
        asked.append(ranks)
        time.sleep(0.002)

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        locations = [location_of(storage, tmp_path, f"worker {number}") for number in range(NUM_WORKERS)]
        results = list(pool.map(work, locations, [plan] * NUM_WORKERS, [heard] * NUM_WORKERS))
    assert max(Counter(asked).values()) == 1
    assert {e.ranks for e in results[0]} == set(asked)
    assert results[1:] == results[:-1]
    if strategy not in ("heuristic", "maximal", "minimal"):
        assert len(asked) == plan.max_evaluations, "the budget is the study's, not a worker's"


class Diary:
    """Writes what a process evaluates to a file that others write to too; kills it inside evaluation `kill_at`."""

    def __init__(self, path: Path, worker: str, kill_at: int | None = None) -> None:
        self._path, self._worker, self._kill_at, self._count = path, worker, kill_at, 0

    def __call__(self, ranks: RankConfig) -> None:
        """Note a configuration."""
        self._count += 1
        with self._path.open("a") as file:
            file.write(json.dumps([self._worker, dict(ranks)]) + "\n")
        if self._count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)


def read_diary(path: Path) -> list[tuple[str, RankConfig]]:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [(worker, RankConfig(ranks)) for worker, ranks in lines]


@pytest.mark.parametrize("storage", URLS)
def test_what_a_killed_worker_had_begun_another_evaluates(storage: str, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    dying, living = (location_of(storage, tmp_path, name, stale_after=1.0) for name in ("dying", "living"))
    first = Process(tmp_path / "log1", work, dying, PLAN, Diary(diary, "dying", kill_at=3))
    assert first.wait() == -signal.SIGKILL  # before the other begins, which might leave it too little to do
    second = Process(tmp_path / "log2", work, living, PLAN, Diary(diary, "living"))
    assert second.wait() == 0, second.printed()
    evaluated = read_diary(diary)
    begun = [ranks for worker, ranks in evaluated if worker == "dying"][-1]
    assert evaluated.count(("living", begun)) == 1, "it is retried, by the other"
    assert Counter(ranks for _, ranks in evaluated) == {**dict.fromkeys([r for _, r in evaluated], 1), begun: 2}
    result = work(replace(dying, worker="late"), PLAN, Diary(diary, "late"))
    assert read_diary(diary) == evaluated, "who comes late evaluates nothing"
    assert {e.ranks for e in result} == {ranks for _, ranks in evaluated}
    assert len(result) == PLAN.max_evaluations


def test_whoever_is_restarted_in_its_folder_goes_on_at_once_and_alone_proposes_the_same(tmp_path: Path) -> None:
    location = location_of("journal", tmp_path, "me")  # to be given up by others takes a minute
    killed = Process(tmp_path / "log", work, location, PLAN, Diary(tmp_path / "diary", "me", kill_at=5))
    assert killed.wait() == -signal.SIGKILL
    start = time.monotonic()
    resumed = work(location, PLAN, Diary(tmp_path / "diary", "me"))
    assert time.monotonic() - start < 30.0
    assert resumed == work(StudyLocation(), PLAN, lambda ranks: None)


def test_an_error_in_an_evaluation_leaves_it_to_others_at_once(tmp_path: Path) -> None:
    def failing(ranks: RankConfig) -> None:
        raise InputError("not finite")

    with pytest.raises(InputError, match="not finite"):
        work(location_of("journal", tmp_path, "one"), PLAN, failing)
    assert work(location_of("journal", tmp_path, "other"), PLAN, lambda ranks: None) == work(
        StudyLocation(), PLAN, lambda r: None
    )


def test_a_worker_that_was_given_up_and_wakes_adds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_study(SPACE, PLAN, location_of("journal", tmp_path, "asleep")) as asleep:
        ranks = SPACE.heuristic()
        assert asleep.claim(ranks, 9)
        with open_study(SPACE, PLAN, location_of("journal", tmp_path, "awake", 0.5)) as awake:
            assert not awake.claim(ranks, 9)
            time.sleep(0.6)
            awake.refresh()
            assert awake.state.to_retry(9) == [ranks]
            assert awake.claim(ranks, 9)
            awake.add(Evaluated(ranks, {"loss": 1.0, "parameters": 1}))
        asleep.add(Evaluated(ranks, {"loss": 2.0, "parameters": 1}))
        asleep.refresh()
        assert [e.metrics["loss"] for e in asleep.state.evaluations] == [1.0]
    assert "worker asleep gave no sign of life for 0.5 s" in caplog.text
    assert "other workers gave up this worker" in caplog.text


def test_who_searches_something_else_cannot_join(tmp_path: Path) -> None:
    location = replace(location_of("journal", tmp_path, "one"), identity={"data": "a", "super_adapter": "a"})
    with open_study(SPACE, PLAN, location):
        pass
    other = replace(location, worker="other", identity={"data": "b", "super_adapter": "b"})
    refuse(SPACE, PLAN, other, "data, super_adapter differ; name another with --study")
    refuse(SPACE, a_plan("random", 16, seed=1), replace(location, worker="other"), "seed differs")
