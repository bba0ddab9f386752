"""A tokenizer with more tokens than the model has embeddings works until a text has one of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import shears
from shears.errors import InputError
from tests.tiny import save_tiny
from tests.training.small_training import SETTINGS

SAYS = "token ids must be below 257, the model's number of embeddings, got 257; resize the embeddings"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose tokenizer got a token more, without an embedding."""
    base = save_tiny(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(base)
    return base


def _data(folder: Path, *prompts: str) -> str:
    path = folder / f"{len(prompts)}.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": " 2", "answer": "2"}) + "\n" for p in prompts))
    return str(path)


def test_training_refuses_before_the_first_step(base: Path, tmp_path: Path) -> None:
    shears.train(base, tmp_path / "known", data=_data(tmp_path, "1+1="), **SETTINGS)
    with pytest.raises(InputError, match=SAYS):
        shears.train(base, tmp_path / "unknown", data=_data(tmp_path, "1+1=", "<new>="), **SETTINGS)
    assert not (tmp_path / "unknown.partial").exists()


@pytest.mark.parametrize("task", ["number", "perplexity"])
def test_evaluation_refuses_instead_of_an_index_error(base: Path, tmp_path: Path, task: str) -> None:
    more: dict[str, Any] = {"sequence_length": 8} if task == "perplexity" else {"max_new_tokens": 2}
    options = {"task": task, **more}
    shears.evaluate(str(base), data=_data(tmp_path, "1+1="), **options)
    with pytest.raises(InputError, match=SAYS):
        shears.evaluate(str(base), data=_data(tmp_path, "1+1=", "<new>="), **options)


def test_compressing_refuses_before_the_first_forward(base: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.jsonl"
    ids.write_text((json.dumps({"input_ids": [1, 2]}) + "\n") * 19 + json.dumps({"input_ids": [1, 300]}) + "\n")
    with pytest.raises(InputError, match="token ids must be below 257, the model's number of embeddings, got 300"):
        shears.compress(base, tmp_path / "out", target="12bits", calibration=str(ids))
    assert not (tmp_path / "out").exists()
