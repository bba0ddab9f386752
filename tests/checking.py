"""Types and shapes in the signatures of shears are checked at the first calls of every function in every test.

Not at all calls: simulations call some functions a million times, and nine tenths of their time went into checks.
"""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping

CALLS = 50  # of a function in a test that are checked
_jaxtyped, _test = jaxtyping.jaxtyped, [0]


def install() -> None:
    """Check what is imported of shears from now on."""
    jaxtyping.jaxtyped = _checked_at_first  # type: ignore[assignment]  # the hook's decorator, looked up when it is used
    jaxtyping.install_import_hook("shears", "beartype.beartype")


def begin_test() -> None:
    """Check first calls again."""
    _test[0] += 1


def _checked_at_first(*, typechecker: Any) -> Callable[[Any], Any]:
    decorate = _jaxtyped(typechecker=typechecker)

    def decorate_sparingly(what: Any) -> Any:
        checked = decorate(what)
        return _sparing(what, checked) if isinstance(what, FunctionType) else checked

    return decorate_sparingly


def _sparing(function: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    test, calls = _test[0], 0

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal test, calls
        if test != _test[0]:
            test, calls = _test[0], 0
        if calls == CALLS:
            return function(*args, **keywords)
        calls += 1
        return checked(*args, **keywords)

    return call
