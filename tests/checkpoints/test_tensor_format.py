"""A safetensors file that is torn, or does not hold what its header says, is refused; so is a disk without room."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shears.checkpoints.tensor_files import SINGLE, TensorFiles, TensorWriter
from shears.errors import InputError


@pytest.mark.parametrize("kept", [0, 5, 9, 40, -1])
def test_a_file_cut_off_anywhere_is_refused(kept: int, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(20)}, tmp_path / SINGLE)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:kept])
    with pytest.raises(InputError, match="must be a whole safetensors file") as caught:
        TensorFiles(tmp_path)
    assert "\n" not in str(caught.value)


ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": ENTRY | {"dtype": "F7"}},
        {"a": ENTRY | {"shape": [3]}},
        {"a": ENTRY | {"shape": [-1, -2]}},
        {"a": ENTRY | {"shape": ["2"]}},
        {"a": ENTRY | {"data_offsets": [0]}},
        {"a": ENTRY | {"data_offsets": [-4, 4]}},
        {"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
        {"a": ENTRY, "b": ENTRY},
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(header: Any, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(InputError, match="must be a whole safetensors file"):
        TensorFiles(tmp_path)


def test_a_file_that_became_shorter_is_refused_when_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(20)}, tmp_path / SINGLE)
    files = TensorFiles(tmp_path)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:-1])
    with pytest.raises(InputError, match="became shorter"):
        files.load("a")


def test_a_full_disk_is_an_os_error_at_once(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / SINGLE)
    (tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # the kernel refuses larger files
    try:
        with pytest.raises(OSError, match="too large"):
            TensorWriter(TensorFiles(tmp_path), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
