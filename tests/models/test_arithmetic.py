"""Trainings and walks compute in the number format that this processor multiplies faster, as was measured."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from shears.models import arithmetic
from shears.models.arithmetic import computing, computing_dtype, computing_precision, rounded_products, rounds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Return the seconds of a product on a machine with bf16 instructions and an empty cache, to be changed."""
    seconds = {"fp32": 1.0, "bf16": 1.0, "rounded": 1.0, "measured": 0}

    def products() -> tuple[float, float, float]:
        seconds["measured"] += 1
        return seconds["fp32"], seconds["bf16"], seconds["rounded"]

    monkeypatch.setenv("SHEARS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(arithmetic, "seconds_of_products", products)
    for name in ("fp32_is_faster", "rounding_is_faster"):
        monkeypatch.setattr(arithmetic, name, getattr(arithmetic, name).__wrapped__)
    return seconds


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (1.2, "bf16"), (1.8, "fp32")])
def test_auto_takes_the_faster_products(machine: dict[str, float], bf16: float, expected: str) -> None:
    machine["bf16"] = bf16
    assert computing_precision("auto", "cpu") == expected
    assert computing_dtype("auto", "cpu") == ("fp32" if expected == "fp32" else "auto")
    with computing("auto", "cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == getattr(
            torch, {"fp32": "float32"}.get(expected, "bfloat16")
        )


def test_a_machine_is_measured_once(machine: dict[str, float]) -> None:
    machine["bf16"] = 1.8
    assert [computing_precision("auto", "cpu") for _ in range(2)] == ["fp32"] * 2
    machine["bf16"] = 0.5  # a second process on a busy machine
    assert computing_precision("auto", "cpu") == "fp32"
    assert machine["measured"] == 1


def test_a_damaged_measurement_is_made_again(machine: dict[str, float]) -> None:
    computing_precision("auto", "cpu")
    for damaged in ("{", "[]", json.dumps({"fp32_is_faster": "no"})):
        arithmetic.cache_file().write_text(damaged, encoding="utf-8")
        machine["bf16"] = 1.8
        assert computing_precision("auto", "cpu") == "fp32"
    assert machine["measured"] == 4


def test_a_named_precision_is_not_measured(machine: dict[str, float]) -> None:
    machine["bf16"] = 1.8
    assert computing_precision("bf16", "cpu") == "bf16"
    assert (computing_precision("fp32", "cpu"), computing_dtype("fp32", "cpu")) == ("fp32", "fp32")
    assert not machine["measured"]


def test_without_bf16_instructions_models_are_loaded_in_fp32(
    machine: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert (computing_precision("auto", "cpu"), computing_dtype("auto", "cpu")) == ("fp32", "fp32")
    assert not machine["measured"]


@pytest.mark.parametrize(
    ("rounded", "precision", "device", "expected"),
    [
        (0.5, "auto", "cpu", True),
        (0.9, "auto", "cpu", False),
        (0.5, "fp32", "cpu", False),
        (0.5, "bf16", "meta", False),
    ],
)
def test_factors_are_rounded_beside_bf16_where_that_is_clearly_faster(
    machine: dict[str, float], rounded: float, precision: str, device: str, expected: bool
) -> None:
    machine["rounded"] = rounded
    assert rounds(precision, device) == expected


def test_rounding_ends_with_its_block_and_with_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with rounded_products(False):
        assert torch.get_float32_matmul_precision() == before
    with suppress(ZeroDivisionError), rounded_products():
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before


def test_products_take_time() -> None:
    assert min(arithmetic.seconds_of_products()) > 0
