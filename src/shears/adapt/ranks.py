"""The ranks of a sub-adapter, by name or from a JSON file."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.records.artifacts import RESULT, check_input, read_json

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
    return space.check(_ranks_in(file, fingerprint))


def _ranks_in(file: RanksFile, fingerprint: str) -> dict[str, int]:
    content: Any = read_json(file.path)
    if isinstance(content, dict) and "chosen" in content:
        configuration = _configuration(content, file)
        if not isinstance(configuration, dict) or "super_adapter_fingerprint" not in content:
            raise InputError(
                f"{file.path} must be the result of a search, or map every group to its rank; it is neither"
            )
        check_input("the super-adapter", content["super_adapter_fingerprint"], fingerprint)
        content = configuration.get("ranks")
    elif file.number is not None:
        raise InputError(f"{file.path} must be a search's result where a number is given, got {file.name}")
    elif isinstance(content, dict) and isinstance(content.get("ranks"), dict):
        content = content["ranks"]  # an entry of `pareto` or `evaluations`, saved alone
    if not isinstance(content, dict) or not all(type(rank) is int for rank in content.values()):
        raise InputError(f'{file.path} must map every group to its rank, such as {{"layers.0.up_proj": 24}}')
    return content


def _configuration(result: dict[str, Any], file: RanksFile) -> Any:
    """Return the chosen configuration of a search's result, or that with the file's number."""
    if file.number is None:
        return result["chosen"]
    evaluations = result.get("evaluations")
    evaluations = evaluations if isinstance(evaluations, list) else []
    count = len(evaluations)
    if not 1 <= file.number <= count:
        raise InputError(f"ranks {file.name} must be one of the {count} configurations evaluated, from 1 to {count}")
    return evaluations[file.number - 1]


def ranks_file(ranks: str | None) -> RanksFile | None:
    """Return the file that `ranks` names, with or without a number; None for a name.

    A folder stands for the result of the search in it.
    """
    if ranks and ranks not in NAMED and Path(ranks).is_dir():
        ranks = str(Path(ranks) / RESULT)
    if ranks and Path(ranks).is_file():
        return RanksFile(Path(ranks), None)
    numbered = re.fullmatch(r"(?P<path>.+):(?P<number>\d{1,9})", ranks or "", re.ASCII)
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
