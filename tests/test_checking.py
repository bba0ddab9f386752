"""The check of types and shapes that goes on while all other tests run."""

import pytest
from jaxtyping import TypeCheckError

from shears.records.figures import cell
from tests.checking import CALLS, begin_test


def test_a_wrong_type_is_found_at_the_first_calls_of_every_test() -> None:
    for _ in range(CALLS - 1):
        assert cell("n", None) == "-"
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            cell(None, None)  # type: ignore[arg-type]
        assert cell(None, None) == "-"  # type: ignore[arg-type]
        begin_test()
        for _ in range(CALLS - 1):
            cell("n", None)
