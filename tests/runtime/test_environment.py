"""shears env: what this machine is for the kernels, measured now."""

import json
import sys

import pytest

import shears
from shears.cli import main
from shears.cli.tables import INSTRUCTION_SETS, print_environment
from shears.runtime import environment as module
from shears.runtime import kernels_available
from shears.runtime.environment import Speed, warnings_of


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with small weights, once."""
    if not kernels_available():
        pytest.skip("the extension was not built")
    from shears.runtime.native import tuning

    monkeypatch.setattr(tuning, "weight_bytes", lambda: 16 << 20)
    monkeypatch.setattr(module, "TIMED_PRODUCTS", 1)


@pytest.mark.usefixtures("quick")
def test_every_kind_of_weight_is_measured_on_one_thread_and_on_most() -> None:
    data = shears.environment(2)
    assert data["extension"]
    kinds = {(speed["values"], speed["sparse"], speed["threads"]) for speed in data["speeds"]}
    assert kinds == {
        (values, sparse, threads)
        for values in ("fp32", "bf16", "int8", "int4")
        for sparse in (True, False)
        for threads in (1, 2)
    }
    assert all(speed["ps_per_weight"] > 0 and speed["of_memory"] > 0 for speed in data["speeds"])
    assert set(data["walks"]["int8 sparse"]) == {"1", "2", "4", "8", "16", "64"}
    assert data["versions"]["shears"] == shears.__version__


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_verb_prints_a_table_or_json(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["shears", "env", "--threads", "1", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    if options:
        assert json.loads(printed)["speeds"]
    else:
        assert "of reading memory" in printed
        assert "int8 sparse, 1 token: " in printed


def test_a_kind_whose_sparse_product_is_slower_is_named_with_what_to_do() -> None:
    speeds = [
        Speed("int8", True, 1, 20.0, 1.0, 0.1),
        Speed("int8", False, 1, 10.0, 1.0, 0.1),
        Speed("bf16", True, 1, 10.0, 1.0, 0.1),
        Speed("bf16", False, 1, 10.0, 1.0, 0.1),
    ]
    (warning,) = warnings_of(speeds)
    assert warning.startswith("sparse int8 must be faster than dense, it takes 2.00 times as long on 1 thread(s)")
    assert "SHEARS_TUNING=again" in warning


def test_a_machine_without_the_extension_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "kernels_available", lambda: False)
    data = shears.environment()
    assert not data["extension"]
    assert "C++ extension must be built" in data["warnings"][0]


def test_an_arm_machine_reads_which_neon_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    sets = {"isa": "neon_dot", **dict.fromkeys(INSTRUCTION_SETS, False)}
    sets |= dict.fromkeys(("portable", "neon", "neon_dot"), True)
    data = {"processor": "Cortex-A76", "machine": "aarch64", "processors": 4, "versions": {}, "extension": True}
    print_environment({**data, "instruction_sets": sets, "speeds": [], "walks": {}, "warnings": []})
    printed = capsys.readouterr().out
    assert "kernels: neon with dot product in use of neon with dot product, neon, portable\n" in printed
