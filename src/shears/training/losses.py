"""The loss of completion tokens, in training and scoring: logits only where a label needs them.

B examples, P packed rows of L tokens, T tokens, K positions that carry labels, V words of the
vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shears.data.example import IGNORED
from shears.models.blocks import replaced_forwards
from shears.models.properties import forward_parameters, own_model

PIECE = 2**24  # logits that are computed together: 64 MiB in float32, held three times


def kept_logits(labels: Int[Tensor, "B T"]) -> int:
    """Return how many trailing positions predict all labels: from the one before the first."""
    labelled = (labels != IGNORED).any(dim=0).nonzero()
    return int(labels.shape[1] - labelled[0].item() + 1) if len(labelled) else 1


def trailing_logits(model: nn.Module, batch: Mapping[str, Tensor], keep: int) -> Float[Tensor, "B K V"]:
    """Return the logits of the last `keep` positions, and compute no others if the model can.

    Labels, and keys of the batch that the forward does not take (such as position_ids), are left
    out.
    """
    takes = forward_parameters(model)
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name in takes - {"labels"}}
    if "logits_to_keep" in takes:
        inputs["logits_to_keep"] = keep
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[:, -keep:]


class TokenLosses(NamedTuple):
    """Losses at K positions in float32, 0 without a label; their targets, and rows or examples."""

    losses: Float[Tensor, " K"]
    targets: Int[Tensor, " K"]
    rows: Int[Tensor, " K"]


class Predictions(NamedTuple):
    """Logits at K positions, the target of each, and its row or example."""

    logits: Float[Tensor, "K V"]
    targets: Int[Tensor, " K"]
    rows: Int[Tensor, " K"]

    def losses(self) -> Float[Tensor, " K"]:
        """Return the negative log-likelihood of each target in float32, 0 without a label."""
        return torch.nn.functional.cross_entropy(
            self.logits.float(), self.targets, ignore_index=IGNORED, reduction="none"
        )


def padded_predictions(model: nn.Module, batch: Mapping[str, Tensor]) -> Predictions:
    """Return the predictions of all rows from the position before the first label of any row.

    `batch` holds input_ids, attention_mask, position_ids and labels, padded on the left:
    completions end together, so that K is about the number of rows times the longest completion.
    """
    labels = batch["labels"]
    keep = min(kept_logits(labels), labels.shape[1])
    logits = trailing_logits(model, batch, keep)[:, :-1]
    targets = labels[:, labels.shape[1] - keep + 1 :]
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand(targets.shape)
    return Predictions(logits.flatten(0, 1), targets.flatten(), rows.flatten())


def completion_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
    """Return each labelled token's negative log-likelihood in float32, 0 without a label.

    `batch` is as in `padded_predictions`.
    """
    return padded_predictions(model, batch).losses().view(len(batch["labels"]), -1)


def packed_predictions(model: nn.Module, batch: Mapping[str, Tensor]) -> Predictions:
    """Return the predictions at the K positions before the labels of packed rows.

    `batch` holds input_ids, position_ids, labels and examples, each Int "P L" (see `data.packing`).
    The head runs on these positions only; without any label, on one position without a target.
    """
    predicting = labelled_positions(batch["labels"])
    logits = logits_at(model, {name: batch[name] for name in ("input_ids", "position_ids")}, predicting)
    return Predictions(logits, batch["labels"].roll(-1, dims=1)[predicting], batch["examples"][predicting])


def packed_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, " K"], Int[Tensor, " K"]]:
    """Return the losses of the K labelled tokens of packed rows, and the example of each."""
    predictions = packed_predictions(model, batch)
    return predictions.losses(), predictions.rows


def logits_at(model: nn.Module, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Float[Tensor, "K V"]:
    """Return the logits at the K wanted positions; compute no others if the head can be hooked.

    Labels, and keys of the batch that the forward does not take (such as position_ids), are left
    out.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name in forward_parameters(model) - {"labels"}}

    # transformers' `logits_to_keep` selects the same positions of every row, and packed rows need
    # different ones
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of positions is not static
    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[wanted][None], *args[1:]) if hidden.shape[:2] == wanted.shape else args

    head = own_model(model).get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(choose) if isinstance(head, nn.Module) else None
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[wanted] if logits.shape[:2] == wanted.shape else logits.flatten(0, -2)


class PieceLoss(NamedTuple):
    """A loss by position, and how many positions have their logits at once.

    `compute(logits, piece, with_gradient)` returns the losses of a slice of the positions, and if
    asked the gradients by its logits, of a loss that weighs `scale`, in the logits' dtype. It may
    overwrite the logits.
    """

    compute: Callable[[Float[Tensor, "P V"], slice, bool], tuple[Float[Tensor, " P"], Float[Tensor, "P V"] | None]]
    rows: int


class InPieces(torch.autograd.Function):
    """A loss behind a frozen head, some positions at a time: no logits outlive their piece.

    The gradient is computed with the loss, for a weight `scale` of every loss, and multiplied by
    what the backward pass brings over `scale`: exactly 1 where that is `scale`, so that its logits
    are rounded as autograd would round them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "K H"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        loss: PieceLoss,
        scale: float,
    ) -> Float[Tensor, " K"]:
        ctx.scale = scale
        weight = weight.to(product_dtype(hidden))  # once, where autocast would convert it for every piece
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for piece in pieces(len(hidden), loss.rows):
            logits = nn.functional.linear(hidden[piece], weight, bias)
            losses[piece], by_logits = loss.compute(logits, piece, gradient is not None)
            if gradient is not None and by_logits is not None:
                gradient[piece] = by_logits @ weight
        ctx.save_for_backward(*([] if gradient is None else [gradient]))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, " K"]) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / ctx.scale)[:, None].to(gradient.dtype), None, None, None, None


def pieces(positions: int, rows: int) -> Iterator[slice]:
    """Yield the slices of positions that are computed together, `rows` each."""
    return (slice(start, start + rows) for start in range(0, positions, rows))


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which a linear multiplies: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _Buffers:
    """Memory that the pieces share: new pages for each of them cost as much time as the softmax.

    K rows of a piece, at most `rows`; V words.
    """

    def __init__(self, rows: int, words: int, device: torch.device) -> None:
        self.wide = torch.empty(rows, words, device=device, dtype=torch.float32)
        self.likelihoods = torch.empty_like(self.wide)
        self.weights = torch.zeros_like(self.wide)

    def log_softmax(self, logits: Float[Tensor, "K V"]) -> Float[Tensor, "K V"]:
        """Return the log-likelihoods in float32."""
        count = len(logits)
        return torch.log_softmax(self.wide[:count].copy_(logits), -1, out=self.likelihoods[:count])

    def gradient(self, targets: Int[Tensor, " K"], scale: float) -> Float[Tensor, "K V"]:
        """Return scale (softmax - one at the target), 0 without a target, with autograd's bits.

        The softmax is that of the last call of `log_softmax`.
        """
        count = len(targets)
        at = targets.clamp(min=0)[:, None]
        weights = self.weights[:count].scatter_(1, at, (targets != IGNORED).float()[:, None] * -scale)
        torch.ops.aten._log_softmax_backward_data.out(
            weights, self.likelihoods[:count], 1, torch.float32, out=self.wide[:count]
        )
        weights.scatter_(1, at, 0.0)
        return self.wide[:count]


def _cross_entropy(targets: Int[Tensor, " K"], scale: float, rows: int, words: int) -> PieceLoss:
    buffers = _Buffers(rows, words, targets.device)

    def compute(
        logits: Float[Tensor, "P V"], piece: slice, with_gradient: bool
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P V"] | None]:
        likelihoods = buffers.log_softmax(logits)
        losses = nn.functional.nll_loss(likelihoods, targets[piece], ignore_index=IGNORED, reduction="none")
        return losses, logits.copy_(buffers.gradient(targets[piece], scale)) if with_gradient else None

    return PieceLoss(compute, rows)


def piecewise_losses(model: nn.Module, batch: Mapping[str, Tensor], scale: float) -> TokenLosses:
    """Return the losses of the K labelled tokens of packed or padded rows, some logits at a time.

    `batch` is as in `packed_predictions` or `padded_predictions`, for a model that `takes_pieces`.
    Every loss is expected to weigh `scale` in what is differentiated (see `InPieces`).
    """
    wanted = labelled_positions(batch["labels"])
    names = ("input_ids", "position_ids") if "examples" in batch else tuple(batch)
    hidden = before_head(model, {name: batch[name] for name in names}, wanted)
    head: Any = own_model(model).get_output_embeddings()  # type: ignore[operator]
    targets = batch["labels"].roll(-1, dims=1)[wanted]
    rows = batch["examples"] if "examples" in batch else torch.arange(len(wanted), device=wanted.device)[:, None]
    rows_at_once = min(max(PIECE // len(head.weight), 1), len(hidden))
    loss = _cross_entropy(targets, scale, rows_at_once, len(head.weight))
    losses: Tensor = InPieces.apply(hidden, head.weight, head.bias, loss, scale)
    return TokenLosses(losses, targets, rows.expand(wanted.shape)[wanted])


def labelled_positions(labels: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Tell which positions predict a label; the first one if none does, as input for the head."""
    wanted = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
    if not wanted.any():
        wanted[0, 0] = True
    return wanted


def before_head(model: nn.Module, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "B T"]) -> Float[Tensor, "K H"]:
    """Return the head's input at the K wanted positions, from a forward without the head."""
    head = own_model(model).get_output_embeddings()  # type: ignore[operator]
    with replaced_forwards([head], lambda _: lambda hidden: hidden):
        return logits_at(model, batch, wanted)
