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
sys.dont_write_bytecode = False  # under the hook every module is parsed, rewritten and compiled: seconds of a worker

import pytest
from hypothesis import settings

from tests.checking import begin_test, install

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Import what all tests need, unless this process only hands them out to others (`pytest -n 2`)."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        _import_large()
        install()
        _spare_repetitions()


def _import_large() -> None:
    """Import what is large before the hook is installed.

    While a module of shears is executed under the hook, all that it imports is compiled anew, as it was never
    cached under the hook's name: 20 seconds of a worker.
    """
    gc.disable()  # until all is imported: nothing of it is garbage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch._inductor.compile_fx", "peft", "datasets", "optuna", "fastapi"):
            import_module(name)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _spare_repetitions() -> None:
    """Compile once what PEFT and Optuna would compile many times.

    PEFT writes a model card at every checkpoint, with a template of 200 lines: a fifth of a training here. Optuna lets
    alembic compile ten migrations three times for every new database.
    """
    import alembic.util
    import jinja2

    jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)  # type: ignore[method-assign, assignment]
    load = alembic.util.load_python_file
    load_once = functools.cache(load)

    def load_migration(dir_: Any, filename: Any) -> Any:
        return (load if filename == "env.py" else load_once)(dir_, filename)

    alembic.util.load_python_file = load_migration


os.fsync = lambda fd: None  # tests kill processes, which loses nothing that was written, and never the machine


def pytest_collection_finish() -> None:
    """Spare garbage collections all that was imported: every training begins with one, of half a second."""
    gc.freeze()
    gc.enable()


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
