"""Which ranks are meant: a name, or a file that holds them."""

from pathlib import Path
from typing import Any

from shears.adapt.space import RankConfig, SearchSpace
from shears.artifacts import check_input, read_json
from shears.errors import InputError

NAMED = ("heuristic", "maximal", "minimal")


def choose_ranks(ranks: str, space: SearchSpace, fingerprint: str) -> RankConfig:
    """Return the ranks named: heuristic, maximal, minimal, a search's RESULT.json or a RANKS.json {group: rank}.

    `fingerprint` is the super-adapter's: a result found on another one is refused.
    """
    if ranks in NAMED:
        named: RankConfig = getattr(space, ranks)()
        return named
    path = Path(ranks)
    if path.is_dir():
        path = path / "result.json"
    if not path.is_file():
        raise InputError(f"ranks must be {', '.join(NAMED)} or a JSON file, got {ranks!r}")
    return space.check(_ranks_in(path, fingerprint))


def _ranks_in(path: Path, fingerprint: str) -> dict[str, int]:
    content: Any = read_json(path)
    if isinstance(content, dict) and "chosen" in content:
        check_input("the super-adapter", content["super_adapter_fingerprint"], fingerprint)
        content = content["chosen"]["ranks"]
    elif isinstance(content, dict) and isinstance(content.get("ranks"), dict):
        content = content["ranks"]  # one entry of `pareto` or `evaluations`, saved on its own
    if not isinstance(content, dict) or not all(isinstance(rank, int) for rank in content.values()):
        raise InputError(f'{path} must map every group to its rank, such as {{"layers.0.up_proj": 24}}')
    return content


def ranks_file(ranks: str | None) -> Path | None:
    """Return the file that ranks were read from; None for a name."""
    return Path(ranks) if ranks and Path(ranks).is_file() else None


def by_linear(space: SearchSpace, ranks: RankConfig) -> dict[str, int]:
    """Return the rank of every linear of the space."""
    return {linear: ranks[group] for group, linears in space.modules.items() for linear in linears}
