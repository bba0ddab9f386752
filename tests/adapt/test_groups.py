"""Groups follow the recipe, and groups that do not fit the model are refused."""

import pytest

from shears.adapt.prepare import add_lora, build_space
from shears.config import TrainConfig
from shears.errors import InputError
from tests.tiny import tiny_model


def test_groups_follow_the_recipe() -> None:
    space = build_space(tiny_model("llama"), ("q_proj+k_proj+v_proj", "up_proj"), (4, 2))
    assert sorted(space.ranks) == [
        "layers.0.q_proj+k_proj+v_proj", "layers.0.up_proj", "layers.1.q_proj+k_proj+v_proj", "layers.1.up_proj",
    ]  # fmt: skip
    assert space.modules["layers.1.q_proj+k_proj+v_proj"] == tuple(
        f"model.layers.1.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")
    )


def test_groups_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(
        InputError,
        match="groups must name linears of this model: no linear matches target 'q_porj'.*did you mean 'q_proj'",
    ):
        build_space(tiny_model("llama"), ("q_porj",), (4, 2))
    with pytest.raises(InputError, match="must belong to one group"):
        build_space(tiny_model("llama"), ("q_proj", "q_proj+k_proj"), (4, 2))


@pytest.mark.parametrize(
    ("name", "group", "usable"), [("llama", "q_proj+k_proj", 32), ("llama", "k_proj", 16), ("gpt2", "c_fc", 32)]
)
def test_a_rank_that_no_linear_of_a_group_can_use_is_refused(name: str, group: str, usable: int) -> None:
    """The keys of this model have 16 outputs of 32 inputs; in a group with its queries they may get more."""
    assert build_space(tiny_model(name), (group,), (usable, 2)).max_rank == usable
    with pytest.raises(
        InputError, match=f"must be at most {usable}, the most that .* can use, got {usable + 1}; lower"
    ):
        build_space(tiny_model(name), (group,), (usable + 1, 2))


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("qwen3_moe", "down_proj", r"puts none on model\.layers\.0\.mlp\.down_proj.*experts\); leave it out of groups"),
        (
            "deepseek_v3",
            "up_proj",
            "as the experts', leave them out of groups .*up_proj without also",
        ),
        (
            "mamba",
            "out_proj",
            "that PEFT supports, got its error: .*incompatible with Mamba.*; leave them out",
        ),
    ],
)
def test_linears_that_peft_puts_no_lora_on_are_refused_in_one_line(name: str, group: str, message: str) -> None:
    """In mixtures PEFT takes the names that experts once had for their stacks, also where a dense layer has them."""
    model = tiny_model(name)
    with pytest.raises(InputError, match=message) as caught:
        add_lora(
            model, build_space(model, (group,), (4, 2)), TrainConfig(data="-", ranks=(4, 2), alpha=4, groups=(group,))
        )
    assert "\n" not in str(caught.value)


def test_a_subclass_of_linear_that_returns_something_else_is_refused() -> None:
    """Routers of Llama 4 return their choice beside the logits; linears of Falcon are linears by another name."""
    with pytest.raises(InputError, match=r"layers\.1\.feed_forward\.router of .* is a Llama4Router.*leave it out"):
        build_space(tiny_model("llama4_text"), ("q_proj", "router"), (4, 2))
    assert build_space(tiny_model("falcon"), ("query_key_value",), (4, 2)).size == 4
