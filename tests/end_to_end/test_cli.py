"""The command line: each verb does its one thing; a mistake is one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from shears import cli
from shears.cli import application, main
from shears.config import SparsifyConfig
from tests.end_to_end.recipe import write_recipe
from tests.tiny import save_tiny

TEXT = ["--calibration", "arithmetic:train"]
SHORT = [*TEXT, "--num-samples", "4", "--sequence-length", "32"]


def shears(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["shears", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    output, errors = capfd.readouterr()
    return int(ended.value.code or 0), output, errors


def test_every_verb_works_on_the_result_of_the_one_before(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [
        "sparsify base sparse --calibration train.jsonl --num-samples 4 --sequence-length 64 --sparsity 0.5",
        "train sparse super --data train.jsonl --ranks 6,4,2 --alpha 12 --max-steps 3 --batch-size 4 --device cpu",
        "search super searched --data validation.jsonl --max-evaluations 4 --strategy random --device cpu",
        "export super sub --ranks searched/result.json",
        "export super padded --ranks heuristic --format padded",
        "evaluate sparse --adapter sub --task number --data test.jsonl --max-new-tokens 4 --output figures.json",
        "evaluate sparse --task perplexity --data base/README.txt --sequence-length 32",
        "generate sparse --adapter sub --prompt 1+1= --max-new-tokens 4",
        "inspect sub --against sparse",
    ]
    (tmp_path / "base" / "README.txt").write_text("some text to read, " * 20)
    for command in commands:
        code, output, errors = shears(capfd, monkeypatch, *command.split())
        assert code == 0, errors
        assert output.strip(), command
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"task", "metric", "value", "n", "ci95", "records"} <= figures.keys()
    assert len(figures["records"]) == figures["n"] == 12
    result = json.loads((tmp_path / "searched" / "result.json").read_text())
    assert len({json.dumps(entry["ranks"], sort_keys=True) for entry in result["evaluations"]}) == 4
    code, output, _ = shears(capfd, monkeypatch, "inspect", "searched", "--json")
    assert json.loads(output)["chosen"] == result["chosen"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparsify", "nowhere/at/all", "out", *TEXT], "there is no nowhere/at/all"),
        (["sparsify", "base", "out", "--sparsity", "1.5"], "sparsify.sparsity must be less than 1, got '1.5'"),
        (["sparsify", "base", "out", "--skip", "q_porj", *TEXT], "did you mean 'q_proj'"),
        (["sparsify", "base", "out", "--calibration", "none.txt"], "none.txt"),
        (["sparsify", "base", "base", *TEXT], "must not exist yet"),
        (["sparsify", "base", "out", "--pattern", "3:2"], "must keep 0 < N < M weights, got 3:2"),
        (["sparsify", "base", "out", "--pattern", "2:4", "--sparsity", "0.6"], "2:4 is a sparsity of 0.5 everywhere; set sparsity=0.5"),
        (["sparsify", "base", "out", "--targets", "q_proj"], "--targets"),
        (["sparsify", "base", "out", "--pattern", "diagonal"], "sparsify.pattern must"),
        (["sparsify", "base", "out", "--sparsity-of", "down_proj=1.5"], "sparsify.sparsity_of.down_proj must be less than 1, got '1.5'"),
        (["sparsify", "base", "out", "--sparsity-of", "nope=0.4", *SHORT], "no linear matches target 'nope'; this model has q_proj"),
        (["sparsify", "base", "out", "--sparsity-of", "down_proj", *SHORT], "down_proj"),
        (["sparsify", "base", "out", "--skip", "nope", *SHORT], "no linear matches target 'nope'; this model has q_proj"),
        (["sparsify", "base", "out", "--activation-budget", "lots"], "activation_budget"),
        (["sparsify", "base", "out", "--method", "foo"], "sparsify.method must be 'wanda', 'magnitude', 'ria', 'sparsegpt' or 'admm', got 'foo'"),
        (["sparsify", "base", "out", "--allocation", "fair"], "sparsify.allocation must be 'uniform', 'owl' or 'sensitivity', got 'fair'"),
        (["train", "base", "out"], "train.data must be given (--data)"),
        (["train", "base", "out", "--data", "none.jsonl"], "none.jsonl"),
        (["train", "base", "out", "--data", "arithmetic:train", "--set", "train.alhpa=3"], "did you mean 'train.alpha'"),
        (["train", "base", "out", "--data", "arithmetic:train", "--groups", "c_attn"], "no linear matches target 'c_attn'"),
        (["search", "base", "out", "--data", "arithmetic:validation"], "must be a super-adapter"),
        (["search", "base", "out", "--data", "arithmetic:validation", "--seeds", "3"], "search.seeds was removed after version 0.1.0, got 3: "),
        (["train", "base", "out", "--data", "arithmetic:train", "--set", "train.distill=0.5"], "train.distill was removed after version 0.1.0, got 0.5: "),
        (["train", "base", "out", "--data", "arithmetic:train", "--distill", "1"], "in-place distillation gained nothing"),
        (["export", "base", "out"], "must be a super-adapter"),
        (["evaluate", "base", "--task", "nmber", "--data", "x"], "evaluate.task must be 'perplexity', 'choices'"),
        (["evaluate", "base", "--adapter", "base", "--task", "number", "--data", "arithmetic:test"], "adapter_config.json"),
        (["evaluate", "base", "--task", "number", "--data", "arithmetic:test", "--output", ""], "must be a file, got the folder ."),
        (["fetch", "smollm2-135m", "--output", "o\udcff"], "names and texts must be UTF-8, got 'o\\udcff'"),
        (["inspect", "nowhere"], "there is no nowhere"),
        (["run", "nowhere.yaml"], "readable YAML"),
        (["trian"], "Did you mean 'train'?"),
        (["sparsify", "base"], "Missing argument 'OUT'"),
        (["sparsify", "base", "out", "--sparsty", "1"], "No such option"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], message: str
) -> None:
    save_tiny(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    code, output, errors = shears(capfd, monkeypatch, *words)
    assert code == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in output + errors
    assert not (tmp_path / "out").exists()


def test_help_has_an_example(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    verbs: list[str] = list(typer.main.get_command(application()).commands)  # type: ignore[attr-defined]  # a click group
    assert {"sparsify", "train", "search", "export", "unpack", "report"} <= set(verbs)
    for verb in verbs:
        code, output, _ = shears(capfd, monkeypatch, verb, "--help")
        assert code == 0
        assert f"shears {verb} " in output
        assert "default: True" not in output
        assert "default: False" not in output


def test_the_help_of_sparsify_names_every_option_with_its_choices(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output, _ = shears(capfd, monkeypatch, "sparsify", "--help")
    assert code == 0
    words = " ".join(output.split())
    for option in [f"--{name.replace('_', '-')}" for name in SparsifyConfig.model_fields]:
        assert f" {option} " in words or f" {option}, " in words
    assert "--method wanda|magnitude|ria|sparsegpt|admm" in words
    assert "--allocation uniform|owl|sensitivity" in words
    assert "--reconstruct / --no-reconstruct" in words
    assert "--sparsity-of A=X,B=Y,..." in words
    assert "such as down_proj=0.4; the other linears make up for it" in words
    assert max(map(len, output.splitlines())) <= 80


def test_the_options_of_sparsify_reach_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "base", "mixtral")
    monkeypatch.chdir(tmp_path)
    options = ["--method", "sparsegpt", "--sparsity-of", "experts.down_proj=0.25,q_proj=0.75", "--skip", "o_proj"]
    options += ["--allocation", "owl", "--reconstruct", "--activation-budget", "1kB"]
    code, _, errors = shears(capfd, monkeypatch, "sparsify", "base", "out", *options, *SHORT)
    assert code == 0, errors
    linears = json.loads((tmp_path / "out" / "sparsity.json").read_text())["linears"]
    shares = {name: linear["sparsity"] for name, linear in linears.items()}
    assert {share for name, share in shares.items() if name.endswith("experts.down_proj")} == {0.25}
    assert {share for name, share in shares.items() if name.endswith("q_proj")} == {0.75}
    assert not any(name.endswith("o_proj") for name in shares)


def test_importing_shears_is_light() -> None:
    code = (
        "import sys, shears; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "needless"),
    [
        (["compare", "one.json", "two.json"], ("torch", "transformers", "peft", "datasets")),
        (["report", "nothing"], ("torch", "transformers", "peft", "datasets")),
        (["inspect", "nothing"], ("transformers", "peft", "datasets")),
    ],
)
def test_verbs_that_only_read_files_import_no_model_library(words: list[str], needless: tuple[str, ...]) -> None:
    code = (
        "import sys; from shears.cli import main; sys.argv = ['shears', *sys.argv[1:]]\n"
        "try: main()\n"
        f"except SystemExit as end: sys.exit(end.code if not {{*{needless}}} & {{*sys.modules}} else 3)"
    )
    assert subprocess.run([sys.executable, "-c", code, *words], check=False).returncode == 2


def test_folders_are_imported_on_first_use() -> None:
    code = "import sys, shears; shears.runtime.load, shears.errors.InputError; sys.exit(hasattr(shears, 'nothing'))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_imported() -> None:
    import shears as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    assert callable(package.sparsify)
    assert callable(package.search)


@pytest.mark.parametrize(
    ("words", "hint"),
    [("train", "; --resume continues"), ("--threads 1 run x", "; the same command continues"), ("x", "")],
)
def test_ctrl_c_says_how_to_continue(
    words: str, hint: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typer turns a KeyboardInterrupt into an exit code."""
    monkeypatch.setattr(cli, "application", lambda: lambda standalone_mode: 130)
    code, _, errors = shears(capfd, monkeypatch, *words.split())
    assert (code, errors.startswith(f"error: stopped{hint}")) == (130, True)


def test_other_libraries_add_no_line_to_a_mistake(tmp_path: Path) -> None:
    """In a process of its own: what libraries print is set when they are imported."""
    save_tiny(tmp_path / "base")
    (tmp_path / "bad.parquet").write_text("no Parquet")
    words = [sys.executable, "-m", "shears", "train", "base", "out", "--data", "bad.parquet"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: bad.parquet must be a Parquet file")
    assert ended.stderr.count("\n") == 1
