"""Every weight of every architecture's blocks is a matrix, or kept dense on purpose, or in no linear."""

import pytest
import torch
from torch import nn

from shears.models.blocks import Matrix, block_matrices, decoder_blocks, kept_dense
from tests.tiny import CONFIGS, MORE_CONFIGS, tiny_model

# per architecture, the ends of names that are no plain linears: stacks of experts, what chooses experts, no matrices
GATED = ("experts.gate_up_proj", "experts.down_proj")
STACKS = {
    "jetmoe": ("input_linear.weight", "output_linear.weight"),
    "nemotron_h": ("experts.up_proj", "experts.down_proj"),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "deepseek_v2"), GATED),
    **dict.fromkeys(("deepseek_v3", "llama4_text", "jamba", "granitemoehybrid", "qwen3_next"), GATED),
}
CHOOSING = {
    "jetmoe": ("router.layer.weight",),
    "qwen2_moe": ("mlp.gate.weight", "shared_expert_gate.weight"),
    "qwen3_next": ("mlp.gate.weight", "shared_expert_gate.weight"),
    "nemotron_h": ("mixer.gate.weight",),
    **dict.fromkeys(("gpt_oss", "granitemoe", "granitemoehybrid", "jamba", "llama4_text"), ("router.weight",)),
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"), ("mlp.gate.weight",)),
}
CONV = ("conv1d.weight",)
NO_MATRICES = {
    "rwkv": ("time_mix_key", "time_mix_value", "time_mix_receptance"),
    "recurrent_gemma": ("conv_1d.weight", "input_gate_weight", "recurrent_gate_weight"),
    "zamba": ("x_proj_weight", "dt_proj_weight", "A_log", "mamba.D", *CONV),
    "lfm2": ("conv.conv.weight",),
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), ("A_log", *CONV)),
    **dict.fromkeys(("mamba2", "bamba", "falcon_h1", "zamba2", "nemotron_h", "granitemoehybrid"), CONV),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), CONV),
}
ALL = [*CONFIGS, *MORE_CONFIGS]


def expected(name: str, block: nn.Module) -> dict[str, set[str]]:
    """Return the parameters of a block of two or more dimensions by what should become of them, from the tables."""
    found: dict[str, set[str]] = {"matrix": set(), "dense": set(), "uncovered": set()}
    for key, parameter in block.named_parameters():
        if key.endswith(CHOOSING.get(name, ())):
            found["dense"].add(key)
        elif key.endswith(NO_MATRICES.get(name, ())):
            found["uncovered"].add(key)
        elif key.endswith(STACKS.get(name, ())) or (parameter.ndim == 2 and key.endswith(".weight")):
            found["matrix"].add(key)
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_weight_is_a_matrix_or_dense_or_in_no_linear(name: str) -> None:
    prefix, blocks = decoder_blocks(tiny_model(name))
    for index, block in enumerate(blocks):
        due = expected(name, block)
        matrices = block_matrices(f"{prefix}.{index}", block)
        assert {matrix.parameter.removeprefix(f"{prefix}.{index}.") for matrix in matrices} == due["matrix"]
        assert kept_dense(block).keys() == due["dense"]


@pytest.mark.parametrize("name", ALL)
def test_writing_to_a_view_changes_the_model(name: str) -> None:
    model = tiny_model(name)
    prefix, blocks = decoder_blocks(model)
    matrices = [m for index, block in enumerate(blocks) for m in block_matrices(f"{prefix}.{index}", block)]
    assert len({matrix.name for matrix in matrices}) == len(matrices)
    for number, matrix in enumerate(matrices):
        view = matrix.view(model)
        assert tuple(view.shape) == matrix.shape
        view[-1, 0] = 1000.0 + number  # last output, first input
        assert stored(model, matrix) == 1000.0 + number


def stored(model: nn.Module, matrix: Matrix) -> float:
    """Return the weight of the last output and the first input, looked up by strides of the stored parameter."""
    parameter = model.get_parameter(matrix.parameter).detach()
    outputs, inputs = matrix.shape
    start = 0 if matrix.index is None else matrix.index * outputs * inputs
    return float(parameter.flatten()[start + (outputs - 1 if matrix.transposed else (outputs - 1) * inputs)])


class Experts(nn.Module):
    """Two stacks for `num_experts` experts."""

    def __init__(self, count: int, first: tuple[int, int], then: tuple[int, int]) -> None:
        super().__init__()
        self.num_experts = count
        self.up = nn.Parameter(torch.zeros(count, *first))
        self.up_bias = nn.Parameter(torch.zeros(count, max(first)))
        self.down = nn.Parameter(torch.zeros(count, *then))


@pytest.mark.parametrize(
    ("first", "then", "transposed"),
    [
        ((12, 4), (4, 6), False),  # 2 F x H, H x F
        ((4, 12), (6, 4), True),  # H x 2 F, F x H
        ((4, 4), (4, 2), False),  # H = 2 F
        ((4, 4), (2, 4), True),
        ((4, 4), (4, 4), False),  # nothing to tell by: as nn.Linear has it
    ],
)
def test_the_orientation_of_unmarked_experts_follows_from_their_shapes(
    first: tuple[int, int], then: tuple[int, int], transposed: bool
) -> None:
    block = nn.ModuleDict({"experts": Experts(3, first, then)})
    matrices = block_matrices("h", block)
    assert [matrix.name for matrix in matrices] == [
        *(f"h.experts.up.{index}" for index in range(3)),
        *(f"h.experts.down.{index}" for index in range(3)),
    ]
    assert {matrix.transposed for matrix in matrices} == {transposed}
    assert matrices[0].shape == (first[::-1] if transposed else first)


def test_linears_with_as_many_outputs_as_there_are_experts_are_not_all_routers() -> None:
    # as in Qwen3-Next 80B: 512 experts, 512 key features, 512 features of the shared expert
    block = nn.ModuleDict(
        {
            "k_proj": nn.Linear(8, 6),
            "mlp": nn.ModuleDict(
                {
                    "gate": nn.Linear(8, 6),
                    "experts": Experts(6, (12, 8), (8, 6)),
                    "shared_expert": nn.ModuleDict({"gate_proj": nn.Linear(8, 6), "down_proj": nn.Linear(6, 8)}),
                    "shared_expert_gate": nn.Linear(8, 1),
                }
            ),
        }
    )
    assert kept_dense(block) == {"mlp.gate.weight": 48, "mlp.shared_expert_gate.weight": 8}
