"""The check of types and shapes that goes on while all other tests run."""

import pytest
from jaxtyping import TypeCheckError

from shears.searching.measure.racing import student_quantile
from tests.checking import CALLS, begin_test


def test_a_wrong_type_is_found_at_the_first_calls_of_every_test() -> None:
    for _ in range(CALLS - 1):
        assert student_quantile(0.95, 30) == pytest.approx(1.697, abs=1e-3)
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            student_quantile(0.95, 30.5)  # type: ignore[arg-type]
        assert student_quantile(0.95, 30.5) < student_quantile(0.95, 30)  # type: ignore[arg-type]
        begin_test()
        for _ in range(CALLS - 1):
            student_quantile(0.95, 30)
