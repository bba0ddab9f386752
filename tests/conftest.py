"""Shapes and types in signatures are checked while the tests run; nothing reaches a hub."""

import functools
import gc
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SHEARS_TUNING", "off")  # tests of the kernels take the default walks
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that share a core slow each other down many times over

import alembic.util
import jinja2
import pytest
import torch
import transformers

from tests.checking import begin_test, install

# While a module of shears is executed under the hook, all that it imports is compiled anew, as it was never
# cached under the hook's name: 20 seconds of a worker. So what is large is imported before.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in ("torch._inductor.compile_fx", "peft", "datasets", "optuna", "fastapi"):
        import_module(name)

install()

# PEFT writes a model card at every checkpoint, and compiles its template of 200 lines anew: a fifth of a training here.
jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)  # type: ignore[method-assign, assignment]
_load = alembic.util.load_python_file
_load_once = functools.cache(_load)


def _load_migration(dir_: Any, filename: Any) -> Any:
    """Load a file of alembic's: Optuna lets it compile ten migrations three times for every new database."""
    return (_load if filename == "env.py" else _load_once)(dir_, filename)


alembic.util.load_python_file = _load_migration
os.fsync = lambda fd: None  # tests kill processes, which loses nothing that was written, and never the machine

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_collection_finish() -> None:
    """Spare garbage collections all that was imported: every training begins with one, of half a second."""
    gc.freeze()


CACHES = itertools.count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache out of the tests.

    The folder is not made: pytest reads the names of all folders for each new one, seconds for thousands of tests.
    """
    monkeypatch.setenv("SHEARS_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / str(next(CACHES))))


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Keep the signal handlers that `main()` sets within a test; Ctrl-C is heard, also behind `pytest &`."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _types_are_checked() -> None:
    begin_test()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs `shears WORDS...` in this process and returns exit code, output and errors."""
    from shears.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shears", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return run
