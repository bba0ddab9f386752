"""Wanda, restated literally and slowly from arXiv 2306.11695 (section 3, algorithm 1); knows nothing of shears.

For every block in order: run the *whole* model on every sequence, one at a time, with hooks on the block's linears
(the blocks before are pruned by then), take the L2 norm of each input feature over all tokens, then sort every output
row's scores |W| * ||X|| and set the lowest floor(sparsity * inputs) to zero. The outputs of a pruned block are the
next run of the whole model.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

BLOCKS = {
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen3": "model.layers",
    "gemma2": "model.layers",
    "phi": "model.layers",
    "phi3": "model.layers",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
    "bloom": "transformer.h",
    "mpt": "transformer.blocks",
    **dict.fromkeys(("falcon", "gptj", "codegen", "gpt_bigcode", "gpt_neo"), "transformer.h"),
    **dict.fromkeys(("qwen2", "gemma", "gemma3_text", "olmo2", "smollm3", "granite", "starcoder2"), "model.layers"),
    **dict.fromkeys(("cohere", "stablelm", "glm4", "recurrent_gemma", "bamba", "falcon_h1", "lfm2"), "model.layers"),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe"), "model.layers"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "qwen3_next", "qwen3_5_text"), "model.layers"),
    "mamba2": "backbone.layers",
}
CHOOSING = ("gate", "router", "shared_expert_gate")  # what decides between experts is not pruned


def is_linear(name: str, module: nn.Module) -> bool:
    """Return whether a module is a linear, by the name of its class; GPT-2's Conv1D is a linear stored transposed."""
    return type(module).__name__ in ("Linear", "FalconLinear", "Conv1D") and name.rsplit(".", 1)[-1] not in CHOOSING


def weights(prefix: str, block: nn.Module) -> dict[str, Tensor]:
    """Return what can be pruned by name, outputs x inputs, in the model's own memory."""
    found: dict[str, Tensor] = {}
    for name, module in block.named_modules():
        if is_linear(name, module):
            stored = module.get_parameter("weight").detach()
            found[f"{prefix}.{name}"] = stored.t() if type(module).__name__ == "Conv1D" else stored
        elif name.endswith(".experts"):
            for stack in ("gate_up_proj", "down_proj"):
                for expert, stored in enumerate(module.get_parameter(stack).detach()):
                    transposed = type(module).__name__ == "GptOssExperts"
                    found[f"{prefix}.{name}.{stack}.{expert}"] = stored.t() if transposed else stored
    return found


@torch.no_grad()
def prune(model: nn.Module, sequences: list[Tensor], sparsity: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Prune the model in place; return {weight: (scores, pruned)}, both outputs x inputs."""
    prefix = BLOCKS[str(model.config.model_type)]  # type: ignore[union-attr]
    found = {}
    for index, block in enumerate(model.get_submodule(prefix).children()):
        norms = input_norms(model, f"{prefix}.{index}", block, sequences)
        for name, weight in weights(f"{prefix}.{index}", block).items():
            scores = weight.double().abs() * norms[name]
            pruned = lowest(scores, sparsity)
            found[name] = (scores, pruned)
            weight[pruned] = 0.0
    return found


@torch.no_grad()
def input_norms(model: nn.Module, prefix: str, block: nn.Module, sequences: list[Tensor]) -> dict[str, Tensor]:
    """Return the L2 norm of every input feature over the tokens of all sequences, in float64, by name."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, inputs: Tensor) -> None:
        seen.setdefault(f"{prefix}.{name}", []).append(inputs.detach().double().reshape(-1, inputs.shape[-1]))

    handles = []
    for name, module in block.named_modules():
        if is_linear(name, module):
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0])))
        elif name.endswith(".experts"):
            handles.append(
                module.register_forward_pre_hook(lambda experts, args, name=name: route(keep, name, experts, *args[:2]))
            )
    for sequence in sequences:
        model(sequence.reshape(1, -1), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).norm(dim=0) for name, parts in seen.items()}


def route(keep: Callable[[str, Tensor], None], name: str, experts: nn.Module, hidden: Tensor, chosen: Tensor) -> None:
    """Hand the inputs of both of an expert's matrices to `keep`, for every token and every expert it chose."""
    for token, best in zip(hidden, chosen.tolist(), strict=True):
        for expert in best:
            keep(f"{name}.gate_up_proj.{expert}", token)
            keep(f"{name}.down_proj.{expert}", between(experts, expert, token))


def between(experts: nn.Module, expert: int, token: Tensor) -> Tensor:
    """Return what an expert's second matrix gets for a token: a gated product of the first one's outputs."""
    first = experts.get_parameter("gate_up_proj")[expert]
    if type(experts).__name__ != "GptOssExperts":
        gate, up = (first @ token).chunk(2)
        return torch.nn.functional.silu(gate) * up
    outputs = token @ first + experts.get_parameter("gate_up_proj_bias")[expert]
    gate, up = outputs[0::2].clamp(max=7.0), outputs[1::2].clamp(min=-7.0, max=7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)  # gpt-oss interleaves both halves and limits them


def lowest(scores: Tensor, sparsity: float) -> Tensor:
    """Return the pruned mask by a full stable sort of every row."""
    pruned = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(scores.shape[0]):
        order = sorted(range(scores.shape[1]), key=scores[row].tolist().__getitem__)
        pruned[row, order[: math.floor(sparsity * scores.shape[1])]] = True
    return pruned
