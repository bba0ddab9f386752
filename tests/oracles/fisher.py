"""The Fisher information's diagonal by one ordinary backward of the whole model a sequence; knows nothing of shears.

For every sequence by itself: the summed negative log-likelihood of each next token, its gradient with respect to every
weight, squared. Sums over the sequences; of every weight (outputs x inputs) the sums over its rows and columns.
"""

import torch
from torch import Tensor, nn

from tests.oracles.wanda import BLOCKS, is_linear


def loss(model: nn.Module, sequence: Tensor) -> Tensor:
    """Return the summed negative log-likelihood of every token but the first."""
    probabilities = model(sequence[None], use_cache=False).logits[0].log_softmax(-1)
    parts: list[Tensor] = [probabilities[at, token] for at, token in enumerate(sequence[1:].tolist())]
    return -torch.stack(parts).sum()


def squared_gradients(model: nn.Module, sequences: list[Tensor]) -> dict[str, Tensor]:
    """Return the summed squared gradients by name of the parameter, as it is stored. Leaves gradients behind."""
    model.requires_grad_(True)
    found: dict[str, Tensor] = {}
    for sequence in sequences:
        model.zero_grad(set_to_none=True)
        loss(model, sequence).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = found.get(name, 0.0) + parameter.grad.double() ** 2
    return found


def sums(model: nn.Module, sequences: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the row and the column sums of every weight of the decoder blocks, experts one by one."""
    squares = squared_gradients(model, sequences)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    prefix = BLOCKS[str(model.config.model_type)]  # type: ignore[union-attr]
    for name, module in model.get_submodule(prefix).named_modules(prefix=prefix):
        if is_linear(name, module):
            rows, columns = squares[f"{name}.weight"].sum(1), squares[f"{name}.weight"].sum(0)
            found[name] = (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)
        elif name.endswith(".experts"):
            for stack in ("gate_up_proj", "down_proj"):
                for expert, matrix in enumerate(squares[f"{name}.{stack}"]):
                    found[f"{name}.{stack}.{expert}"] = (matrix.sum(1), matrix.sum(0))
    return found
