"""A record says what an artifact was made from, and is checked against the weights beside it when read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shears.errors import InputError
from shears.records.artifacts import (
    SEARCH_SPACE,
    SPARSITY,
    find_record,
    read_record,
    weights_fingerprint,
    write_json,
)

CONFIG = {"sparsity": 0.5, "seed": 0}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A finished sparse model: weights and the record that names them."""
    folder = tmp_path / "sparse"
    folder.mkdir()
    save_file({"weight": torch.zeros(4)}, folder / "model.safetensors")
    write_json(folder / SPARSITY, {"fingerprint": weights_fingerprint(folder), "config": CONFIG})
    return folder


def test_a_record_is_read_where_the_weights_have_its_fingerprint(artifact: Path) -> None:
    assert read_record(artifact, SPARSITY)["config"] == CONFIG
    assert find_record(artifact) == artifact / SPARSITY


def test_tampered_weights_are_refused(artifact: Path) -> None:
    content = bytearray((artifact / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (artifact / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="must be those of sparsity.json .*, got .*; make it again"):
        read_record(artifact, SPARSITY)


def test_a_folder_of_another_kind_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a super-adapter"):
        read_record(artifact, SEARCH_SPACE)
    assert find_record(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"must be a JSON object"),
        ({"fingerprint": None}, r"must be those of sparsity.json \(None\)"),
        ({"config": None}, "must be as shears wrote it, its config is None"),
        ({"max_rank": "8"}, "must be as shears wrote it, its max_rank is 8"),
    ],
)
def test_a_record_of_another_form_is_refused(content: object, message: str, artifact: Path) -> None:
    write_json(artifact / SPARSITY, content)
    with pytest.raises(InputError, match=message):
        read_record(artifact, SPARSITY)
