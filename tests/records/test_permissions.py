"""Permissions of an artifact's files."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shears.records.folders import working_folder


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_umask_lets_them(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with working_folder(tmp_path / "out", {}, resume=False) as work:
            (work / "deep").mkdir()
            save_file({"a": torch.zeros(2)}, work / "deep" / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "deep" / "model.safetensors").stat().st_mode) == mode
