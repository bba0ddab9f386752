"""The check of types and shapes that goes on while all other tests run."""

import pytest
from jaxtyping import TypeCheckError

from shears.report.words import plural
from tests.checking import CALLS, begin_test


def test_a_wrong_type_is_found_at_the_first_calls_of_every_test() -> None:
    for _ in range(CALLS - 1):
        assert plural(2, "example") == "2 examples"
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            plural(2.5, "example")  # type: ignore[arg-type]
        assert plural(2.5, "example") == "2.5 examples"  # type: ignore[arg-type]
        begin_test()
        for _ in range(CALLS - 1):
            plural(2, "example")
