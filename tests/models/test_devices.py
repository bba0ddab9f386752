"""Devices, precisions and threads are those that the user names, or an error says why not."""

import pytest
import torch

from shears.errors import InputError
from shears.models.devices import pick_device, resolved_precision, set_threads


def test_precision_follows_the_device() -> None:
    assert resolved_precision("fp32", "cuda") == "fp32"
    assert resolved_precision("bf16", "cpu") == "bf16"
    assert resolved_precision("auto", "mps") == "fp32"
    with pytest.raises(InputError, match="fp16 needs a CUDA device, got cpu"):
        resolved_precision("fp16", "cpu")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ({"amx_bf16": True, "cpu_name": "Intel"}, "bf16"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ({"avx512_bf16": True, "cpu_name": "Intel"}, "fp32"),
        ({"avx2": True}, "fp32"),
    ],
)
def test_auto_precision_follows_the_processor(
    capability: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capability)
    assert resolved_precision("auto", "cpu") == expected


def test_threads_can_be_set() -> None:
    before = torch.get_num_threads()
    set_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    set_threads(before)
    set_threads(None)
    with pytest.raises(InputError, match="threads must be 1 to 1024, got 100000"):
        set_threads(100_000)
    assert torch.get_num_threads() == before


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cuda").type == "cuda"
    with pytest.raises(InputError, match="device must be one that this machine has, got 'cuda:2'"):
        pick_device("cuda:2")
