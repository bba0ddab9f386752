"""merged-sparse of an adapter trained without the mask: zeros stay, outputs come as near as least squares gets them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from shears.data.calibration import calibration_batches
from shears.errors import InputError
from shears.export import merge
from shears.export.peft import export_adapter
from shears.models.blocks import weight_oi
from shears.models.ref import load_tokenizer, resolve
from shears.records.artifacts import SEARCH_SPACE, weights_fingerprint, write_json
from shears.sparsity.admm import REFIT_DAMPING as DAMPING
from tests.export.made import half_sparse, stock, super_adapter, weights
from tests.oracles import least_squares

OPTIONS: dict[str, Any] = {
    "format": "merged-sparse", "sub_adapter": "maximal", "num_samples": 8, "sequence_length": 64, "device": "cpu"
}  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Text of 3,000 bytes (one token each) without repeated lines."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number} times {number + 7} is {number * (number + 7)}. " for number in range(11, 150)))
    return path


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with float64 oracles on any machine: without bf16."""
    monkeypatch.setattr(merge, "autocast", lambda *_: torch.autocast("cpu", enabled=False))


def inputs_of(model: PreTrainedModel, name: str, tokens: Tensor) -> Tensor:
    """What goes into a linear (tokens x features)."""
    seen: list[Tensor] = []
    handle = model.base_model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=tokens)
    handle.remove()
    return seen[0].flatten(0, 1)


def merged_dense(adapter: Path, base: Path) -> dict[str, Tensor]:
    """W + scaling B A (O x I) of every adapted linear, by PEFT's own merging."""
    peft_model = PeftModel.from_pretrained(stock(base), adapter)
    adapted = [name for name, module in peft_model.base_model.model.base_model.named_modules()
               if isinstance(module, LoraLayer)]  # fmt: skip
    model = peft_model.merge_and_unload()
    return {name: weight_oi(model.base_model.get_submodule(name)).data for name in adapted}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_linear_is_the_best_that_keeps_the_zeros(tmp_path: Path, text: Path, name: str) -> None:
    base = half_sparse(tmp_path / "base", name)
    adapter = super_adapter(tmp_path / "super", base)
    out = export_adapter(adapter, tmp_path / "out", calibration=str(text), **OPTIONS)
    drawn = calibration_batches(str(text), load_tokenizer(resolve(base)), 8, 64, 2, 0, trained="alpaca")
    model, tokens, dense = stock(out), torch.cat(drawn.batches), merged_dense(adapter, base)
    before, after = weights(base), weights(out)
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before if name not in dense)
    for linear, whole in dense.items():
        kept = weight_oi(stock(base).base_model.get_submodule(linear)).data != 0
        seen = inputs_of(model, linear, tokens)  # behind projected linears alone, as when it was fitted
        found = weight_oi(model.base_model.get_submodule(linear)).data
        best = least_squares.fit(whole, kept, seen, DAMPING)
        errors = [float(least_squares.errors(whole, weight, seen, DAMPING).sum())
                  for weight in (whole * kept, found, best)]  # fmt: skip
        assert errors[2] * (1 - 1e-6) <= errors[1] <= errors[2] + 0.02 * (errors[0] - errors[2])


def test_the_calibration_text_is_the_training_data_by_default(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{a} + {a} =", "completion": f"{2 * a}"}) + "\n" for a in range(200))
    )
    base = half_sparse(tmp_path / "base")
    adapter = super_adapter(tmp_path / "super", base, data=rows)
    outs = [
        export_adapter(adapter, tmp_path / "by_default", **OPTIONS),
        export_adapter(adapter, tmp_path / "named", calibration=str(rows), **OPTIONS),
        export_adapter(export_adapter(adapter, tmp_path / "sub", sub_adapter="maximal"), tmp_path / "of_sub",
                       **{**OPTIONS, "sub_adapter": None}),
    ]  # fmt: skip
    assert len({weights_fingerprint(out) for out in outs}) == 1
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    write_json(adapter / SEARCH_SPACE, record | {"config": {}})
    with pytest.raises(InputError, match=r"needs a text .* \(none\) .*; add --calibration"):
        export_adapter(adapter, tmp_path / "out", **OPTIONS)
    assert not list(tmp_path.glob("out*"))
