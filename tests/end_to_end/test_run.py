"""`shears run` on a tiny model: the whole road, skipped when done, refused when asked otherwise."""

import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

import shears
from shears.cli import main
from shears.config import Recipe
from shears.config.resolve import load_recipe
from shears.data.rows import arithmetic_rows
from shears.errors import InputError
from shears.records.artifacts import read_rows
from shears.records.timing import TIMES
from tests.end_to_end.recipe import write_recipe

Done = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A finished run: the recipe, its folder, the summary."""
    folder = tmp_path_factory.mktemp("run")
    path = write_recipe(folder)
    return path, folder / "run", shears.run(load(path), folder / "run")


def load(path: Path, *settings: str) -> Recipe:
    """The recipe with settings laid over it."""
    return load_recipe(path, settings)


def test_a_run_leaves_every_artifact(done: Done) -> None:
    _, folder, summary = done
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "recipe.yaml", "sparse", "super_adapter", "search", "sub_adapter", "evaluation", "evaluation.json",
        "times.jsonl",
    }  # fmt: skip
    assert [row["name"] for row in summary["models"]] == ["dense", "sparse", "sparse + sub-adapter"]
    assert all(row["n"] == 12 and row["ci95"][0] <= row["value"] <= row["ci95"][1] for row in summary["models"])
    assert [round(row["sparsity"], 2) for row in summary["models"]] == [0.0, 0.5, 0.5]
    assert summary == json.loads((folder / "evaluation.json").read_text())


def test_running_again_skips_every_stage_and_says_so(done: Done, caplog: pytest.LogCaptureFixture) -> None:
    path, folder, summary = done
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    with caplog.at_level("INFO", "shears"):
        assert shears.run(load(path), folder) == summary
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    stages = [message for message in caplog.messages if message.startswith("[")]
    assert stages[0] == "[1/5] sparsify is already done with these settings"
    models = ("dense", "sparse", "sparse + sub-adapter")
    assert stages[4:] == [f"[5/5] evaluate ({number} of 3): {name}" for number, name in enumerate(models, start=1)]
    times = read_rows(folder / TIMES)  # of the first run alone
    named = ["sparsify", "train", "search", "export", *(f"evaluate {name}" for name in models)]
    assert [line["stage"] for line in times] == named
    assert all(line["finished"] and line["seconds"] >= 0 and "thread" in line["machine"] for line in times)


def test_the_sub_adapter_needs_nothing_of_ours(done: Done) -> None:
    _, folder, _ = done
    ids = torch.arange(12)[None]
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "sparse"), folder / "sub_adapter")
    by_itself = AutoPeftModelForCausalLM.from_pretrained(folder / "sub_adapter")
    loaded = shears.load_super_adapter(folder / "super_adapter")
    chosen = json.loads((folder / "search" / "result.json").read_text())["chosen"]["ranks"]
    loaded.elastic.activate(shears.RankConfig(chosen))
    with torch.no_grad():
        expected = loaded.model(input_ids=ids).logits
        torch.testing.assert_close(stock(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(by_itself(input_ids=ids).logits, expected, rtol=0, atol=1e-6)


def test_a_changed_stage_is_refused_with_its_keys(done: Done) -> None:
    path, folder, _ = done
    with pytest.raises(InputError, match=r"train\.alpha was 12\.0 and is now 13\.0; train\.seed was 0 and is now 1"):
        shears.run(load(path, "train.alpha=13", "train.seed=1"), folder)
    with pytest.raises(InputError, match=r"sparsify\.sparsity was 0\.5 and is now 0\.6"):
        shears.run(load(path, "sparsify.sparsity=0.6"), folder)


def test_a_test_file_that_changed_is_measured_again_and_training_data_are_refused(tmp_path: Path) -> None:
    path, files = write_recipe(tmp_path), {name: tmp_path / f"{name}.jsonl" for name in ("train", "test")}
    for name, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_rows(name)[:40]))
    recipe = load(path, f"train.data={files['train']}", f"evaluate.data={files['test']}", "search=")
    shears.run(recipe, tmp_path / "run")
    measured = tmp_path / "run" / "evaluation" / "sparse.json"
    before = json.loads(measured.read_text())
    files["test"].write_text("".join(files["test"].read_text().splitlines(keepends=True)[::-1]))
    shears.run(recipe, tmp_path / "run")
    after = json.loads(measured.read_text())
    assert [row["id"] for row in after["records"]] != [row["id"] for row in before["records"]]
    assert after["data_sha256"] != before["data_sha256"]
    with pytest.raises(InputError, match=r"export\.sub_adapter was 'heuristic' and is now 'result\.json'"):
        shears.run(load(path, f"train.data={files['train']}", f"evaluate.data={files['test']}"), tmp_path / "run")
    files["train"].write_text(files["train"].read_text() * 2)
    with pytest.raises(InputError, match="data of .*super_adapter must be the one this was made from"):
        shears.run(recipe, tmp_path / "run")


def test_search_never_sees_the_test_split(done: Done, tmp_path: Path) -> None:
    path, _, _ = done
    with pytest.raises(InputError, match="must use other data than evaluate"):
        shears.run(load(path, "search.data=arithmetic:test", "evaluate.data=arithmetic:test"), tmp_path / "new")
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_rows("test")))
    with pytest.raises(InputError, match=r"all \d+ rows of arithmetic:test also occur in .*copy.jsonl"):
        shears.run(load(path, f"search.data={copy}", "evaluate.data=arithmetic:test"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_report_of_a_run_hands_out_commands_that_work(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, summary = done
    page = shears.write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"{row['value']:.1%}" in page for row in summary["models"])
    number = len(json.loads((folder / "search" / "result.json").read_text())["evaluations"])
    copied = re.search(r"To export one of them, run: (shears export .*?:NUMBER)", unescape(page))
    assert copied is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(copied[1].replace("NUMBER", str(number))))
    with pytest.raises(SystemExit, match="0"):
        main()
    exported = json.loads((tmp_path / "sub_adapter" / "sub_adapter.json").read_text())["ranks"]
    assert exported == json.loads((folder / "search" / "result.json").read_text())["evaluations"][-1]["ranks"]
