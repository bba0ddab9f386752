"""An engine from names alone."""

from pathlib import Path

import pytest

from shears.errors import InputError
from shears.runtime.loading import load_model_engine
from tests.tiny import save_tiny, tiny_tokenizer


def test_a_model_folder_generates(tmp_path: Path) -> None:
    engine = load_model_engine(str(save_tiny(tmp_path / "base")))
    text = engine.generate("a", max_new_tokens=3).text
    assert text == engine.generate("a", max_new_tokens=3, seed=1).text
    assert engine.generate("a", max_new_tokens=3, temperature=1.0).finish in ("stop", "length")


def test_every_end_token_of_a_model_ends_a_text(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    first = load_model_engine(str(folder)).generate("a", max_new_tokens=1).tokens[0]
    end = tiny_tokenizer().eos_token_id
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{end}, {first}]}}')
    assert load_model_engine(str(folder)).generate("a", max_new_tokens=3).finish == "stop"


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(InputError, match="there is no nowhere/at/all"):
        load_model_engine("nowhere/at/all")
