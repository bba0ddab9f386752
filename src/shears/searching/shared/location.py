"""Where the study of a search is kept, which search it belongs to, and how it is opened: made, joined or resumed."""

import json
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import URL

from shears.adapt.space import SearchSpace
from shears.config import SearchConfig
from shears.errors import InputError
from shears.records.artifacts import write_text
from shears.records.folders import WORKER
from shears.searching.shared.storage import RetryingStorage, open_storage, quiet_optuna
from shears.searching.shared.study import SearchStudy
from shears.searching.strategies.base import PARAMETERS, SearchPlan, digest

STUDY = "study.db"
IDENTITY = "shears"  # the study attribute that names the search it belongs to
POPULATION = "population"  # the study attribute with the size of a generation, as of the budget it began with
IDENTITY_POLLS = 50  # x 0.1 s, waiting for the study's creator


@dataclass(frozen=True)
class StudyLocation:
    """Where evaluations are kept: a storage URL (None for this process's memory) and the study's name there.

    `resume` allows a study that has evaluations; its `identity`, what figures depend on, must then be the same. A
    `worker` has a unique name and shares the study; without a name, this process is alone. `stale_after` is the time
    after which a silent worker is given up, `timeout` how long a storage that does not answer is retried; in seconds.
    """

    url: str | None = None
    name: str = "search"
    resume: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)
    worker: str = ""
    stale_after: float = SearchConfig.model_fields["stale_after"].default
    timeout: float = SearchConfig.model_fields["storage_timeout"].default


def location_of(
    settings: SearchConfig, work: Path, name: str, identity: Mapping[str, str], resume: bool
) -> StudyLocation:
    """Return where the search that works in the folder `work` keeps its study.

    Alone, it is a file in that folder, and the study is called `name`. In a storage that others share, the study is
    called as the settings say, else after the super-adapter: a worker with other settings is then refused, and does
    not begin a study of its own.
    """
    if settings.storage is None:
        return StudyLocation(own_url(work), name, resume, {"data": identity["data"]})
    worker = work / WORKER  # unique, and kept in the folder: a search resumed there is the same worker
    if not worker.exists():
        write_text(worker, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    scoring: dict[str, str] = {"precision": settings.precision}
    if settings.task:
        scoring |= {"task": str(settings.task), "max_new_tokens": str(settings.max_new_tokens)}
    return StudyLocation(
        settings.storage,
        settings.study or f"search-{identity['super_adapter'][:12]}",
        resume,
        {**identity, **scoring},
        worker.read_text(encoding="utf-8"),
        settings.stale_after,
        settings.storage_timeout,
    )


def own_url(work: Path) -> str:
    """Return the storage URL of the study file in the folder `work`."""
    return URL.create("sqlite", database=str(work.resolve() / STUDY)).render_as_string(hide_password=False)


@contextmanager
def open_study(space: SearchSpace, plan: SearchPlan, location: StudyLocation) -> Iterator[SearchStudy]:
    """Yield the study of a new, joined or resumed search; every file of its storage is closed afterwards.

    InputError if the storage cannot be opened, the study has evaluations but `resume` is not set, or it belongs to
    another search. OSError if the storage does not answer for too long.
    """
    with open_storage(location.url) as backend:
        storage = RetryingStorage(backend, location.url or "in memory", location.timeout)
        study_id = _join(storage, plan, location, {**location.identity, **_identity(space, plan)})
        begun_with = storage.get_study_user_attrs(study_id).get(POPULATION, plan.population)
        options = plan.options.model_copy(update={"population": begun_with})
        begun = replace(plan, options=options)
        yield SearchStudy(storage, study_id, space, begun, location.worker, location.stale_after)


def _join(storage: RetryingStorage, plan: SearchPlan, location: StudyLocation, identity: Mapping[str, Any]) -> int:
    """Return the number of the study in its storage, made now or before."""
    directions = [StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE for up in plan.goal.is_maximised]
    try:
        with quiet_optuna():
            study_id: int = storage.create_new_study(directions, location.name)
    except DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(location.name)
        before = _identity_of(storage, study_id, location)
        if before == identity:
            return study_id
        if before is not None:
            changed = [key for key in sorted({*before, *identity}) if before.get(key) != identity.get(key)]
            advice = "name another with --study" if location.worker else "name another output or delete it"
            raise InputError(
                f"the study {location.name!r} must be of this search, and its {', '.join(changed)} "
                f"{'differs' if len(changed) == 1 else 'differ'}; {advice}"
            ) from None
    storage.set_study_user_attr(study_id, POPULATION, plan.population)
    storage.set_study_user_attr(study_id, IDENTITY, dict(identity))  # last: other workers wait for it
    return study_id


def _identity_of(storage: RetryingStorage, study_id: int, location: StudyLocation) -> Mapping[str, Any] | None:
    """Return the identity of a study; None if its creator died before writing it."""
    if not location.resume and storage.get_all_trials(study_id, deepcopy=False):
        raise InputError(
            f"the study {location.name!r} must be new, and it has evaluations; join it with --resume, or name another"
        )
    for _ in range(IDENTITY_POLLS if location.worker else 1):
        identity: Mapping[str, Any] | None = storage.get_study_user_attrs(study_id).get(IDENTITY)
        if identity is not None:
            return identity
        time.sleep(0.1)
    return None


def _identity(space: SearchSpace, plan: SearchPlan) -> dict[str, Any]:
    """Return what the proposals depend on; goal and options only if they are not the default.

    So an option that is added later leaves the identity of earlier studies as it is.
    """
    ranks = json.dumps({group: list(ranks) for group, ranks in space.ranks.items()})
    identity = {"strategy": plan.strategy, "seed": plan.seed, "quality": plan.goal.quality, "space": digest(ranks)[:16]}
    goal = [*plan.goal.objectives, *map(str, plan.goal.constraints)]
    if goal != [plan.goal.quality, PARAMETERS]:
        identity["goal"] = " ".join(goal)
    if options := plan.options.model_dump(mode="json", exclude_defaults=True):
        identity["way"] = json.dumps(options, sort_keys=True)
    return identity


@contextmanager
def deleted_if_unused(work: Path) -> Iterator[None]:
    """Delete the study in the folder `work` if the search is refused before anything is evaluated."""
    try:
        yield
    except InputError:
        with suppress(InputError):  # a file that is not a study stays
            if (work / STUDY).is_file() and not _num_evaluated(work):
                for path in work.glob(f"{STUDY}*"):
                    path.unlink()
        raise


def _num_evaluated(work: Path) -> int:
    with open_storage(own_url(work)) as storage:
        studies = storage.get_all_studies()
        return sum(storage.get_n_trials(study._study_id, (TrialState.COMPLETE,)) for study in studies)
