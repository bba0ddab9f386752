"""Every verb on a pretended GPU: it runs, computes what the CPU computes, and waits, copies and converts little.

tests/gpu/pretended.py says what is pretended; the flows run in a process of their own.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from shears.cli.tables import print_gpu_check
from shears.runs.gpu_check import SIZES, Inputs, row
from tests.conftest import Call

HERE = Path(__file__).parent
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
Figures = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """The figures of every flow, by its name and number format."""
    folder = tmp_path_factory.mktemp("gpu")
    torch = Path(str((find_spec("torch") or pytest.fail("no torch")).submodule_search_locations[0]))  # type: ignore[index]
    if (torch / "lib" / "libtorch_cuda.so").exists():
        pytest.skip("a torch that was built with CUDA has a GPU's hooks already; install torch's CPU wheel")
    compiler = shutil.which("g++") or shutil.which("c++") or pytest.fail("the tests need a C++ compiler")
    libraries = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    command = [compiler, "-std=c++20", "-shared", "-fPIC", str(HERE / "guard.cpp"), f"-I{torch / 'include'}"]
    subprocess.run([*command, *libraries, "-o", str(folder / "guard.so")], check=True)
    environment = os.environ | {"SHEARS_PRETENDED_GPU": str(folder / "guard.so"), "OMP_NUM_THREADS": "1"}
    flows = [sys.executable, "-W", "ignore", "-m", "tests.gpu.flows", str(folder / "figures.json"), str(folder)]
    ended = subprocess.run(flows, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: Figures = json.loads((folder / "figures.json").read_text())
    return found


def test_every_verb_runs_on_the_device(figures: Figures) -> None:
    assert len(figures) > 50
    assert {name: each["error"] for name, each in figures.items() if each.get("error")} == {}


def test_in_fp32_the_device_computes_what_the_cpu_does(figures: Figures) -> None:
    compared = {name: each["difference"] for name, each in figures.items() if "difference" in each}
    assert len(compared) == 6
    merged = compared.pop("export merged-sparse fp32")  # both calibrate in bf16
    assert merged < 2e-3
    assert max(compared.values()) < 1e-5, compared


def test_the_check_for_an_issue_runs_every_verb(figures: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    rows = figures["check"]["verbs"]
    assert [row["result"] for row in rows] == ["ok"] * 13
    assert max(row["difference"] for row in rows if row["format"] == "fp32") < 1e-5
    print_gpu_check(figures["check"])
    printed = capsys.readouterr().out
    assert printed.startswith("pretended, compute capability 8.9, 25.77 GB\n")
    assert "│ export package │ fp32   │ ok " in printed


def test_without_a_gpu_the_check_is_one_line(call: Call) -> None:
    code, printed, errors = call("inspect", "--gpu-check")
    assert (code, printed) == (2, "")
    assert errors.startswith("error: --gpu-check needs a CUDA GPU, and torch finds none;")
    assert errors.count("\n") == 1


def test_a_verb_that_fails_or_differs_is_a_row(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, {**SIZES, **SMALL})
    with patch.multiple(torch.cuda, empty_cache=lambda: None, reset_peak_memory_stats=lambda: None):
        wrong = row(lambda *_: torch.ones(2), inputs, "fp32", torch.tensor([1.0, 1.1]))
        failed = row(lambda *_: torch.ones(2) + torch.ones(3), inputs, "fp32", torch.ones(2))
    assert (wrong["result"], round(wrong["difference"], 3)) == ("differs", 0.067)
    assert failed["result"].startswith("RuntimeError: The size of tensor a (2) must match")


@pytest.mark.parametrize("verb", ["train", "evaluate", "search"])
def test_a_forward_converts_no_frozen_weight(verb: str, figures: Figures) -> None:
    names = {"train": ("nested", "auto", "uniform"), "evaluate": ("number", "auto"), "search": ("auto", "loss")}[verb]
    counts = {
        name: each.get("weight_casts", 0) - (verb == "search") * each["forwards"]  # which converts logits
        for name, each in figures.items()
        if name.rpartition(" ")[0] in {f"{verb} {kind}" for kind in names}
    }
    assert len(counts) >= 4
    assert set(counts.values()) == {0}, counts


def test_no_verb_holds_a_model_twice_before_its_first_forward(figures: Figures) -> None:
    shares = {name: each["loaded"] / each["weights"] for name, each in figures.items() if name.endswith(" large")}
    assert len(shares) == 5
    assert max(shares.values()) < 1.08, shares


def test_an_fp16_base_needs_no_more_memory_than_one_in_bf16(figures: Figures) -> None:
    assert figures["train auto fp16"]["peak"] <= 1.05 * figures["train auto bf16"]["peak"]


@pytest.mark.parametrize("sampling", ["nested", "uniform"])
def test_a_step_of_training_waits_and_copies_little(sampling: str, figures: Figures) -> None:
    step = figures[f"a step {sampling}"]  # of two forwards
    assert sum(number for event, number in step.items() if event.startswith("sync")) <= 20, step
    assert sum(number for event, number in step.items() if event.startswith("to_")) <= 6, step


def test_in_fp16_a_block_is_fitted_with_a_loss_scale(figures: Figures) -> None:
    assert figures["sparsify reconstruct fp16"]["scaled"] > 0


def test_without_bf16_in_hardware_auto_trains_in_fp16_with_a_loss_scale(figures: Figures) -> None:
    scaled, plain = figures["train auto without bf16"], figures["train auto bf16"]
    assert scaled["scaled"] == 3
    assert "scaled" not in plain


def test_an_int8_package_computes_on_a_gpu_that_is_asked_for(figures: Figures) -> None:
    assert figures["evaluate package int8 bf16"]["forwards"] > 0
    assert figures["generate package int8 bf16"]["forwards"] > 0


def test_compress_uses_the_cpu_alone(figures: Figures) -> None:
    assert figures["compress bf16"]["peak"] == 0


def test_texts_are_answered_at_once_as_far_as_their_keys_and_values_fit(figures: Figures) -> None:
    assert figures["evaluate number bf16"]["forwards"] == 3 + 3  # three try padding
    assert figures["evaluate in little memory bf16"]["forwards"] == 8 * 3  # eight texts one by one
