"""Select linears by dotted suffix or regular expression."""

import difflib
import re
from collections.abc import Iterable, Sequence

from shears.errors import InputError


def matching(names: Iterable[str], targets: Sequence[str]) -> list[str]:
    """Return the names that a target matches, by dotted suffix or whole regex, in the order of `names`.

    InputError for a target that matches none; the message lists the names.
    """
    known = list(names)
    selected = set[str]()
    for target in targets:
        matched = {name for name in known if _matches(name, target)}
        if not matched:
            raise InputError(_unmatched(known, target))
        selected |= matched
    return [name for name in known if name in selected]


def _matches(name: str, target: str) -> bool:
    try:
        return name == target or name.endswith(f".{target}") or re.fullmatch(target, name) is not None
    except re.error as error:
        raise InputError(f"a target must be a name or a regex, got {target!r}: {error}") from None


def _unmatched(known: Sequence[str], target: str) -> str:
    suffixes = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in known))
    close = difflib.get_close_matches(target, suffixes, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"no linear matches target {target!r}; this model has {', '.join(suffixes) or 'none'}{hint}"
