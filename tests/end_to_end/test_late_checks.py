"""What would end hours of work late is checked before it begins: the inputs of a run's stages, and the disk."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from shears.config.resolve import build
from shears.errors import InputError
from shears.records import folders
from tests.conftest import Call
from tests.tiny import save_tiny

RUN = {
    "sparsify.calibration=none.txt": "none.txt",
    "heal.data=none.txt": "none.txt",
    "heal.teacher=nowhere/at/all": "nowhere/at/all",
    "train.data=none.jsonl": "none.jsonl",
    "train.validation=none.jsonl": "none.jsonl",
    "train.precision=fp16": "needs a CUDA device",
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


@pytest.mark.parametrize("setting", RUN)
def test_a_run_is_refused_before_its_first_stage(setting: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    sections: dict[str, dict[str, object]] = {
        "sparsify": {"calibration": "words.txt", "num_samples": 4, "sequence_length": 16},
        "heal": {"data": "words.txt", "tokens": 64, "sequence_length": 16, "batch_size": 2, "warmup_steps": 0},
        "train": {"data": "rows.jsonl", "ranks": [4, 2], "alpha": 8, "max_steps": 1, "device": "cpu"},
        "search": {"data": "validation.jsonl"},
        "export": {"format": "package", "dtype": "int4"},
        "evaluate": {"task": "perplexity", "data": "words.txt"},
    }
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    sections[section] |= {"task": "number"} if section == "evaluate" else {}
    sections[section][name] = value
    recipe = build(Recipe, "", {"model": "base", "output": "run", **sections})
    with pytest.raises(InputError, match=RUN[setting]):
        shears.run(recipe)
    assert sorted(folder.rglob("*")) == before


FULL = [
    "sparsify base out --method magnitude",
    "heal base out --teacher other --tokens 64 --sequence-length 16 --data words.txt --device cpu",
    "train base out --data rows.jsonl --ranks 4,2 --max-steps 1 --batch-size 2 --device cpu",
    "run recipe.yaml --output out",
    "export base out --format package",
    "compress base out --target 0.05MB --calibration words.txt",
]


@pytest.mark.parametrize("words", FULL)
def test_a_full_disk_is_refused_before_the_work(
    words: str, folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(folders, "free_bytes", lambda _: 9_000)
    before = sorted(folder.rglob("*"))
    code, _, errors = call(*shlex.split(words))
    assert code == 2, errors
    assert "error: the disk must have " in errors.splitlines()[-1]
    assert sorted(folder.rglob("*")) == before
