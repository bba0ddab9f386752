"""A benchmark shows the library's log lines on the terminal; a test leaves the logger as it was."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    """Take away the handlers that a benchmark adds: a command line in the same process would log to them."""
    logger = logging.getLogger("shears")
    before = (list(logger.handlers), logger.level)
    yield
    logger.handlers, logger.level = before
