"""`shears inspect` without a path: what this machine is for the kernels, measured now."""

import json

import pytest

import shears
from shears.cli.tables import INSTRUCTION_SETS, print_environment
from shears.runtime import speed as module
from shears.runtime.native import kernels_available
from tests.conftest import Call


def test_every_kind_of_weight_is_measured(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels_available():
        pytest.skip("the extension was not built")
    from shears.runtime.native import tuning

    monkeypatch.setattr(tuning, "weight_bytes", lambda: 16 << 20)
    monkeypatch.setattr(module, "TIMED_PRODUCTS", 1)
    code, printed, _ = call("inspect", "--json")
    data = json.loads(printed)
    assert code == 0
    assert [row["values"] for row in data["speeds"]] == ["fp32", "bf16", "int8", "int4"]
    assert all(row["sparse"] > 0 and row["dense"] > 0 for row in data["speeds"])
    assert data["versions"]["shears"] == shears.__version__


def test_a_machine_is_shown_with_or_without_the_extension(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "kernels_available", lambda: False)
    data = shears.environment()
    print_environment(data)
    assert "The C++ kernels were not built. Install a C++ compiler" in capsys.readouterr().out
    sets = {"isa": "neon_dot", **dict.fromkeys(INSTRUCTION_SETS, False), "portable": True, "neon": True}
    speeds = [{"values": "int8", "sparse": 20.0, "dense": 30.0}]
    print_environment({**data, "instruction_sets": sets, "speeds": speeds})
    assert "kernels: use neon_dot; this processor has neon, portable\n" in capsys.readouterr().out
