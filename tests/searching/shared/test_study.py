"""The memory of a search: kill it anywhere, resume it, and nobody can tell."""

import itertools
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.explore import MAX_REPEATS, explore, run_search
from shears.searching.shared.storage import make_fast
from shears.searching.shared.study import StudyLocation, open_study
from shears.searching.strategies.base import ACCURACY, Evaluated, Figures, Objective, SearchPlan
from shears.searching.strategies.hill_climb import HillClimbing
from tests.processes import Process
from tests.searching.formulas import (
    BUDGET,
    STRATEGIES,
    a_plan,
    climb,
    conflicting,
    counted,
    killable_search,
    make_space,
    silent,
)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/study.db"


def run_and_kill(url: str, strategy: str, at: int, log: Path) -> None:
    """A real second process, dead by SIGKILL in its evaluation number `at`."""
    assert Process(log, killable_search, url, strategy, at).wait() == -signal.SIGKILL


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_three_times_and_resumed_it_is_the_undisturbed_search(strategy: str, tmp_path: Path) -> None:
    for at in (1, 7, 9):  # before anything is written; inside the second generation; inside the third or fourth
        run_and_kill(url_of(tmp_path), strategy, at, tmp_path / "log")
    assert killable_search(url_of(tmp_path), strategy) == killable_search(None, strategy)


@pytest.mark.parametrize(
    ("strategy", "stop"),
    [
        ("hill-climbing", 7),
        ("random", 7),
        *(("nsga2", stop) for stop in (2, 5, 6, 13)),  # a generation is 5
        *(("rnsga2", stop) for stop in (5, 13)),
    ],
)
def test_stopped_after_any_proposal_it_goes_on_as_undisturbed(strategy: str, stop: int, tmp_path: Path) -> None:
    space, location = make_space(6), StudyLocation(url_of(tmp_path), resume=True)
    make, objective, plan = STRATEGIES[strategy], conflicting(space), a_plan(max_evaluations=BUDGET)
    whole = climb(make, space, objective, plan).history
    with open_study(space, plan, location) as study:
        for evaluated in whole[:stop]:
            study.add(evaluated)
    assert climb(make, space, objective, plan, location).history == whole


def test_a_resumed_search_evaluates_nothing_twice(tmp_path: Path) -> None:
    space, location, plan = make_space(4), StudyLocation(url_of(tmp_path), resume=True), a_plan(max_evaluations=9)
    first, asked_first = counted(conflicting(space))
    with pytest.raises(KeyboardInterrupt):
        climb(HillClimbing, space, interrupted_after(first, asked_first, 4), plan, location)
    second, asked_second = counted(conflicting(space))
    assert len(climb(HillClimbing, space, second, plan, location).known) == 9
    assert len(asked_first) == 4
    assert not set(asked_first) & set(asked_second)


def interrupted_after(objective: Objective, asked: list[RankConfig], number: int) -> Objective:
    def wrapped(ranks: RankConfig) -> Figures:
        if len(asked) == number:
            raise KeyboardInterrupt
        return objective(ranks)

    return wrapped


def test_trials_hold_ranks_and_figures_and_none_is_left_running(tmp_path: Path) -> None:
    space, plan = make_space(2), a_plan(max_evaluations=5)
    history = climb(HillClimbing, space, conflicting(space), plan, StudyLocation(url_of(tmp_path))).history
    trials = optuna.load_study(study_name="search", storage=url_of(tmp_path)).get_trials()
    assert [trial.params for trial in trials] == [dict(e.ranks) for e in history]
    assert [trial.user_attrs for trial in trials] == [e.metrics for e in history]
    assert [trial.values for trial in trials] == [[e.metrics["loss"], e.metrics["parameters"]] for e in history]
    assert {trial.state for trial in trials} == {optuna.trial.TrialState.COMPLETE}


def test_an_accuracy_is_maximised_in_the_study_too(tmp_path: Path) -> None:
    with open_study(make_space(1), a_plan(goal=ACCURACY), StudyLocation(url_of(tmp_path))):
        pass
    directions = optuna.load_study(study_name="search", storage=url_of(tmp_path)).directions
    assert [direction.name for direction in directions] == ["MAXIMIZE", "MINIMIZE"]


def test_the_file_has_a_write_ahead_log_and_is_whole_when_closed(tmp_path: Path) -> None:
    space, plan = make_space(2), a_plan(max_evaluations=5)
    climb(HillClimbing, space, conflicting(space), plan, StudyLocation(url_of(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"], "no log is left beside the file"
    connection = sqlite3.connect(tmp_path / "study.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    make_fast(connection, None)
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    connection.close()


def refuse(space: SearchSpace, plan: SearchPlan, location: StudyLocation, message: str) -> None:
    with pytest.raises(InputError, match=message), open_study(space, plan, location):
        pass


def test_a_study_with_evaluations_is_refused_unless_resumed(tmp_path: Path) -> None:
    space, plan = make_space(2), a_plan(max_evaluations=3)
    climb(HillClimbing, space, conflicting(space), plan, StudyLocation(url_of(tmp_path)))
    for worker in ("", "other"):
        location = StudyLocation(url_of(tmp_path), worker=worker)
        refuse(space, plan, location, "must be new, and it has evaluations; join it with --resume")


@pytest.mark.parametrize(
    ("space", "plan", "about", "differs"),
    [
        (make_space(3), a_plan(), {"data": "a"}, "space differs"),
        (make_space(2, (32, 16)), a_plan(), {"data": "a"}, "space differs"),
        (make_space(2), a_plan("other"), {"data": "a"}, "strategy differs"),
        (make_space(2), a_plan(seed=1), {"data": "a"}, "seed differs"),
        (make_space(2), a_plan(goal=ACCURACY), {"data": "b"}, "data, quality differ;"),
    ],
)
def test_a_study_of_another_search_is_refused_with_what_differs(
    space: SearchSpace, plan: SearchPlan, about: dict[str, str], differs: str, tmp_path: Path
) -> None:
    with open_study(make_space(2), a_plan(), StudyLocation(url_of(tmp_path), identity={"data": "a"})):
        pass
    refuse(space, plan, StudyLocation(url_of(tmp_path), resume=True, identity=about), differs)


def test_a_trial_that_another_tool_put_in_a_queue_is_passed_over(tmp_path: Path) -> None:
    space, plan = make_space(2), a_plan(max_evaluations=3)
    climb(HillClimbing, space, conflicting(space), plan, StudyLocation(url_of(tmp_path)))
    optuna.load_study(study_name="search", storage=url_of(tmp_path)).enqueue_trial(dict(space.minimal()))
    more = a_plan(max_evaluations=5)
    study = climb(HillClimbing, space, conflicting(space), more, StudyLocation(url_of(tmp_path), resume=True))
    assert study.evaluations == climb(HillClimbing, space, conflicting(space), more).evaluations


def test_a_database_in_memory_will_do() -> None:
    space, plan = make_space(2), a_plan(max_evaluations=3)
    assert len(climb(HillClimbing, space, conflicting(space), plan, StudyLocation("sqlite://")).known) == 3


def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    space, location = make_space(4), StudyLocation(url_of(tmp_path), resume=True)
    for budget in (3, 6):
        plan = a_plan(max_evaluations=budget)
        assert len(climb(HillClimbing, space, conflicting(space), plan, location).known) == budget


@pytest.mark.parametrize(("strategy", "population"), [("hill-climbing", None), ("nsga2", 4), ("rnsga2", 4)])
def test_a_larger_budget_goes_on_with_generations_of_the_size_it_began_with(
    strategy: str, population: int | None, tmp_path: Path
) -> None:
    space, location = make_space(6), StudyLocation(url_of(tmp_path), resume=True)
    for budget in (20, 40):
        found = run_search(space, conflicting(space), a_plan(strategy, budget), location)
    undisturbed = run_search(space, conflicting(space), a_plan(strategy, 40, begun_with=population))
    assert found.evaluations == undisturbed.evaluations


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/study.db", "nodatabase://host/name"])
def test_a_storage_that_cannot_be_opened_is_a_clear_error(url: str) -> None:
    refuse(make_space(1), a_plan(), StudyLocation(url), "storage must be a database URL that can be opened")


def test_a_password_in_the_url_is_not_shown() -> None:
    refuse(make_space(1), a_plan(), StudyLocation("nodb://me:secret@host/name"), r"^((?!secret).)*me:\*{3}@host")


class Stubborn:
    """Knows one configuration."""

    def __init__(self, space: SearchSpace, plan: SearchPlan) -> None:
        self.space = space

    def propose(self, history: Sequence[Evaluated]) -> RankConfig:
        """Return the heuristic, for ever."""
        return self.space.heuristic()


def test_a_strategy_that_repeats_itself_for_ever_is_stopped_at_no_cost() -> None:
    space, plan = make_space(2), a_plan()
    objective, asked = counted(conflicting(space))
    history = climb(Stubborn, space, objective, plan).history
    assert len(asked) == 1
    assert len(history) == 1 + MAX_REPEATS


def test_a_resumed_search_counts_the_repeats_before(tmp_path: Path) -> None:
    space, plan, location = make_space(2), a_plan(), StudyLocation(url_of(tmp_path), resume=True)
    known = Evaluated(space.heuristic(), conflicting(space)(space.heuristic()))
    with open_study(space, plan, location) as study:
        for _ in itertools.repeat(None, 40):
            study.add(known)
    assert len(climb(Stubborn, space, conflicting(space), plan, location).history) == 1 + MAX_REPEATS


def test_what_is_not_finite_stops_the_search_and_is_not_remembered() -> None:
    space, plan = make_space(2), a_plan()
    with open_study(space, plan, StudyLocation()) as study:
        with pytest.raises(InputError, match="must return a finite 'loss', got nan"):
            explore(
                HillClimbing(space, plan),
                lambda _: {"loss": float("nan"), "parameters": 1},
                study,
                silent(),
            )
        assert not study.state.history
