"""The study of a search: where it is kept, which search it belongs to, who makes it and who joins it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from shears.adapt.space import SearchSpace
from shears.errors import InputError
from shears.searching.shared.board import Board
from shears.searching.shared.ledger import Ledger
from shears.searching.shared.patience import Patience
from shears.searching.shared.place import STUDY, Place, own_url
from shears.searching.shared.storage import open_storage
from shears.searching.strategies.base import PARAMETERS, Plan, digest

ABOUT = "shears"  # the study attribute that says which search it belongs to
POPULATION = "population"  # the one with the size of a generation, which hangs on the budget at the beginning
WAITS = 50  # tenths of a second in which whoever makes a study says which search it belongs to


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's own log line off the screen."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def new_study(directions: Sequence[str]) -> optuna.Study:
    """Return a study in memory."""
    with _quiet():
        return optuna.create_study(storage=InMemoryStorage(), directions=list(directions))


@contextmanager
def open_ledger(space: SearchSpace, plan: Plan, place: Place) -> Iterator[Ledger]:
    """Yield the ledger of a new, joined or resumed search; every file of its storage is closed afterwards.

    InputError if the storage cannot be opened, the study has evaluations but `resume` is not set, or it belongs to
    another search. OSError if the storage is away for too long.
    """
    with open_storage(place.url) as storage:
        patience = Patience(place.url or "in memory", place.timeout)
        study = _join(storage, patience, plan, place, {**place.about, **_identity(space, plan)})
        board = Board(storage, study, space, plan.goal, patience)
        population = patience(storage.get_study_user_attrs, study).get(POPULATION, plan.population)
        yield Ledger(board, plan.goal, space.size, place.worker, place.stale_after, population=population)


@contextmanager
def dropped_if_unused(work: Path) -> Iterator[None]:
    """Delete the study in the folder `work` where the search is refused before anything is evaluated."""
    try:
        yield
    except InputError:
        with suppress(InputError):  # a file that is no study stays for whoever put it there
            if (work / STUDY).is_file() and not _num_evaluated(work):
                for path in work.glob(f"{STUDY}*"):
                    path.unlink()
        raise


def _num_evaluated(work: Path) -> int:
    with open_storage(own_url(work)) as storage:
        studies = storage.get_all_studies()
        return sum(storage.get_n_trials(study._study_id, (TrialState.COMPLETE,)) for study in studies)


def _join(storage: BaseStorage, patience: Patience, plan: Plan, place: Place, about: Mapping[str, Any]) -> int:
    """Return the number of the study in its storage, new or the one that is there."""
    directions = [StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE for up in plan.goal.is_maximised]
    try:
        with _quiet():
            study: int = patience(storage.create_new_study, directions, place.name)
    except DuplicatedStudyError:
        study = patience(storage.get_study_id_from_name, place.name)
        before = _about(storage, patience, study, place)
        if before is not None:
            _check(before, about, place)
            return study
    patience(storage.set_study_user_attr, study, POPULATION, plan.population)
    patience(storage.set_study_user_attr, study, ABOUT, dict(about))  # last: whoever joins waits for it
    return study


def _about(storage: BaseStorage, patience: Patience, study: int, place: Place) -> Mapping[str, Any] | None:
    """Return what a study that is there belongs to; None if whoever made it died before saying so."""
    if not place.resume and patience(storage.get_all_trials, study, deepcopy=False):
        raise InputError(
            f"the study {place.name!r} must be new, and it has evaluations; join it with --resume, or name another"
        )
    for _ in range(WAITS if place.worker else 1):
        before: Mapping[str, Any] | None = patience(storage.get_study_user_attrs, study).get(ABOUT)
        if before is not None:
            return before
        time.sleep(0.1)
    return None


def _check(before: Mapping[str, Any], about: Mapping[str, Any], place: Place) -> None:
    changed = [key for key in sorted({*before, *about}) if before.get(key) != about.get(key)]
    if changed:
        raise InputError(
            f"the study {place.name!r} must be of this search, and its {', '.join(changed)} differ"
            f"{'s' * (len(changed) == 1)}; name another {'with --study' if place.worker else 'output or delete it'}"
        )


def _identity(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    ranks = json.dumps({group: list(ranks) for group, ranks in space.ranks.items()})
    return {
        "strategy": plan.strategy,
        "seed": plan.seed,
        "quality": plan.goal.quality,
        "space": digest(ranks)[:16],
        **_unusual(plan),
    }


def _unusual(plan: Plan) -> dict[str, str]:
    """Return what is not as it is by default, so that a study of a usual search is found again whatever is added."""
    goal, options = plan.goal, plan.options.model_dump(mode="json", exclude_defaults=True)
    aim = [*goal.objectives, *map(str, goal.constraints)]
    return {
        **({"goal": " ".join(aim)} if aim != [goal.quality, PARAMETERS] else {}),
        **({"way": json.dumps(options, sort_keys=True)} if options else {}),
    }
