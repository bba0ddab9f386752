"""What a config claims is compared with the weights beside it before anything is built or allocated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.checkpoints.claims import refuse_claims
from shears.checkpoints.configuration import known_config
from shears.errors import InputError
from shears.models.load import load_model, load_with_adapter
from shears.models.ref import resolve
from shears.runs.shapes import shape_of
from shears.runtime.loading import load
from tests.tiny import CONFIGS, MORE_CONFIGS, save_tiny

ENORMOUS = 10**9
KEYS = ("num_hidden_layers", "hidden_size", "vocab_size", "num_experts", "intermediate_size", "num_attention_heads")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its package."""
    folder = tmp_path_factory.mktemp("claims")
    save_tiny(folder / "model")
    shears.export_adapter(folder / "model", folder / "package", format="package", values="int8")
    return folder


def claiming(source: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["model", "package"])
def test_every_opener_refuses_a_claim_beyond_the_files(folders: Path, tmp_path: Path, kind: str, key: str) -> None:
    folder = claiming(folders / kind, tmp_path / "claims", **{key: ENORMOUS})
    openers: list[Callable[[Any], object]] = [
        load, load_model, known_config, lambda path: load_model(resolve(path), "bf16"),
    ]  # fmt: skip
    for opener in [*openers, lambda path: shape_of(str(path))] if kind == "model" else openers:
        with pytest.raises(InputError, match=rf"config\.json must describe the weights beside it, got {key} 1,000,000"):
            opener(folder)


def test_a_config_inside_a_config_is_compared_too(folders: Path) -> None:
    with pytest.raises(InputError, match="got n_layer 1,000,000,000 beside"):
        refuse_claims(folders / "model", "config.json", {"text_config": {"n_layer": ENORMOUS}})


def test_a_folder_without_weights_has_a_bound(tmp_path: Path) -> None:
    refuse_claims(tmp_path, "config.json", {"num_hidden_layers": 200, "vocab_size": ENORMOUS})
    with pytest.raises(InputError, match="got num_hidden_layers 1,000,000,000 beside 0 weights"):
        refuse_claims(tmp_path, "config.json", {"num_hidden_layers": ENORMOUS})


def test_a_word_in_the_place_of_a_number_is_refused(folders: Path, tmp_path: Path) -> None:
    folder = claiming(folders / "package", tmp_path / "word", rope_theta="many")
    with pytest.raises(InputError, match=r"config\.json must hold a number as rope_theta, got 'many'; restore"):
        load(folder)


def test_an_adapter_claims_no_larger_rank_than_its_weights_have(folders: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    shears.train(folders / "model", tmp_path / "adapter", data=rows, ranks=(2,), epochs=1, batch_size=4)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": ENORMOUS}))
    with pytest.raises(InputError, match=r"adapter_config\.json must describe the weights beside it, got r 1,000,000"):
        load_with_adapter(folders / "model", tmp_path / "adapter")


@pytest.mark.parametrize("name", [*CONFIGS, *MORE_CONFIGS])
def test_no_architecture_claims_more_than_it_has(tmp_path: Path, name: str) -> None:
    known_config(save_tiny(tmp_path / name, name))


def test_an_inner_size_that_no_layer_has_is_no_claim(tmp_path: Path) -> None:
    experts = save_tiny(tmp_path / "model", "qwen3_moe", decoder_sparse_step=1)
    folder = claiming(experts, tmp_path / "claims", intermediate_size=ENORMOUS)
    assert load_model(folder).config.intermediate_size == ENORMOUS
    with pytest.raises(InputError, match="got moe_intermediate_size 1,000,000,000 beside"):
        known_config(claiming(folder, tmp_path / "more", moe_intermediate_size=ENORMOUS))


def test_an_inner_size_of_dense_layers_among_experts_is_refused_by_its_shape(tmp_path: Path) -> None:
    folder = claiming(save_tiny(tmp_path / "model", "qwen3_moe"), tmp_path / "claims", intermediate_size=ENORMOUS)
    with pytest.raises(InputError, match="must be a causal language model that transformers loads"):
        load_model(folder)
