"""`python -m tests.searching.shared.slow_worker search ...`: the command line with evaluations that take their time.

Tiny models are evaluated in milliseconds: a study would be over before a test has stopped the server.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shears.searching.shared.study import SearchStudy

SECONDS = 0.3


@contextmanager
def slow_evaluations() -> Iterator[None]:
    """Make a worker stay inside an evaluation most of the time."""
    evaluating = SearchStudy.evaluating

    @contextmanager
    def slowly(study: SearchStudy) -> Iterator[None]:
        with evaluating(study):
            time.sleep(SECONDS)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchStudy, "evaluating", slowly)
        yield


if __name__ == "__main__":
    from shears.cli import main

    with slow_evaluations():
        main()
