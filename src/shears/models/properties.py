"""Properties of a loaded model: what it says of itself, and what a trial of a few tokens shows.

Trials decide what a model can do, not a list of architectures. Its mode and the random generators
stay as they are. T tokens, V words of the vocabulary.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from shears.errors import InputError

logger = logging.getLogger(__name__)

CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # keys of configurations
TRIAL_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
"""What a model's code raises if a trial asks for something that it cannot do."""
TRIAL = 8  # tokens
PACKED_LENGTHS = (5, 7)
SHORT = 5  # this and the next: tokens of the rows that are padded together
LONG = 9
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit
CLOSE_ELSE = 5e-2  # for dtypes that round more
PROBE = 100.0  # times the hidden states: large enough for a bound of logits to show


def num_positions(model: nn.Module) -> int | None:
    """Return the number of positions in a model's configuration; None where it has none."""
    return positions_in(getattr(own_model(model), "config", None))


def positions_in(config: Any) -> int | None:
    """Return the number of positions in a configuration; None where it has none."""
    config = config.get_text_config() if config is not None else None
    lengths = (getattr(config, name, None) for name in CONTEXT)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def check_sequence_length(model: nn.Module, length: int) -> None:
    """Raise InputError for sequences of more tokens than the model has positions."""
    refuse_longer(length, num_positions(model))


def refuse_longer(length: int, context: int | None) -> None:
    """Raise InputError for sequences of more tokens than a context, if it is known."""
    if context is not None and length > context:
        raise InputError(f"sequence_length must be at most this model's context of {context} tokens, got {length}")


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings for."""
    return int(model.get_input_embeddings().get_parameter("weight").shape[0])


def check_calibration(model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]]) -> None:
    """Raise InputError without batches, for unknown token ids, and for more tokens than positions."""
    if not batches:
        raise InputError("there must be at least one batch of calibration tokens, got none; give a calibration text")
    vocabulary = num_embeddings(model)
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise InputError(f"calibration token ids must be below {vocabulary}, got {largest}; use this model's tokenizer")
    check_sequence_length(model, max(batch.shape[1] for batch in batches))


def within_context(model: nn.Module, tokens: int) -> int:
    """Return a number of tokens, reduced to the model's number of positions where that is smaller."""
    return min(tokens, num_positions(model) or tokens)


def own_model(model: nn.Module) -> nn.Module:
    """Return the model without the wrappers of PEFT, distributed training and compilation."""
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner
    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Return the parameter names of the forward of `own_model`."""
    return frozenset(inspect.signature(own_model(model).forward).parameters)


def num_words(model: nn.Module) -> int:
    """Return the number of tokens in a model's vocabulary."""
    return int(own_model(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def weights_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights; an integer dtype if any are quantized."""
    dtypes = [parameter.dtype for parameter in model.parameters()]
    return next((dtype for dtype in dtypes if not dtype.is_floating_point), dtypes[0])


def drawn(model: nn.Module, *lengths: int) -> list[list[int]]:
    """Return rows of random tokens, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    words = num_words(model)
    return [torch.randint(words, (length,), generator=generator).tolist() for length in lengths]


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode inside the context."""
    was_training = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def keeps_apart(model: nn.Module) -> bool:
    """Tell whether restarting positions keep the examples of a packed row apart.

    An example must not depend on its neighbour, and must have about the logits that it has alone.
    """
    if "position_ids" not in forward_parameters(model):
        return False
    device = next(model.parameters()).device

    def logits(*examples: Tensor) -> Float[Tensor, "T V"]:
        positions = torch.cat([torch.arange(len(ids)) for ids in examples])
        ids = torch.cat(examples)
        output = model(input_ids=ids[None].to(device), position_ids=positions[None].to(device), use_cache=False)
        result: Tensor = output.logits[0].float()
        return result

    first, other, last = map(torch.tensor, drawn(model, PACKED_LENGTHS[0], *PACKED_LENGTHS))
    with _mode(model, training=False):
        packed, neighbour, alone = logits(first, last), logits(other, last), logits(last)
    behind = slice(PACKED_LENGTHS[0], None)
    return is_apart(packed[behind], neighbour[behind], alone, weights_dtype(model))


@torch.no_grad()
def ignores_padding(model: nn.Module) -> bool:
    """Tell whether a row that is padded on the left has the logits that it has alone.

    Some recurrent models read padding like any other token: for them, only rows of equal lengths
    may share a batch. Tried in the arithmetic of the weights.
    """
    device = next(model.parameters()).device
    takes = forward_parameters(model)
    short, long = drawn(model, SHORT, LONG)

    def logits(pad_id: int, *rows: list[int]) -> Float[Tensor, "T V"]:
        gaps = [max(map(len, rows)) - len(row) for row in rows]
        ids = torch.tensor([[pad_id] * gap + row for gap, row in zip(gaps, rows, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * len(row) for gap, row in zip(gaps, rows, strict=True)])
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name in takes}
        result: Tensor = model(**inputs, use_cache=False).logits[0, -SHORT:].float()
        return result

    try:
        with _mode(model, training=False), torch.autocast(device.type, enabled=False):
            padded, otherwise, alone = (
                logits(0, short, long),
                logits(num_words(model) - 1, short, long),
                logits(0, short),
            )
    except TRIAL_ERRORS:
        return False
    return is_apart(padded, otherwise, alone, weights_dtype(model))


def is_apart(
    beside: Float[Tensor, "T V"], neighbour: Float[Tensor, "T V"], alone: Float[Tensor, "T V"], dtype: torch.dtype
) -> bool:
    """Tell whether logits beside two neighbours are equal, and close to those of the example alone."""
    scale = alone.abs().max()
    independent = (beside - neighbour).abs().max() <= 1e-5 * scale
    return bool(independent and (beside - alone).abs().max() <= CLOSE.get(dtype, CLOSE_ELSE) * scale)


@torch.no_grad()
def takes_pieces(model: nn.Module) -> bool:
    """Tell whether a plain frozen head returns the logits: losses can be computed in pieces.

    Some models scale or bound their logits behind the head. Tried with two tokens.
    """
    base = own_model(model)
    head = base.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or any(
        each.requires_grad or isinstance(each, DTensor) for each in head.parameters()
    ):
        return False
    inputs: list[Tensor] = []

    def probed(_: nn.Module, args: tuple[Any, ...], _output: Tensor) -> Tensor:
        inputs.append(args[0])
        scaled: Tensor = args[0] * PROBE
        return scaled

    handle = head.register_forward_hook(probed)
    try:
        with _mode(model, training=False):
            logits = base(input_ids=torch.tensor([[0, 1]], device=head.weight.device), use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    finally:
        handle.remove()
    expected = [(each * PROBE).to(logits.dtype) for each in inputs]
    return len(expected) == 1 and torch.equal(logits, expected[0])


@torch.no_grad()
def trial_logits(model: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Return the logits of a few tokens under autocast to `dtype`; None where that fails."""
    device = next(model.parameters()).device
    try:
        with _mode(model, training=False), torch.autocast(device.type, dtype):
            ids = torch.tensor(drawn(model, TRIAL), device=device)
            logits: Tensor = own_model(model)(input_ids=ids, use_cache=False).logits
            return logits
    except TRIAL_ERRORS as error:
        logger.debug("trial of weights in %s: %s", dtype, error)
        return None


def runs_backward(model: nn.Module) -> bool:
    """Tell whether torch computes the gradients of what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with _mode(model, training=True), torch.random.fork_rng():
            ids = torch.arange(TRIAL, device=trained[0].device)[None]
            torch.autograd.grad(model(input_ids=ids, use_cache=False).logits.sum(), trained, allow_unused=True)
    except RuntimeError as error:
        logger.debug("trial of a backward pass: %s", error)
        return False
    return True
