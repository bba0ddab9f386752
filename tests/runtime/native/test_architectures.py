"""Which models the native decoder takes, and why it leaves others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from shears.errors import InputError
from shears.runtime.native.architectures import ARCHITECTURES, plan_of
from tests.runtime.native.decoders import LONGROPE, MODELS, ROPES
from tests.tiny import CONFIGS, MORE_CONFIGS, tiny_model

ROOT = Path(__file__).parents[3]
ALL_CONFIGS = CONFIGS | MORE_CONFIGS
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def config_of(name: str, **changes: Any) -> Any:
    kind, settings = ALL_CONFIGS[name]
    return AutoConfig.for_model(kind, **{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "activations silu, swish, gelu_pytorch_tanh, not gelu"),
        ({"rope_parameters": HALF}, "heads that rotate as a whole, not by a share of 0.5"),
        ({"head_dim": 512}, "heads of an even length up to 256, not 512"),
        ({"rope_parameters": DYNAMIC}, "positions of kind default, linear, llama3, yarn, longrope, not dynamic"),
    ],
)
def test_what_a_covered_architecture_may_not_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(config_of("llama", **changes))


@pytest.mark.parametrize("name", MODELS)
def test_frequencies_are_those_of_the_model(name: str) -> None:
    kind, changes = MODELS[name]
    model = tiny_model(kind, **changes)
    plan = plan_of(model.config)
    theirs: Any = model.get_submodule("model.rotary_emb")
    if plan.local_frequencies is None:
        assert torch.equal(plan.inverse_frequencies, theirs.inv_freq)
        assert plan.rope_scale == theirs.attention_scaling
    else:
        assert torch.equal(plan.inverse_frequencies, theirs.full_attention_inv_freq)
        assert torch.equal(plan.local_frequencies, theirs.sliding_attention_inv_freq)
    assert (plan.rope_scale != 1) == (changes.get("rope_parameters") in (ROPES["yarn"], LONGROPE))


def test_the_page_lists_every_architecture() -> None:
    page = (ROOT / "docs" / "internals" / "runtime.md").read_text()
    rows = [cells[1] for line in page.splitlines() if len(cells := line.split(" ")) > 1 and cells[1] in ARCHITECTURES]
    assert rows == [*ARCHITECTURES]


@pytest.mark.parametrize("changes", [{"rope_parameters": {"rope_theta": "many", "rope_type": "default"}},
                                     {"rope_parameters": {"rope_type": "default"}}, {"rope_parameters": None},
                                     {"num_attention_heads": 0, "head_dim": None}, {"head_dim": "many"},
                                     {"num_hidden_layers": "two"}])  # fmt: skip
def test_a_config_of_other_values_is_refused_in_one_line(changes: dict[str, Any]) -> None:
    config = config_of("llama")
    for name, value in changes.items():
        object.__setattr__(config, name, value)
    config.name_or_path = "folder"
    with pytest.raises(InputError, match="^folder/config.json cannot be read: "):
        plan_of(config)
