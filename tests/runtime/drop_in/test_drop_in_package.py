"""Packed models are saved, loaded and run as backends as any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from shears.checkpoints.packed.layout import dense, pack
from shears.errors import InputError
from shears.export.stage import export_adapter
from shears.models.load import load_model, load_with_adapter
from shears.runtime.drop_in.linears import PackedLinear
from shears.runtime.drop_in.swap import DropInBackend, ReadyWeights, sparsify_linears
from shears.runtime.generation.backend import Backend
from tests.checkpoints.packed.test_layout import sparse_weight
from tests.export.made import IDS, activated, half_sparse, super_adapter
from tests.runtime.drop_in.dropped_in import sparse_model


def test_a_model_is_packed_once(path: str) -> None:
    model = sparse_model()
    sparsify_linears(model)
    with pytest.raises(InputError, match="densify_linears"):
        sparsify_linears(model)


def test_a_saved_model_is_the_dense_one(path: str, tmp_path: Path) -> None:
    model: Any = sparse_model()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    sparsify_linears(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved", device="cpu").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def test_weights_of_a_package_are_used_as_they_are(path: str) -> None:
    model = nn.Sequential(nn.Linear(24, 37))
    model[0].weight.data = sparse_weight(37, 24, 0.8)
    other = pack(sparse_weight(37, 24, 0.5, seed=9), "int8")
    sparsify_linears(model, ready=ReadyWeights({"0": other}))
    packed = model[0]
    assert isinstance(packed, PackedLinear)
    assert torch.equal(dense(packed.matrix), dense(other))
    wrapped = nn.ModuleDict({name: nn.Linear(24, 37) for name in ("q", "qq")})
    for linear in wrapped.values():
        linear.weight.data = sparse_weight(37, 24, 0.8)
    sparsify_linears(nn.Sequential(wrapped), ready=ReadyWeights({"q": other}))  # its names begin with `0.`
    found = [dense(linear.matrix) for linear in wrapped.values() if isinstance(linear, PackedLinear)]
    assert [torch.equal(each, dense(other)) for each in found] == [True, False]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"values": "int8", "embeddings": "int8"}),
        ("llama_untied", {"embeddings": "int8"}),
    ],
)
def test_a_package_runs_as_a_backend(name: str, options: dict[str, Any], path: str, tmp_path: Path) -> None:
    adapter = super_adapter(tmp_path / "super", half_sparse(tmp_path / "base", name))
    written = {"format": "package", "values": "fp32", "ranks": "maximal", **options}
    package = export_adapter(adapter, tmp_path / "package", **written)
    backend = DropInBackend(package, threads=1)
    assert isinstance(backend, Backend)
    tokens = IDS[0].tolist()
    expected, got = activated(adapter, "maximal")[0], torch.from_numpy(backend.logits(tokens))
    exact = not options
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 if exact else 0.2)
    stepped = [backend.prefill(0, tokens[:5]), *(backend.step([0], [token])[0] for token in tokens[5:])]
    torch.testing.assert_close(torch.from_numpy(np.stack(stepped)), got[4:], rtol=0, atol=1e-4 if exact else 0.2)
    described = backend.describe()
    assert (described["name"], described["threads"]) == ("drop-in", 1)
    assert described["values"] == ("int8" if options.get("values") else "fp32")
    assert int(str(described["memory_bytes"])) > 10_000
    assert len(backend.packed) == {"gpt2": 8}.get(name, 14)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_starts_from_its_base_runs_as_peft_runs_it(start: Any, path: str, tmp_path: Path) -> None:
    """PEFT takes the start out of the base again when it loads: the package's weights are no longer the model's."""
    base = half_sparse(tmp_path / "base")
    config = LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=start, task_type="CAUSAL_LM")
    model: Any = get_peft_model(load_model(base, device="cpu"), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    written = {"format": "package", "values": "fp32", "model": str(base)}
    package = export_adapter(tmp_path / "adapter", tmp_path / "package", **written)
    with torch.no_grad():
        expected = load_with_adapter(package)[0](input_ids=IDS[:1]).logits[0]
    backend = DropInBackend(package, threads=1)
    torch.testing.assert_close(torch.from_numpy(backend.logits(IDS[0].tolist())), expected, rtol=0, atol=1e-5)
    assert len(backend.packed) >= 10, "linears without an adapter are the package's"
