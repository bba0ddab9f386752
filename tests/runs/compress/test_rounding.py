"""The share of int4's error that known inputs leave is that of outputs compared one by one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shears.config import CompressConfig
from shears.models.ref import resolve
from shears.quantization.grid import quantize
from shears.quantization.with_inputs import round_with_inputs
from shears.runs.compress.added_losses import measured_losses, share_of_nearest
from shears.runs.compress.exam import Texts
from tests.tiny import save_tiny, tiny_model


def _inputs(model: nn.Module, linear: nn.Module, batches: list[Tensor]) -> Tensor:
    """Return what a linear multiplies, in float64."""
    seen = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    for ids in batches:
        model(ids)
    hook.remove()
    return torch.cat(seen).double()


@torch.no_grad()
def test_the_share_compares_outputs_of_the_second_and_the_last_quarter() -> None:
    model = tiny_model(num_hidden_layers=4)
    text, held_out = (torch.randint(0, 200, (4, 64), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    share = share_of_nearest(model, [text[:2], text[2:]], held_out)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    errors = {"known": 0.0, "nearest": 0.0}
    for place in (1, 3):
        for linear in model.model.layers[place].modules():
            if not isinstance(linear, nn.Linear):
                continue
            known, unseen = _inputs(model, linear, [text]), _inputs(model, linear, [held_out])
            weight = linear.weight
            rounded = round_with_inputs(weight, weight != 0, (known.T @ known).float())
            for name, each in (("known", rounded), ("nearest", quantize(weight, "int4"))):
                errors[name] += (unseen @ (weight - each.dense()).double().T).square().sum().item()
    assert share == pytest.approx(errors["known"] / errors["nearest"], rel=0.01)
    assert share < 1


def test_a_model_on_the_grid_has_no_smaller_error() -> None:
    model = tiny_model()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    ids = torch.arange(64)[None]
    assert share_of_nearest(model, [ids], ids) == 1.0


def test_what_int4_adds_counts_by_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = resolve(save_tiny(tmp_path / "tiny"))
    text = tmp_path / "text.txt"
    text.write_text("what is counted, is counted by its share\n" * 40)
    config = CompressConfig(data=str(text), target="1GB", sequence_length=16, num_samples=4)

    def added(share: float) -> float:
        monkeypatch.setattr("shears.runs.compress.added_losses.share_of_nearest", lambda *_: share)
        return measured_losses(model, [(0.0, "int4", "keep")], config, Texts(text, text), "question").by_values["int4"]

    sign = 1 if added(1000.0) else -1  # rounding may lower the loss of random weights, which counts as 0
    whole = added(sign * 1000.0)
    assert whole > 0
    assert added(sign * 500.0) == pytest.approx(whole / 2)
