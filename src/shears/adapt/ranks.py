"""The ranks of a sub-adapter, by name or from a JSON file."""

import re
from pathlib import Path
from typing import NamedTuple

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError, reading
from shears.records.artifacts import RESULT, check_input, read_object

NAMED = ("heuristic", "maximal", "minimal")


class RanksFile(NamedTuple):
    """A file of ranks; `number` counts a search's evaluations from 1, None is the chosen one."""

    path: Path
    number: int | None

    @property
    def name(self) -> str:
        """Name in a record: the file's, without its folder, which may be moved."""
        return self.path.name if self.number is None else f"{self.path.name}:{self.number}"


def choose_ranks(ranks: str | None, space: SearchSpace, fingerprint: str) -> RankConfig:
    """Return the ranks named: heuristic (None), maximal, minimal, RESULT.json or RANKS.json.

    RESULT.json:N is the Nth configuration evaluated, from 1. `fingerprint` is the super-adapter's.
    InputError for the result of a search on another super-adapter, and for ranks outside the space.
    """
    ranks = "heuristic" if ranks is None else ranks
    if ranks in NAMED:
        named: RankConfig = getattr(space, ranks)()
        return named
    file = ranks_file(ranks)
    if file is None:
        raise InputError(f"ranks must be {', '.join(NAMED)} or a JSON file, got {ranks!r}")
    content = read_object(file.path)
    with reading(file.name):
        if "chosen" in content:
            check_input("the super-adapter", content["super_adapter_fingerprint"], fingerprint)
            number = file.number
            if number is not None and not 1 <= number <= len(content["evaluations"]):
                raise InputError(
                    f"ranks {file.name} must be one of the {len(content['evaluations'])} evaluated, from 1"
                )
            content = content["chosen"] if number is None else content["evaluations"][number - 1]
        elif file.number is not None:
            raise InputError(f"{file.path} must be a search's result where a number is given, got {file.name}")
        return space.check(content.get("ranks", content))


def ranks_file(ranks: str | None) -> RanksFile | None:
    """Return the file that `ranks` names, with or without a number; None for a name.

    A folder stands for the result of the search in it.
    """
    if not ranks or ranks in NAMED:
        return None
    path = Path(ranks) / RESULT if Path(ranks).is_dir() else Path(ranks)
    if path.is_file():
        return RanksFile(path, None)
    numbered = re.fullmatch(r"(?P<path>.+):(?P<number>\d{1,9})", ranks, re.ASCII)
    if numbered and Path(numbered["path"]).is_file():
        return RanksFile(Path(numbered["path"]), int(numbered["number"]))
    return None


def ranks_name(ranks: str) -> str:
    """Return what a record calls ranks: a name such as maximal, or a file's name without its folder."""
    file = ranks_file(ranks)
    return file.name if file else Path(ranks).name


def by_linear(space: SearchSpace, ranks: RankConfig) -> dict[str, int]:
    """Return the rank of every linear of the space."""
    return {linear: ranks[group] for group, linears in space.modules.items() for linear in linears}
