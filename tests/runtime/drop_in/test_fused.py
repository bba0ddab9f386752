"""An adapter that is packed with its linears is fixed: PEFT can read and save it, any change is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from shears.adapt.elastic import make_elastic
from shears.adapt.space import SearchSpace
from shears.errors import InputError
from shears.runtime.drop_in.linears import FusedLinear
from shears.runtime.drop_in.swap import densify_linears, sparsify_linears
from tests.export.made import IDS, logits
from tests.runtime.drop_in.dropped_in import near, sparse_model

LORA = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
ASKED: dict[str, Callable[[Any], object]] = {
    "switched off": lambda model: model.disable_adapter().__enter__(),
    "changed to other": lambda model: model.set_adapter("other"),
    "joined by another": lambda model: model.add_adapter("third", LORA),
    "merged": lambda model: model.merge_and_unload(),
    "taken off": lambda model: model.unload(),
    "deleted": lambda model: model.delete_adapter("default"),
    "chosen by row": lambda model: model(IDS, adapter_names=["__base__"] * len(IDS)),
}


def adapted() -> Any:
    """A sparse model with two adapters, the first active."""
    torch.manual_seed(0)
    model: Any = get_peft_model(sparse_model(), LORA)
    model.add_adapter("other", LORA)
    return model.eval()


@pytest.mark.parametrize("what", ASKED)
def test_a_change_that_would_have_no_effect_is_refused(what: str) -> None:
    model = adapted()
    before = logits(model)
    assert sparsify_linears(model)
    with pytest.raises(InputError, match=f"cannot be {what}; call densify_linears"):
        ASKED[what](model)
    if what in ("deleted", "chosen by row"):  # PEFT has begun
        return
    torch.testing.assert_close(logits(model), before, **near("kernels"))
    densify_linears(model)
    ASKED[what](model)


def test_the_active_adapter_can_be_set_again_and_none_is_merged() -> None:
    model = adapted()
    sparsify_linears(model)
    model.set_adapter("default", inference_mode=True)
    model.unmerge_adapter()
    assert model.get_model_status().active_adapters == ["default"]
    assert model.get_model_status().enabled


def test_an_adapter_is_saved_whole_while_it_is_packed(tmp_path: Path) -> None:
    model = adapted()
    before = logits(model)
    sparsify_linears(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(sparse_model(), tmp_path).eval()
    torch.testing.assert_close(logits(again), before)


def test_an_adapter_that_is_being_trained_is_not_packed_and_learns() -> None:
    gradients = []
    for packs in (False, True):
        model = adapted().train()
        assert not packs or sparsify_linears(model)
        assert not any(isinstance(module, FusedLinear) for module in model.modules())
        model(IDS, labels=IDS).loss.backward()
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    assert len(gradients[0]) == 8
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_packed_adapter_is_not_made_elastic() -> None:
    model = adapted()
    name = "model.layers.0.self_attn.q_proj"
    sparsify_linears(model)
    with pytest.raises(InputError):
        make_elastic(model, SearchSpace({"a": (3, 1)}, modules={"a": (name,)}))
