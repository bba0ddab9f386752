"""Calls with a part that nobody should give: they say what is wrong in a line, and leave nothing half-written.

SHEARS_FUZZ_SEED draws other calls; a failing one prints its words.
"""

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

import shears
from shears.cli import application
from tests.conftest import Call
from tests.tiny import save_tiny

SEED = int(os.environ.get("SHEARS_FUZZ_SEED", "50"))
CALLS = {
    "init": "nothing",
    "data": "rows.jsonl --model model --max-length 64 --show 1",
    "write": "model OUT --tokens 40 --max-new-tokens 8",
    "sparsify": "model OUT --calibration text.txt --num-samples 2 --sequence-length 16",
    "heal": "sparse OUT --teacher model --data text.txt --tokens 64 --sequence-length 16 --batch-size 2",
    "train": "sparse OUT --data rows.jsonl --ranks 4,2 --max-steps 1 --batch-size 2 --warmup-steps 0",
    "search": "adapter OUT --data rows.jsonl --max-evaluations 2 --batch-size 4",
    "export": "adapter OUT",
    "evaluate": "sparse --task number --data rows.jsonl --max-new-tokens 2 --limit 2",
    "inspect": "sparse",
    "run": "recipe.yaml --dry-run",
    "compress": "model OUT --target 8bits --calibration text.txt --dtypes int4 --dry-run",
    "generate": "model --prompt 1+1= --max-new-tokens 3",
    "compare": "figures.json figures.json",
    "report": "sparse",
    "push": "sparse me/it --dry-run",
}
"""A small whole call of every verb that neither measures the machine nor waits for requests."""
UNUSABLE = ("torn_weights", "torn_config", "unknown_type", "empty", "torn.jsonl", "nul.jsonl", "missing", "loop", "")
NO_NUMBERS = ("", "x", "nan", "1e309", "-1", "\N{SNOWMAN}", "9" * 400)
TEXTS = ("", "x", "\x1b[31m", "a" * 5_000, "%s{}", "a\nb", "=", ",", "[bold]", "1e309", "q_proj=0.5", "half.json")
OUTS = ("model", "text.txt", "loop", "", ".", "..", "/dev/null", "text.txt/new", "new" * 99, "new.partial")
LARGE = {"tokens", "heal", "epochs", "max_steps", "rounds", "max_evaluations", "threads"}  # options of long work
UNEXPLAINED = re.compile(r"Traceback|Exception ignored|validation error|\[type=|object at 0x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every call works in."""
    made = tmp_path_factory.mktemp("pool")
    save_tiny(made / "model")
    rows = "".join(json.dumps({"prompt": f"{one} + 1 =", "completion": f" {one + 1}"}) + "\n" for one in range(12))
    files = {
        "text.txt": "The sum of one and two is three.\n" * 60, "rows.jsonl": rows, "torn.jsonl": rows[:-9],
        "nul.jsonl": "\0" * 99, "figures.json": "{}", "half.json": '{"a": ',
        "recipe.yaml": "model: model\noutput: new\nsparsify: {method: magnitude}\n",
    }  # fmt: skip
    for name, content in files.items():
        (made / name).write_text(content)
    shears.sparsify(str(made / "model"), made / "sparse", method="magnitude", device="cpu")
    options: dict[str, Any] = {"ranks": (4, 2), "max_steps": 1, "batch_size": 2, "warmup_steps": 0, "device": "cpu"}
    shears.train(str(made / "sparse"), made / "adapter", data=str(made / "rows.jsonl"), **options)
    (made / "empty").mkdir()
    (made / "loop").symlink_to("loop")
    for copy, name in (("torn_weights", "model.safetensors"), ("torn_config", "config.json")):
        shutil.copytree(made / "model", made / copy)
        weights = (made / copy / name).read_bytes()
        (made / copy / name).write_bytes(weights[: len(weights) // 2])
    shutil.copytree(made / "model", made / "unknown_type")
    (made / "unknown_type" / "config.json").write_text('{"model_type": "martian"}')
    return made


def draw(number: int) -> list[str]:
    """Return the words of a call, one or two of them replaced."""
    rng = random.Random(f"{SEED} {number}")
    verb = list(CALLS)[number % len(CALLS)]
    words = [verb, *CALLS[verb].replace("OUT", "new").split()]
    command = typer.main.get_command(application()).commands[verb]  # type: ignore[attr-defined]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.is_flag]
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.4 and arguments:
            place = rng.randrange(len(arguments))
            words[place + 1] = rng.choice(OUTS if arguments[place].metavar == "OUT" else UNUSABLE)
        elif options:
            chosen = rng.choice(options)
            pool = {"INTEGER": NO_NUMBERS, "NUMBER": NO_NUMBERS, "COUNT": NO_NUMBERS, "FILE": UNUSABLE,
                    "FOLDER": UNUSABLE, "MODEL": UNUSABLE}.get(chosen.metavar or "", TEXTS)  # fmt: skip
            flag = chosen.opts[0]
            if flag not in words:
                words += [flag, ""]
            large = ("9" * 400,) if chosen.name in LARGE else ()
            words[words.index(flag) + 1] = rng.choice([each for each in pool if each not in large])
    return words


def contents(folder: Path) -> dict[str, int]:
    """Every path of a folder with its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "number", [*range(48), *(pytest.param(number, marks=pytest.mark.slow) for number in range(48, 960))]
)
def test_a_hostile_call_is_one_line_and_leaves_nothing(
    number: int, folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SHEARS_CACHE", str(folder.with_name("cache")))
    words = draw(number)
    before = contents(folder)
    code, _, errors = call(*words)
    new = contents(folder).keys() - before.keys()
    for name in sorted(new, reverse=True):
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    assert code in (0, 1, 2), words
    assert UNEXPLAINED.search(errors) is None, (words, errors)
    if code:
        assert errors.splitlines()[-1].startswith("error: "), (words, errors)
        kept = ("new.teacher", "targets")  # a cache beside the data
        assert not [name for name in new if not name.startswith(kept)], (words, errors)
    assert before.items() <= contents(folder).items(), words
