"""A record says what an artifact was made from, and is checked against the weights beside it when read."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from shears.errors import InputError
from shears.records.artifacts import (
    SEARCH_SPACE,
    SPARSITY,
    check_input,
    find_record,
    read_record,
    weights_fingerprint,
    write_json,
)
from shears.records.folders import partial_folder
from shears.records.paths import file_fingerprint

CONFIG = {"sparsity": 0.5, "seed": 0}


def test_the_partial_folder_is_a_sibling() -> None:
    assert partial_folder(Path("runs/a.b")) == Path("runs/a.b.partial")


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fingerprint_is_of_the_bytes_in_order(tmp_path: Path, contents: list[bytes]) -> None:
    paths = [tmp_path / str(index) for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    (tmp_path / "joined").write_bytes(b"".join(contents))
    assert file_fingerprint(*paths) == file_fingerprint(tmp_path / "joined")


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


def test_lost_and_added_weights_are_refused(artifact: Path) -> None:
    save_file({"more": torch.ones(1)}, artifact / "model-2.safetensors")
    with pytest.raises(InputError, match="must be those of"):
        read_record(artifact, SPARSITY)
    for path in artifact.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match="must hold weights as safetensors; it holds none"):
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
        ({"config": None}, "must be the record that shears wrote, its config is None"),
        ({"max_rank": "8"}, "must be the record that shears wrote, its max_rank is 8"),
    ],
)
def test_a_record_of_another_form_is_refused(content: object, message: str, artifact: Path) -> None:
    write_json(artifact / SPARSITY, content)
    with pytest.raises(InputError, match=message):
        read_record(artifact, SPARSITY)


def test_an_artifact_made_from_something_else_is_refused_with_both_fingerprints() -> None:
    check_input("the base model", "a" * 64, "a" * 64)
    with pytest.raises(InputError, match=f"the base model must be .*{'a' * 12}.*, got {'b' * 12}"):
        check_input("the base model", "a" * 64, "b" * 64)
    with pytest.raises(InputError, match=r"must be the one this was made from \(None\), got bbb"):
        check_input("the base model", None, "b" * 64)
