"""Every weight of every architecture is seen with the inputs that it is multiplied with, experts one by one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shears.models.blocks import decoder_blocks
from shears.models.blockwise.capture import capturing
from shears.models.blockwise.matrices import Matrix, block_matrices
from tests.tiny import CONFIGS, MORE_CONFIGS, VOCABULARY, tiny_model

IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
TOP_K = 2
ALL = [*CONFIGS, *MORE_CONFIGS]
WITHOUT_CALL = {"mamba": ("dt_proj",), "falcon_mamba": ("dt_proj",), "jamba": ("dt_proj",)}  # weight used on its own
GATED = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "deepseek_v2", "deepseek_v3", "jamba"]
GATED += ["granitemoehybrid", "qwen3_next"]
# architectures with experts and the ends of their stacks' names
MOE = {**dict.fromkeys(GATED, ("gate_up_proj", "down_proj")), "nemotron_h": ("up_proj", "down_proj")}
MOE |= {"jetmoe": ("mlp.input_linear.weight", "mlp.output_linear.weight"), "llama4_text": ("gate_up_proj", "down_proj")}


def run(
    model: PreTrainedModel, index: int, ids: Tensor = IDS, only: list[Matrix] | None = None
) -> tuple[list[Matrix], dict[str, Tensor]]:
    """Return a block's matrices and what a forward of the model multiplies them with, calls one after the other."""
    prefix, blocks = decoder_blocks(model)
    matrices = only or block_matrices(f"{prefix}.{index}", blocks[index])
    found: dict[str, list[Tensor]] = {}

    def receive(matrix: Matrix, inputs: Tensor) -> None:
        found.setdefault(matrix.name, []).append(inputs.clone())  # models go on to change tensors in place

    with torch.no_grad(), capturing(model, blocks[index], matrices, receive):
        model(ids, use_cache=False)
    return matrices, {name: torch.cat(parts) for name, parts in found.items()}


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the outputs of all linears, by where their weight lies: modules may share it (Zamba)."""
    found: dict[int, list[Tensor]] = {}

    def collect(linear: nn.Module, args: Any, output: Tensor) -> None:
        found.setdefault(linear.get_parameter("weight").data_ptr(), []).append(output.flatten(0, -2).clone())

    linears = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    handles = [linear.register_forward_hook(collect) for linear in linears if "Router" not in type(linear).__name__]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", ALL)
def test_inputs_times_the_weight_are_the_outputs_of_every_linear(name: str) -> None:
    model = tiny_model(name)
    for index in range(len(decoder_blocks(model)[1])):
        with outputs_of(model) as outputs:
            matrices, inputs = run(model, index)
        assert inputs.keys() == {matrix.name for matrix in matrices}
        for matrix in (matrix for matrix in matrices if matrix.index is None):
            weight = matrix.view(model)
            assert inputs[matrix.name].shape[1] == matrix.shape[1]
            if weight.data_ptr() in outputs:
                bias = dict(model.get_submodule(matrix.name).named_parameters()).get("bias", torch.zeros(1)).detach()
                found = inputs[matrix.name] @ weight.T + bias
                torch.testing.assert_close(found, torch.cat(outputs[weight.data_ptr()]))
            else:
                assert matrix.name.endswith(WITHOUT_CALL[name])


@contextmanager
def calls_of_experts(block: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Collect (experts, hidden states, chosen experts) of every call of a module with experts."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda experts, args: found.append((experts, args[0], args[1])))
        for name, module in block.named_modules()
        if name.rsplit(".", 1)[-1] == "experts"
    ]
    yield found
    for handle in handles:
        handle.remove()


def by_hand(hidden: Tensor, chosen: Tensor, expert: int) -> Tensor:
    """Return the hidden states of the tokens that chose an expert, found token by token."""
    rows = [hidden[token] for token in range(len(hidden)) if expert in chosen[token].tolist()]
    return torch.stack(rows) if rows else hidden[:0]


def in_order(rows: Tensor) -> Tensor:
    return torch.tensor(sorted(rows.tolist())).reshape(rows.shape)


def activated(experts: nn.Module, expert: int, inputs: Tensor) -> Tensor:
    """Return what the second matrix of an expert is multiplied with, for inputs of the first."""
    parameters = {name: parameter.detach()[expert] for name, parameter in experts.named_parameters()}
    first = parameters["gate_up_proj"]
    product = inputs @ (first if experts.is_transposed else first.T) + parameters.get("gate_up_proj_bias", 0.0)
    apply_gate: Callable[[Tensor], Tensor] = experts._apply_gate  # type: ignore[assignment]
    return apply_gate(product)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager", "batched_mm"])
@pytest.mark.parametrize("name", GATED)
def test_every_expert_gets_the_tokens_that_are_routed_to_it(name: str, implementation: str) -> None:
    model = tiny_model(name)
    model.config._experts_implementation = implementation
    block = decoder_blocks(model)[1][-1]
    with calls_of_experts(block) as calls:
        matrices, inputs = run(model, len(decoder_blocks(model)[1]) - 1)
    ((experts, hidden, chosen),) = calls
    prefix = next(matrix for matrix in matrices if matrix.index is not None).name.rsplit(".", 2)[0]
    for expert in range(4):
        first, second = (inputs[f"{prefix}.{key}.{expert}"] for key in ("gate_up_proj", "down_proj"))
        assert torch.equal(in_order(first), in_order(by_hand(hidden, chosen, expert)))
        torch.testing.assert_close(second, activated(experts, expert, first))
    assert model.config._experts_implementation == implementation
