"""PEFT's variants of LoRA: elastic if they call A, refused if they bypass it."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig

from shears.adapt.elastic import lora_layers, make_elastic
from shears.adapt.prepare import build_space
from shears.adapt.space import SearchSpace
from shears.errors import InputError
from tests.adapt.test_elastic import logits
from tests.tiny import tiny_model

GROUPS = ("q_proj+k_proj+v_proj", "up_proj")


def variant_model(**variant: Any) -> tuple[PeftModel, SearchSpace]:
    """A tiny model with a random adapter of a variant."""
    model = tiny_model("llama")
    space = build_space(model, GROUPS, (6, 4, 2))
    targets = [linear for linears in space.modules.values() for linear in linears]
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=6, target_modules=targets, init_lora_weights=False, **variant)), space


def test_a_configuration_of_dora_is_dora_without_the_other_ranks() -> None:
    model, space = variant_model(use_dora=True)
    elastic = make_elastic(model, space)
    whole = logits(model)
    elastic.activate(space.minimal())
    masked = logits(model)
    assert not torch.allclose(masked, whole, atol=1e-3)
    elastic.remove()
    for _, layer in lora_layers(model, "default"):
        layer.lora_B["default"].weight.data[:, 2:] = 0
    torch.testing.assert_close(masked, logits(model))


@pytest.mark.parametrize(
    "variant", [{"velora_config": VeloraConfig(num_groups=8)}, {"monteclora_config": MontecloraConfig()}]
)
def test_variants_that_bypass_lora_a_are_refused(variant: dict[str, Any]) -> None:
    model, space = variant_model(**variant)
    with pytest.raises(InputError, match="behind lora_A, which (Velora|Monteclora)LinearVariant of"):
        make_elastic(model, space)
