"""Groups follow the recipe or, with auto, the model's structure; groups that do not fit the model are refused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from shears.adapt.groups import add_lora, auto_groups, build_space, with_auto
from shears.checkpoints.without_code import empty_model
from shears.config import TrainConfig
from shears.errors import InputError
from tests.tiny import CONFIGS, MORE_CONFIGS, save_tiny, tiny_model

LLAMA = "q_proj+k_proj+v_proj,up_proj,down_proj"
ATTENTION = "q_proj+k_proj+v_proj"  # alone: blocks with experts, whose MLPs get no adapter
NEOX = "query_key_value,dense_h_to_4h,dense_4h_to_h"
HYBRID = "up_proj,down_proj,q_proj+k_proj+v_proj"  # attention in later blocks
LATENT = "q_a_proj+q_b_proj+kv_a_proj_with_mqa+kv_b_proj"
DELTA = "in_proj_qkv+in_proj_z+in_proj_b+in_proj_a"
OTHERS = {
    **dict.fromkeys(("gpt_neox", "bloom", "falcon", "falcon_new", "falcon_alibi"), NEOX),
    **dict.fromkeys(("opt", "phi"), "q_proj+k_proj+v_proj,fc1,fc2"),
    "phi3": "qkv_proj,gate_up_proj,down_proj",
    **dict.fromkeys(("gpt2", "gpt_bigcode"), "c_attn,c_fc,mlp.c_proj"),
    **dict.fromkeys(("starcoder2", "gpt_neo"), "q_proj+k_proj+v_proj,c_fc,c_proj"),
    **dict.fromkeys(("glm4", "zamba2"), "q_proj+k_proj+v_proj,gate_up_proj,down_proj"),
    "mpt": "Wqkv,up_proj,down_proj",
    "gptj": "q_proj+k_proj+v_proj,fc_in,fc_out",
    "codegen": "qkv_proj,fc_in,fc_out",
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "llama4_text"), ATTENTION),
    **dict.fromkeys(("jamba", "nemotron_h", "granitemoehybrid"), ATTENTION),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), LATENT),
    "jetmoe": "kv_proj",
    "rwkv": "attention.key+attention.value+attention.receptance",
    **dict.fromkeys(("recurrent_gemma", "bamba", "falcon_h1"), HYBRID),
    "lfm2": "w3,w2,q_proj+k_proj+v_proj",
    "qwen3_next": "in_proj_qkvz+in_proj_ba,q_proj+k_proj+v_proj",
    "qwen3_5_text": f"{DELTA},{HYBRID}",
}  # fmt: skip
NONE = ("mamba", "mamba2", "falcon_mamba")


@pytest.mark.parametrize("name", [name for name in (*CONFIGS, *MORE_CONFIGS) if name not in NONE])
def test_every_architecture_has_its_groups(name: str) -> None:
    kind, settings = {**CONFIGS, **MORE_CONFIGS}[name]
    model = empty_model(Path(name), AutoConfig.for_model(kind, **settings), torch.float32)
    assert ",".join(auto_groups(model)) == OTHERS.get(name, LLAMA)


@pytest.mark.parametrize("name", ["gpt2", "opt", "mixtral", "deepseek_v3", "lfm2"])
def test_the_groups_get_an_adapter(name: str) -> None:
    """Each is the only owner of its linears, and PEFT takes them."""
    model = tiny_model(name)
    space = build_space(model, ("auto",), (4, 2))
    assert space == build_space(model, auto_groups(model), (4, 2))
    adapted = add_lora(model, space, TrainConfig(data="-", ranks=(4, 2), alpha=4))
    adapted(input_ids=torch.arange(6)[None], use_cache=False).logits.sum().backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad)


def test_groups_of_a_folder_need_no_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    assert with_auto(("auto", "o_proj"), empty_model(folder)) == (*LLAMA.split(","), "o_proj")


def test_groups_follow_the_recipe() -> None:
    space = build_space(tiny_model("llama"), ("q_proj+k_proj", "up_proj"), (4, 2))
    assert sorted(space.ranks) == [
        "layers.0.q_proj+k_proj", "layers.0.up_proj", "layers.1.q_proj+k_proj", "layers.1.up_proj",
    ]  # fmt: skip
    assert space.modules["layers.1.q_proj+k_proj"] == tuple(f"model.layers.1.self_attn.{n}_proj" for n in "qk")


@pytest.mark.parametrize(
    ("name", "groups", "ranks", "message"),
    [
        ("llama", ("q_porj",), (4, 2), "no linear matches target 'q_porj'.*did you mean 'q_proj'"),
        ("llama", ("q_proj", "q_proj+k_proj"), (4, 2), "must be in one group"),
        ("llama", ("k_proj",), (17, 2), "must be at most 16, .* got 17"),  # 16 outputs of 32 inputs
        ("gpt2", ("c_fc",), (33, 2), "must be at most 32, .* got 33"),
        (
            "mamba2",
            ("auto",),
            (4, 2),
            "Mamba2ForCausalLM has none .*; set groups to some of its linears: in_proj, out_proj",
        ),
        ("deepseek_v3", ("up_proj",), (4, 2), "groups cannot be used: .*up_proj without also"),  # PEFT's: experts
        ("mamba", ("out_proj",), (4, 2), "groups cannot be used: .*incompatible with Mamba"),
    ],
)
def test_groups_that_do_not_fit_the_model_are_refused(
    name: str, groups: tuple[str, ...], ranks: tuple[int, ...], message: str
) -> None:
    model = tiny_model(name)
    with pytest.raises(InputError, match=message) as caught:
        add_lora(model, build_space(model, groups, ranks), TrainConfig(data="-", ranks=ranks, alpha=4))
    assert "\n" not in str(caught.value)
