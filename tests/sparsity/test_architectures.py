"""Every architecture, from a saved folder to a stock model: the zeros stated are there, nothing else has changed."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from shears.models.blocks import Matrix, block_matrices, decoder_blocks
from shears.records.artifacts import SPARSITY
from shears.sparsity.sparsify import sparsify
from tests.oracles import wanda
from tests.tiny import CONFIGS, MORE_CONFIGS, VOCABULARY, tiny_model

ALL = [*CONFIGS, *MORE_CONFIGS]
SOME = ["llama", "gemma2", "gpt2", "mixtral", "gpt_oss", "mamba", "falcon_h1"]
SETTINGS: dict[str, dict[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt"},
    "admm": {"method": "admm"},
    "2:4": {"pattern": "2:4"},
    "sensitivity": {"allocation": "sensitivity"},
}
CASES = [(name, settings) for name in ALL for settings in SETTINGS]
MOVES_WEIGHTS = ("sparsegpt", "admm")
TWO_INPUTS = ("mamba", "falcon_mamba")  # their dt_proj, as tiny as they are here, are no matrices for 2:4
SEQUENCES = torch.randint(0, VOCABULARY - 1, (6, 24), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Run:
    """A model before and after it was pruned, both as transformers loads them, and the record beside it."""

    before: PreTrainedModel
    after: PreTrainedModel
    folder: Path
    record: dict[str, Any]

    @property
    def matrices(self) -> list[Matrix]:
        """Weights that the record names."""
        return [matrix for matrix in all_matrices(self.after) if matrix.linear in self.record["linears"]]


def all_matrices(model: PreTrainedModel) -> list[Matrix]:
    prefix, blocks = decoder_blocks(model)
    return [matrix for index, block in enumerate(blocks) for matrix in block_matrices(f"{prefix}.{index}", block)]


def write_ids(path: Path, sequences: Tensor = SEQUENCES) -> str:
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in sequences.tolist()))
    return str(path)


def prune(folder: Path, base: PreTrainedModel, **settings: Any) -> Run:
    base.save_pretrained(folder / "base")
    ids = {"calibration": write_ids(folder / "ids.jsonl"), "num_samples": len(SEQUENCES)}
    sparse = sparsify(folder / "base", folder / "sparse", **{"method": "wanda", **ids, **settings})
    loaded = [AutoModelForCausalLM.from_pretrained(place).eval() for place in (folder / "base", sparse)]
    return Run(loaded[0], loaded[1], sparse, json.loads((sparse / SPARSITY).read_text()))


def check_counts(run: Run) -> None:
    found: dict[str, int] = {}
    for matrix in run.matrices:
        name = matrix.linear
        found[name] = found.get(name, 0) + int((matrix.view(run.after) == 0).sum())
    stated = run.record["linears"]
    assert found == {name: linear["zeros"] for name, linear in stated.items()}
    sizes = {name: linear["shape"][0] * linear["shape"][1] for name, linear in stated.items()}
    assert sum(sizes.values()) == sum(matrix.shape[0] * matrix.shape[1] for matrix in run.matrices)
    assert sum(found.values()) / sum(sizes.values()) == pytest.approx(0.5, abs=1e-4)
    assert run.record["achieved"] == pytest.approx(sum(found.values()) / sum(sizes.values()))


def check_the_rest(run: Run, moved: bool) -> None:
    """All but the pruned weights are bitwise the base's, and so are the kept weights where a method moves none."""
    pruned = {run.after.get_parameter(matrix.parameter).data_ptr() for matrix in run.matrices}
    before = run.before.state_dict()
    for name, after in run.after.state_dict().items():
        if after.data_ptr() not in pruned:
            assert torch.equal(after, before[name]), name
        elif not moved:
            assert torch.equal(after, torch.where(after == 0, 0.0, before[name])), name
    assert headers(run.folder) == headers(run.folder.parent / "base")


def headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Return number format and shape of every tensor in a folder's file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_comes_back_half_zero_and_otherwise_unchanged(name: str, tmp_path: Path) -> None:
    run = prune(tmp_path, tiny_model(name, **({"rescale_every": 1} if name == "rwkv" else {})))
    check_counts(run)
    check_the_rest(run, moved=False)
    assert name != "rwkv" or run.after.config.rescale_every == 1  # its halving is undone
    for linear in run.record["linears"].values():
        assert abs(linear["zeros"] - 0.5 * linear["shape"][0] * linear["shape"][1]) <= 4  # an expert, a weight


@pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(*case, marks=() if case[0] in SOME else pytest.mark.slow) for case in CASES],
)
def test_every_method_pattern_and_allocation_comes_back(name: str, settings: str, tmp_path: Path) -> None:
    skip = {"skip": "dt_proj"} if settings == "2:4" and name in TWO_INPUTS else {}
    run = prune(tmp_path, tiny_model(name), **SETTINGS[settings], **skip)
    check_counts(run)
    check_the_rest(run, settings in MOVES_WEIGHTS)
    if settings == "2:4":
        for matrix in run.matrices:
            assert ((matrix.view(run.after) == 0).unflatten(1, (-1, 4)).sum(2) == 2).all(), matrix.name
    if settings == "sensitivity":
        assert len({round(linear["sparsity"], 3) for linear in run.record["linears"].values()}) > 1


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_experts_without_tokens_are_named_and_pruned_by_magnitude(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = torch.full((4, 16), 7)  # equal tokens all go to the same two of four experts
    base = tiny_model("mixtral")
    block = base.get_submodule("model.layers.0")
    names = {matrix.name for matrix in block_matrices("model.layers.0", block)}
    with torch.no_grad():
        unreached = names - wanda.input_norms(base, "model.layers.0", block, list(same)).keys()
    ids = {"calibration": write_ids(tmp_path / "same.jsonl", same), "num_samples": 4}
    with caplog.at_level(logging.WARNING):
        run = prune(tmp_path, base, method=method, precision="fp32", **ids)
    check_counts(run)
    check_the_rest(run, method in MOVES_WEIGHTS)
    named = set(run.record["by_magnitude"])
    assert {name for name in named if ".layers.0." in name} == unreached
    assert len(named) == len(run.record["by_magnitude"]) == 8  # two experts, two matrices each, in two blocks
    assert all(f"no calibration token reached {name}, so it is pruned by magnitude" in caplog.text for name in named)
    by_name = {matrix.name: matrix for matrix in run.matrices}
    for name in named:
        assert torch.equal(by_name[name].view(run.after), smallest_dropped(by_name[name].view(run.before)))
    reached = (by_name[name] for name in names - named)
    assert not all(torch.equal(one.view(run.after), smallest_dropped(one.view(run.before))) for one in reached)


def smallest_dropped(weight: Tensor) -> Tensor:
    """Return the weight with the smaller half of every row at zero."""
    order = weight.abs().sort(dim=1).indices[:, : weight.shape[1] // 2]
    return weight.scatter(1, order, 0.0)
