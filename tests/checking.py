"""Types and shapes in the signatures of shears are checked at the first calls of every function in every test.

Not at all calls: simulations call some functions a million times, and nine tenths of their time went into checks.
"""

import functools
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping

CALLS = 5  # of a function in a test that are checked
MADE = 20  # functions of one text that are checked: those within a function are made anew whenever it is called
_jaxtyped, _test, _calls = jaxtyping.jaxtyped, [0], [CALLS]
_made: Counter[CodeType] = Counter()


def install() -> None:
    """Check what is imported of shears from now on."""
    jaxtyping.jaxtyped = _checked_at_first  # type: ignore[assignment]  # the hook's decorator, looked up when it is used
    jaxtyping.install_import_hook("shears", "beartype.beartype")


def begin_test() -> None:
    """Check first calls again."""
    _test[0] += 1


def end() -> None:
    """Check nothing more: in a fork, whose first calls would be those after a decoration of every function."""
    _calls[0] = 0


def _checked_at_first(*, typechecker: Any) -> Callable[[Any], Any]:
    decorate = _jaxtyped(typechecker=typechecker)

    def decorate_sparingly(what: Any) -> Any:
        if not isinstance(what, FunctionType):
            return decorate(what)
        _made[what.__code__] += 1
        return _sparing(what, decorate) if _made[what.__code__] <= MADE else what

    return decorate_sparingly


def _sparing(function: Callable[..., Any], decorate: Callable[..., Any]) -> Callable[..., Any]:
    test, calls = _test[0], 0
    checked: Callable[..., Any] | None = None  # made at the first call: a worker calls a part of all functions

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal test, calls, checked
        if test != _test[0]:
            test, calls = _test[0], 0
        if calls >= _calls[0]:
            return function(*args, **keywords)
        calls += 1
        checked = checked or decorate(function)
        return checked(*args, **keywords)

    return call
