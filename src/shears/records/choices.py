"""Choices that were measured on this machine, in files of the cache."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shears.records.artifacts import write_json
from shears.records.timing import processor

logger = logging.getLogger(__name__)


def read_choices(path: Path, measured: str) -> dict[str, Any]:
    """Return the choices in a file of the cache, by name; none, with a log line, if it is unusable.

    `measured` says in words what they follow from.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["choices"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("ignored the damaged cache of %s %s (%s); measuring again", measured, path, error)
        return {}


def keep_choices(path: Path, choices: Mapping[str, Any], measured: str) -> None:
    """Write choices to a file of the cache; a failure costs only another measurement."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"processor": processor(), "choices": dict(choices)})
    except OSError as error:
        logger.warning("did not keep the %s in %s: %s", measured, path, error)
