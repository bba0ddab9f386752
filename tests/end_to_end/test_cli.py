"""The command line: each verb works on the result of the one before, and imports no more than it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import shears
from shears import cli
from shears.runtime.native import kernels_available
from tests.conftest import Call
from tests.end_to_end.recipe import write_recipe
from tests.tiny import save_tiny


def test_every_verb_works_on_the_result_of_the_one_before(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [
        "sparsify base sparse --calibration train.jsonl --num-samples 4 --sequence-length 64 --sparsity 0.5",
        "train sparse super --data train.jsonl --ranks 6,4,2 --alpha 12 --max-steps 3 --batch-size 4 --device cpu",
        "search super searched --data validation.jsonl --max-evaluations 4 --strategy random --device cpu",
        "export super sub --sub-adapter searched/result.json",
        "export super padded --sub-adapter heuristic --format padded",
        "evaluate sparse --adapter sub --task number --data test.jsonl --max-new-tokens 4 --output figures.json",
        "evaluate sparse --task perplexity --data base/README.txt --sequence-length 32",
        "generate sparse --adapter sub --prompt 1+1= --max-new-tokens 4",
        "inspect sub",
    ]
    (tmp_path / "base" / "README.txt").write_text("some text to read, " * 20)
    for command in commands:
        code, output, errors = call(*command.split())
        assert code == 0, errors
        assert output.strip(), command
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"task", "metric", "value", "n", "ci95", "records"} <= figures.keys()
    assert len(figures["records"]) == figures["n"] == 12
    result = json.loads((tmp_path / "searched" / "result.json").read_text())
    assert len({json.dumps(entry["ranks"], sort_keys=True) for entry in result["evaluations"]}) == 4
    code, output, _ = call("inspect", "searched", "--json")
    assert json.loads(output)["chosen"] == result["chosen"]


HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "fastapi")
LIGHT = """
import shlex, sys
import shears
needless, expected, *lines = sys.argv[1:]
def check(words):
    found = {*needless.split()} & {*sys.modules}
    assert not found, (words, found)
check("import shears")
assert "rich" not in sys.modules
from shears.cli import main
for line in lines:
    sys.argv = ["shears", *shlex.split(line)]
    try:
        main()
    except SystemExit as end:
        assert end.code == int(expected), (line, end.code)
    check(line)
"""


@pytest.mark.parametrize(
    ("needless", "expected", "lines"),
    [
        (HEAVY, 0, ["--help", "--version", "train --help", "compress --help"]),
        (
            HEAVY,
            2,
            ["train m o --epochs x", "train m README.md/o --data d", "sparsify m o --sparsity x", "sparsify m o",
             "export m .", "compress m . --target 1GB", "serve m --port x", "evaluate m --task x", "run none.yaml"],
        ),
        (("torch", "transformers", "peft", "datasets"), 2, ["compare one.json two.json", "report nothing"]),
        (("transformers", "peft", "datasets"), 2, ["inspect nothing"]),
    ],
)  # fmt: skip
def test_help_mistakes_and_verbs_that_only_read_files_import_nothing_heavy(
    needless: tuple[str, ...], expected: int, lines: list[str]
) -> None:
    """One process for all lines of a group: what one of them imports, the check behind it finds."""
    words = [sys.executable, "-c", LIGHT, " ".join(needless), str(expected), *lines]
    ended = subprocess.run(words, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_package_answers_without_importing_models_of_transformers_and_peft(call: Call, tmp_path: Path) -> None:
    """They took two fifths of its start. Without our kernels transformers answers."""
    if not kernels_available():
        pytest.skip("the C++ kernels were not built")
    code, _, errors = call(
        "export", str(save_tiny(tmp_path / "base")), str(tmp_path / "package"), "--format", "package"
    )
    assert code == 0, errors
    line = f"generate {tmp_path}/package --prompt 1 --max-new-tokens 1"
    words = [sys.executable, "-c", LIGHT, "peft transformers.modeling_utils datasets", "0", line]
    ended = subprocess.run(words, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "runs on backend native" in ended.stderr


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(shears, name) is not None for name in shears.__all__)
    assert {*shears.__all__, "errors", "runtime"} <= {*dir(shears)}
    assert callable(shears.sparsify)
    assert callable(shears.search)


@pytest.mark.parametrize(
    ("words", "hint"),
    [("train", ""), ("--threads 1 run x", "; run the same command again to continue"), ("x", "")],
)
def test_ctrl_c_says_how_to_continue(words: str, hint: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer turns a KeyboardInterrupt into an exit code."""
    monkeypatch.setattr(cli, "application", lambda: lambda standalone_mode: 130)
    code, _, errors = call(*words.split())
    assert (code, errors.startswith(f"error: stopped{hint}"), "resume" in errors) == (130, True, False)
