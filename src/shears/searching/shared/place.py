"""Where the evaluations of a search are kept: in the output folder for one process, in a storage for many workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL

from shears.config import SearchConfig
from shears.searching.shared.workers import worker_name

STUDY = "study.db"


@dataclass(frozen=True)
class Place:
    """Where evaluations are kept: a storage URL (None for this process's memory), the study's name, what it belongs to.

    `resume` allows a study that has evaluations already; `about` must then be what it was. A `worker` has a name that
    no other has, and shares the study; without one, this process is alone with it. `stale_after` is the time after
    which a silent worker is given up, `timeout` how long a storage that does not answer is tried again; in seconds.
    """

    url: str | None = None
    name: str = "search"
    resume: bool = False
    about: Mapping[str, str] = field(default_factory=dict)
    worker: str = ""
    stale_after: float = 60.0
    timeout: float = 300.0


def place_of(settings: SearchConfig, work: Path, name: str, about: Mapping[str, str], resume: bool) -> Place:
    """Return the place of the stage that works in the folder `work`.

    Its own file there holds a study called `name`. In a storage that others share, the study is called as told, or
    after the super-adapter, so that a worker that was told something else by mistake is refused and does not begin a
    study of its own; `about` then holds all that figures depend on.
    """
    if settings.storage is None:
        return Place(own_url(work), name, resume, {"data": about["data"]})
    scoring = {
        "precision": settings.precision,
        **({"task": str(settings.task), "max_new_tokens": str(settings.max_new_tokens)} if settings.task else {}),
    }
    shared = settings.study or f"search-{about['super_adapter'][:12]}"
    return Place(settings.storage, shared, resume, {**about, **scoring}, worker_name(work), settings.stale_after,
                 settings.storage_timeout)  # fmt: skip


def own_url(work: Path) -> str:
    """Return the storage URL of the study file in the folder `work`."""
    return URL.create("sqlite", database=str(work.resolve() / STUDY)).render_as_string(hide_password=False)
