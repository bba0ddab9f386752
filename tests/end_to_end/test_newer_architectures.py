"""The whole road of a tiny model of each newer architecture, and `compress`: the native decoder runs the packages."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shears
from shears.checkpoints.package_file import read_package
from shears.models.load import load_model
from shears.runtime.loading import Wanted, native_backend
from shears.runtime.native import kernels_available
from tests.runtime.native.decoders import MODELS, expected, text
from tests.tiny import save_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not kernels_available(), reason="the C++ extension was not built"),
]
NAMES = ["gemma3, linear positions", "phi3, fused", "granite, multipliers", "olmo2, norms behind",
         "qwen3.5, gated delta nets"]  # fmt: skip
SHORT: dict[str, Any] = {"num_samples": 4, "sequence_length": 16}
TRAINING: dict[str, Any] = {"max_steps": 2, "batch_size": 2, "device": "cpu"}


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    generator = random.Random(0)
    file = tmp_path / "text.txt"
    file.write_text("".join(generator.choice("abcdefgh\n") for _ in range(2000)))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_pruned_healed_trained_packed_and_run(name: str, calibration: Path, tmp_path: Path) -> None:
    kind, changes = MODELS[name]
    base = save_tiny(tmp_path / "base", kind, **changes)
    sparse = shears.sparsify(base, tmp_path / "sparse", calibration=str(calibration), sparsity=0.5, **SHORT)
    healed = shears.heal(
        sparse, tmp_path / "healed", data=str(calibration), sequence_length=16, tokens=16 * 8, batch_size=4
    )
    adapter = shears.train(healed, tmp_path / "super", data="arithmetic:train", ranks=(4, 2), **TRAINING)
    largest: dict[str, Any] = {"sub_adapter": "maximal"}
    package = shears.export_adapter(adapter, tmp_path / "package", format="package", dtype="fp32", **largest)
    merged = shears.export_adapter(adapter, tmp_path / "merged", format="merged", **largest)
    native = native_backend(read_package(package), Wanted(backend="native"))
    assert native is not None
    tokens = text(40)
    whole = expected(load_model(merged, "fp32", "cpu"), tokens)
    np.testing.assert_allclose(native.logits(tokens), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_compress_makes_a_package_that_the_native_decoder_runs(
    name: str, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEARS_TUNING", "off")
    kind, changes = MODELS[name]
    base = save_tiny(tmp_path / "base", kind, **{**changes, "hidden_size": 64, "intermediate_size": 128})
    settings: dict[str, Any] = {"sparsities": (0.0, 0.5), "dtypes": ("int4",), "time": "quick"}
    record = shears.compress(base, tmp_path / "out", target="6bits", calibration=calibration, **settings)
    row = next(row for row in record["measured"] if row["name"] == record["chosen"])
    assert row["holds"] is True
    assert row["tokens_per_second"] > 0
    predicted = [each["tokens_per_second"] for each in record["candidates"]]
    assert all(predicted) or kind == "qwen3_5_text"  # whose layers are not of one kind
    assert native_backend(read_package(tmp_path / "out" / row["package"]), Wanted(backend="native")) is not None
