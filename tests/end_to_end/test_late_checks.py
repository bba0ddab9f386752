"""What a command needs is checked before it computes: each verb, each of its inputs missing or unusable."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import shears
from shears.checkpoints import tensor_files
from shears.checkpoints.tensor_files import TensorFiles
from shears.config import Recipe
from shears.config.resolve import build
from shears.errors import InputError
from shears.records import folders
from tests.conftest import Call
from tests.tiny import save_tiny

REFUSED = {
    "sparsify base out --calibration none.txt": "none.txt",
    "sparsify base out --calibration none.jsonl": "none.jsonl",
    "sparsify base out --calibration other.jsonl": "rows of other.jsonl must have the column text, or be examples",
    "sparsify base file/out --method magnitude": "the output must lie in a folder, got file/out",
    "sparsify base taken --method magnitude": "must not exist yet",
    "heal base out --teacher other --tokens 1k --data none.txt": "none.txt",
    "heal base out --teacher other --tokens 1k --data other.jsonl": "must have the column text, or be examples",
    "heal base out --teacher other --tokens 1k --data words.txt --sequence-length 9999": "context of 256 tokens",
    "heal base out --teacher other --tokens 1k --data words.txt --precision fp16 --device cpu": "needs a CUDA device",
    "heal base out --teacher nowhere/at/all --tokens 1k --data words.txt": "nowhere/at/all",
    "heal base file/out --teacher other --tokens 1k --data words.txt": "must lie in a folder, got file/out",
    "train base out --data none.jsonl": "none.jsonl",
    "train base out --data other.jsonl": "row 1 of other.jsonl",
    "train base out --data rows.jsonl --validation none.jsonl": "none.jsonl",
    "train base out --data rows.jsonl --precision fp16 --device cpu": "needs a CUDA device",
    "train base out --data rows.jsonl --teacher nowhere/at/all": "nowhere/at/all",
    "train base file/out --data rows.jsonl": "must lie in a folder, got file/out",
    "train base taken --data rows.jsonl": "must not exist yet",
    "search adapter out --data none.jsonl": "none.jsonl",
    "search adapter out --data rows.jsonl --test none.jsonl": "none.jsonl",
    "search adapter out --data other.jsonl": "row 1 of other.jsonl",
    "search adapter file/out --data rows.jsonl": "must lie in a folder, got file/out",
    "export base out --format package --values int4 --calibration none.txt": "none.txt",
    "export adapter out --format merged-sparse --calibration none.txt": "none.txt",
    "export adapter out --format merged-sparse --calibration other.jsonl": "must have the column text",
    "export base file/out --format package": "must lie in a folder, got file/out",
    "evaluate base --task perplexity --data none.txt": "none.txt",
    "evaluate base --task perplexity --data other.jsonl": "must have the column text",
    "evaluate base --task number --data none.jsonl": "none.jsonl",
    "evaluate base --task number --data rows.jsonl --output file/out.json": "must lie in a folder, got file/out.json",
    "write base file/out": "must lie in a folder, got file/out",
    "compress base out --target 0.1MB --calibration none.txt": "none.txt",
    "compress base out --target 0.1MB --calibration words.txt --data none.jsonl": "none.jsonl",
    "compress base out --target 0.1MB --calibration words.txt --data other.jsonl": "row 1 of other.jsonl",
    "compress base file/out --target 0.1MB --calibration words.txt": "must lie in a folder, got file/out",
    "compress base taken --target 0.1MB --calibration words.txt": "must not exist yet",
}
"""Commands, and what stands in the answer."""
RUN = {
    "sparsify.calibration=none.txt": "none.txt",
    "heal.data=none.txt": "none.txt",
    "heal.teacher=nowhere/at/all": "nowhere/at/all",
    "train.data=none.jsonl": "none.jsonl",
    "train.validation=none.jsonl": "none.jsonl",
    "train.precision=fp16": "needs a CUDA device",
    "train.report_to=wandb": "which is not installed",
    "search.data=none.jsonl": "none.jsonl",
    "search.test=other.jsonl": "row 1 of other.jsonl",
    "export.calibration=none.txt": "none.txt",
    "evaluate.data=none.jsonl": "none.jsonl",
}
"""Settings of a recipe that cannot be used."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("late")
    save_tiny(made / "base")
    save_tiny(made / "other", seed=1)
    (made / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": " 2", "answer": 2}\n' * 3)
    (made / "validation.jsonl").write_text('{"prompt": "2+2=", "completion": " 4", "answer": 4}\n' * 3)
    (made / "other.jsonl").write_text('{"query": "1+1="}\n')
    (made / "words.txt").write_text("some words, " * 20)
    (made / "file").touch()
    (made / "taken").mkdir()
    (made / "taken" / "mine").touch()
    (made / "recipe.yaml").write_text("model: base\noutput: out\nsparsify: {method: magnitude, device: cpu}\n")
    options: dict[str, Any] = {"ranks": (4, 2), "alpha": 8.0, "max_steps": 1, "batch_size": 2, "device": "cpu"}
    shears.train(made / "base", made / "adapter", data=str(made / "rows.jsonl"), **options)
    return made


@pytest.fixture
def unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of the folder, in which every command of the test is run, and no weight may be loaded."""

    def load_nothing(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded before the inputs are checked")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(TensorFiles, "load", load_nothing)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load_nothing)
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("words", REFUSED)
def test_an_unusable_input_is_refused_before_weights_are_loaded(words: str, unread: list[Path], call: Call) -> None:
    code, output, errors = call(*shlex.split(words))
    assert (code, output, "Traceback" in errors) == (2, "", False), errors
    assert REFUSED[words] in errors.splitlines()[-1]
    assert sorted(Path.cwd().rglob("*")) == unread


@pytest.mark.parametrize("setting", RUN)
def test_a_run_is_refused_before_its_first_stage(setting: str, unread: list[Path]) -> None:
    sections: dict[str, dict[str, object]] = {
        "sparsify": {"calibration": "words.txt", "num_samples": 4, "sequence_length": 16},
        "heal": {"data": "words.txt", "tokens": 64, "sequence_length": 16, "batch_size": 2, "warmup_steps": 0},
        "train": {"data": "rows.jsonl", "ranks": [4, 2], "alpha": 8, "max_steps": 1, "device": "cpu"},
        "search": {"data": "validation.jsonl"},
        "export": {"format": "package", "values": "int4"},
        "evaluate": {"task": "perplexity", "data": "words.txt"},
    }
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    sections[section] |= {"task": "number"} if section == "evaluate" else {}
    sections[section][name] = value
    recipe = build(Recipe, "", {"model": "base", "output": "run", **sections})
    with pytest.raises(InputError, match=RUN[setting]):
        shears.run(recipe)
    assert sorted(Path.cwd().rglob("*")) == unread


FULL = {
    "sparsify base out --method magnitude": "0.1 MB",
    "heal base out --teacher other --tokens 64 --sequence-length 16 --data words.txt --device cpu": "0.1 MB",
    "train base out --data rows.jsonl --ranks 4,2 --max-steps 1 --batch-size 2 --device cpu": "MB",
    "train base out --data rows.jsonl --teacher other --max-steps 1 --batch-size 2 --device cpu": "MB",
    "run recipe.yaml --output out": "0.1 MB",
    "export base out --format package": "MB",
    "export adapter out --format merged": "0.1 MB",
    "compress base out --target 0.05MB --calibration words.txt --sequence-length 16": "MB",
}


@pytest.mark.parametrize("words", FULL)
def test_a_full_disk_is_refused_before_the_work(
    words: str, folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(folders, "free_bytes", lambda _: 9_000)
    monkeypatch.setattr("shears.adapt.train.open_teacher", lambda *_, **__: pytest.fail("the teacher computes"))
    before = sorted(folder.rglob("*"))
    code, _, errors = call(*shlex.split(words))
    assert code == 2, errors
    assert "error: the disk must have room for " in errors.splitlines()[-1]
    assert f"{FULL[words]}, got 0.0 MB free for " in errors.splitlines()[-1]
    assert sorted(folder.rglob("*")) == before


def test_the_bytes_of_weights_are_those_of_their_number_format(folder: Path) -> None:
    files = TensorFiles(folder / "base")
    numbers = sum(files.load(name).numel() for name in files.names)
    assert tensor_files.weights_bytes(folder / "base") == 4 * numbers
    assert tensor_files.weights_bytes(folder / "base", torch.bfloat16) == 2 * numbers
    assert json.loads((folder / "base" / "config.json").read_text())["model_type"] == "llama"
