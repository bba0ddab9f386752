"""SIGTERM and Ctrl-C in the middle of a verb: the exit code, one line on how to go on, and the bits of an undisturbed
call.
"""

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import shears
from tests.end_to_end.recipe import write_recipe
from tests.processes import command_line


class Stop(NamedTuple):
    """A command, the function and the number of its call behind which a signal comes, and the end of the line."""

    words: str
    function: str
    call: int
    says: str


CONTINUES = "stopped; run the same command again to continue"
STOPS = {
    "search": Stop(
        "search adapter OUT --data rows.jsonl --strategy random --max-evaluations 5 --batch-size 4 --device cpu",
        "shears.searching.study._evaluated", 3,
        CONTINUES,
    ),
    "write": Stop("write base OUT --tokens 60 --max-new-tokens 8", "shears.records.artifacts.append_row", 3, CONTINUES),
    "evaluate": Stop(
        "evaluate base --data rows.jsonl --task number --max-new-tokens 3 --batch-size 2 --output OUT --device cpu "
        "--backend transformers",
        "shears.evaluation.evaluated.TextJournal.put", 2, CONTINUES,
    ),
    "run": Stop("run recipe.yaml --output OUT", "shears.training.fit.Steps.on_step_end", 3, CONTINUES),
    "compress": Stop(
        "compress base OUT --target 20bits --calibration words.txt --sparsities 0.5 --dtypes int8 "
        "--embedding-dtypes keep",
        "shears.training.fit.Steps.on_step_end", 1, CONTINUES,
    ),
    "sparsify": Stop(
        "sparsify base OUT --calibration words.txt --num-samples 2 --sequence-length 16 --device cpu",
        "shears.sparsity.prune._Pruner._prune", 3, CONTINUES,
    ),
    "export": Stop(
        "export adapter OUT --format package --dtype int8", "shears.export.package.save_tokenizer", 1,
        "stopped",
    ),
}  # fmt: skip
QUICK = (("search", signal.SIGTERM), ("write", signal.SIGINT))
"""What the suite tries each time; the other calls are slow."""
TIMES = ("seconds", "tokens_per_second", "speeds", "efforts")
"""Keys of records that hold measured times."""
TIMED = ("study.journal", "times.jsonl", "training_times.jsonl", "report.html", ".lock")
"""Files that hold measured times; compress's report draws its record, which is compared."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("signals")
    recipe = write_recipe(made, "random")
    shorter = {"max_steps: 12": "max_steps: 6", "max_evaluations: 8": "max_evaluations: 3", "save_steps: 3": ""}
    text = recipe.read_text()
    for before, after in shorter.items():
        text = text.replace(before, after)
    recipe.write_text("".join(line for line in text.splitlines(keepends=True) if "evaluate" not in line))
    rows = [{"prompt": f"{one}+1=", "completion": f" {one + 1}", "answer": one + 1} for one in range(8)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = random.Random(0)
    (made / "words.txt").write_text("".join(generator.choice("abcdefgh\n") for _ in range(900)))
    options: dict[str, Any] = {"ranks": (4, 2), "alpha": 8.0, "max_steps": 1, "batch_size": 2, "device": "cpu"}
    shears.train(made / "base", made / "adapter", data=str(made / "rows.jsonl"), **options)
    return made


def _behind(function: str, call: int, event: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Let something happen when a function has been called so many times."""
    module, _, name = function.rpartition(".")
    done: list[int] = []
    outer, _, kind = module.rpartition(".")
    owner = import_module(module) if module.islower() else getattr(import_module(outer), kind)
    inner = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        result = inner(*arguments, **keywords)
        done.append(1)
        if len(done) == call:
            event()
        return result

    patch.setattr(owner, name, wrapped)


def _called(folder: Path, words: str, number: int) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed on the last line."""
    log = folder / f"log{number}"
    log.unlink(missing_ok=True)
    process = command_line(log, folder, *words.split())
    return process.wait(), process.printed()


def _contents(path: Path) -> dict[str, str]:
    """The sha256 of the files of an output, of records without the times that they measured."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(path)): hashlib.sha256(_without_times(file)).hexdigest()
        for file in files
        if file.name not in TIMED
    }


def _without_times(file: Path) -> bytes:
    if file.name != "compress.json":
        return file.read_bytes()

    def cleared(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleared(inner) for key, inner in value.items() if key not in TIMES}
        return [cleared(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(cleared(json.loads(file.read_text()))).encode()


@pytest.mark.parametrize(("verb", "number"), [
    pytest.param(verb, number, marks=[] if (verb, number) in QUICK else pytest.mark.slow)
    for verb in STOPS for number in (signal.SIGTERM, signal.SIGINT)
])  # fmt: skip
def test_a_verb_stopped_by_a_signal_says_how_to_go_on_and_ends_with_the_same_bits(
    verb: str, number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEARS_CACHE", str(folder / "cache"))
    monkeypatch.setattr("shears.runs.exam.NEW_TOKENS", 2)
    monkeypatch.setattr("shears.runs.exam.ROUNDS", 1)
    stop = STOPS[verb]
    out = folder / f"out-{verb}"
    words = stop.words.replace("OUT", out.name)
    whole = folder / "undisturbed" / verb  # not beside the others: write would take its text over
    if not whole.exists():
        code, printed = _called(folder, words, 0)
        assert code == 0, printed
        whole.parent.mkdir(exist_ok=True)
        out.rename(whole)
    with monkeypatch.context() as patch:
        _behind(stop.function, stop.call, lambda: os.kill(os.getpid(), number), patch)
        before = {path.name for path in folder.iterdir()}
        code, printed = _called(folder, words, 1)
    assert code == 128 + number, printed
    last = printed.splitlines()[-1]
    assert (last, printed.count("error:")) == (f"error: {stop.says}", 1), printed
    left = {path.name for path in folder.iterdir()} - before - {"log1"}
    assert bool(left) == (stop.says == CONTINUES)
    code, printed = _called(folder, words, 2)
    assert code == 0, printed
    assert _contents(out) == _contents(whole)
    out.rename(whole.with_name(f"{verb}-{number.name}"))
