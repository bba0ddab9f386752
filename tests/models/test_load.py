"""A model is loaded whole, or refused in one line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from shears.errors import InputError
from shears.models.load import load_model
from shears.models.ref import load_tokenizer, resolve
from tests.tiny import save_tiny


def test_an_unreachable_hub_id_is_an_error_of_one_line() -> None:
    words = "the model no-such-org/no-such-model, which is no folder here, cannot be read"
    with pytest.raises(InputError, match=words) as caught:
        load_model("no-such-org/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_padding_pads_with_the_end(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(resolve(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256


def test_weights_that_are_missing_are_refused_not_random(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "m") / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 are missing .*layers\.0\.mlp\.up_proj"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "damage", ["torn weights", "torn config", "unknown architecture", "other shapes", "no weights"]
)
def test_a_damaged_folder_is_an_error_of_one_line(damage: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    if damage == "torn weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "torn config":
        (folder / "config.json").write_text('{"model_type": ')
    elif damage == "unknown architecture":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonsense", "architectures": []}))
    else:
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
