"""Causal attention of packed rows on a CPU, an example at a time.

torch's attention multiplies whole rows and masks what lies across examples or ahead, and copies the
keys for every head that shares them. Here each example is two products over its own tokens, its
heads in one batch. The products and the softmax between them are one operator, whose backward pass
recomputes the probabilities: it keeps what torch's keeps.

P rows of L tokens, H heads, G heads of keys and values, D features of a head; T tokens of an
example.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from shears.models.properties import keeps_apart, own_model

NAME = "shears_packed"
Segments = Sequence[int]
"""Row, first token and end of each example, one after the other."""


def attend_by_example(model: nn.Module) -> bool:
    """Let a model on a CPU compute torch's attention by example; return whether it does.

    It then must still keep packed examples apart.
    """
    base: Any = own_model(model)
    before = base.config._attn_implementation
    if base.device.type != "cpu" or before != "sdpa":
        return False
    AttentionInterface.register(NAME, packed_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)
    if not keeps_apart(model):
        base.set_attn_implementation(before)
        return False
    return True


def packed_attention_forward(  # noqa: PLR0913, PLR0917  # the interface of transformers
    module: nn.Module,
    query: Float[Tensor, "P H L D"],
    key: Float[Tensor, "P G L D"],
    value: Float[Tensor, "P G L D"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "P L H D"], None]:
    """Return the attention of packed rows; torch's for rows that are masked in another way."""
    plain = dropout == 0 and kwargs.get("softcap") is None and kwargs.get("position_bias") is None
    fits = key.shape == value.shape and query.shape[2:] == key.shape[2:] and query.device.type == "cpu"
    segments = causal_segments(attention_mask) if plain and fits and attention_mask is not None else None
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    dtype = _compute_dtype(query, value)
    heads = [each.to(dtype) for each in (query, key, value)]
    output: Tensor = torch.ops.shears.packed_attention(*heads, segments, scale)
    return output, None


def _compute_dtype(query: Tensor, value: Tensor) -> torch.dtype:
    """Return the dtype in which torch's attention computes: autocast's where it is on."""
    if torch.is_autocast_enabled("cpu") and query.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return torch.promote_types(query.dtype, value.dtype)


def causal_segments(mask: Tensor) -> list[int] | None:
    """Return the examples of packed rows as `Segments`; None for any other mask."""
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
        return None
    rows: Bool[Tensor, "P L L"] = mask[:, 0]
    length = rows.shape[-1]
    starts = rows.to(torch.uint8).argmax(-1)  # the first token that each token sees
    tokens = torch.arange(length)
    if not torch.equal(rows, (starts[:, :, None] <= tokens) & (tokens <= tokens[:, None])):
        return None
    if not torch.equal(starts.gather(1, starts), starts):  # a window, which begins at another token for each
        return None
    segments: list[int] = []
    for row, firsts in enumerate((starts == tokens).tolist()):
        begins = [token for token, is_first in enumerate(firsts) if is_first]
        for begin, end in zip(begins, [*begins[1:], length], strict=True):
            segments += (row, begin, end)
    return segments


@torch.library.custom_op("shears::packed_attention", mutates_args=(), device_types="cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor, segments: list[int], scale: float) -> Tensor:
    output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    groups = key.shape[1]
    for row, tokens in _pieces(segments):
        q, k, v = (_grouped(each[row, :, tokens], groups) for each in (query, key, value))
        mixed = torch.bmm(_probabilities(q, k, scale).to(v.dtype), v)
        output[row, tokens] = mixed.view(query.shape[1], -1, query.shape[3]).transpose(0, 1)
    return output


@torch.library.custom_op("shears::packed_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, segments: list[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = (torch.zeros_like(each) for each in (query, key, value))
    groups = key.shape[1]
    for row, tokens in _pieces(segments):
        q, k, v = (_grouped(each[row, :, tokens], groups) for each in (query, key, value))
        g = _grouped(gradient[row, tokens].transpose(0, 1), groups)
        probabilities = _probabilities(q, k, scale)
        of_scores = torch.bmm(g, v.transpose(1, 2)).float()
        of_scores = torch._softmax_backward_data(of_scores, probabilities, -1, torch.float32).mul_(scale).to(q.dtype)
        for result, part in (
            (of_query, torch.bmm(of_scores, k)),
            (of_key, torch.bmm(of_scores.transpose(1, 2), q)),
            (of_value, torch.bmm(probabilities.to(g.dtype).transpose(1, 2), g)),
        ):
            result[row, :, tokens] = part.view(result.shape[1], -1, result.shape[3])
    return of_query, of_key, of_value


def _pieces(segments: Segments) -> Iterator[tuple[int, slice]]:
    for row, begin, end in zip(segments[::3], segments[1::3], segments[2::3], strict=True):
        yield row, slice(begin, end)


def _grouped(heads: Float[Tensor, "H T D"], groups: int) -> Float[Tensor, "G Q D"]:
    """Return the tokens of all heads that share keys one after the other: Q is H / G x T."""
    return heads.reshape(groups, -1, heads.shape[-1])


def _probabilities(query: Float[Tensor, "G Q D"], key: Float[Tensor, "G T D"], scale: float) -> Float[Tensor, "G Q T"]:
    """Return the causal softmax in float32; scores are sums in float32, as in torch's attention."""
    length = key.shape[1]
    scores = torch.bmm(query.float(), key.float().transpose(1, 2)).mul_(scale)
    ahead = torch.full((length, length), float("-inf")).triu_(1)
    scores.view(len(key), -1, length, length).add_(ahead)
    return torch.softmax(scores, -1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.segments = inputs[3]
    ctx.scale = inputs[4]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.shears.packed_attention_backward(gradient, *ctx.saved_tensors, ctx.segments, ctx.scale)
    return *gradients, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
