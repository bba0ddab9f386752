"""Does a model keep packed examples apart? It is tried, for no list of architectures stays true.

T tokens, V words of the vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.data.batches import pad_left
from shears.data.examples import Tokenized
from shears.models.losses import forward_parameters, own_model, trailing_logits

TRIAL_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
"""What a model's code raises where a trial asks of it what it cannot do."""
LENGTHS = (5, 7)
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit; whatever rounds more says less
CLOSE_ELSE = 5e-2


@torch.no_grad()
def keeps_apart(model: nn.Module) -> bool:
    """Tell whether positions that start anew are enough for the model not to look across examples of one row.

    An example must not depend on its neighbour, and must have about the logits it has alone. The model is left as it
    was; its random generators are not touched.
    """
    if "position_ids" not in forward_parameters(model):
        return False
    was_training = model.training
    model.eval()
    try:
        first, other, last = map(torch.tensor, drawn(model, LENGTHS[0], *LENGTHS))
        packed, neighbour = _logits(model, first, last), _logits(model, other, last)
        alone = _logits(model, last)
    finally:
        model.train(was_training)
    here = slice(LENGTHS[0], None)
    return is_apart(packed[here], neighbour[here], alone, weights_dtype(model))


def is_apart(
    beside: Float[Tensor, "T V"], neighbour: Float[Tensor, "T V"], alone: Float[Tensor, "T V"], dtype: torch.dtype
) -> bool:
    """Tell whether an example's logits beside two different ones are equal, and about those it has alone in `dtype`."""
    scale = alone.abs().max()
    independent = (beside - neighbour).abs().max() <= 1e-5 * scale
    return bool(independent and (beside - alone).abs().max() <= CLOSE.get(dtype, CLOSE_ELSE) * scale)


def num_words(model: nn.Module) -> int:
    """Return how many tokens a model knows."""
    return int(own_model(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def drawn(model: nn.Module, *lengths: int) -> list[list[int]]:
    """Return rows of random tokens, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(num_words(model), (length,), generator=generator).tolist() for length in lengths]


def _logits(model: nn.Module, *examples: Tensor) -> Float[Tensor, "T V"]:
    device = next(model.parameters()).device
    positions = torch.cat([torch.arange(len(ids)) for ids in examples])
    ids = torch.cat(list(examples))
    output = model(input_ids=ids[None].to(device), position_ids=positions[None].to(device), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def weights_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights; of quantized ones, a whole number's."""
    dtypes = [parameter.dtype for parameter in model.parameters()]
    return next((dtype for dtype in dtypes if not dtype.is_floating_point), dtypes[0])


SHORT, LONG = 5, 9  # tokens of the rows that are tried together


@torch.no_grad()
def ignores_padding(model: nn.Module) -> bool:
    """Tell whether a row that is padded on the left and masked has the logits it has alone, whatever pads it.

    Where it has not, only rows of equal lengths may share a batch. Tried in the arithmetic of the weights.
    """
    device = next(model.parameters()).device
    words, (short, long) = num_words(model), drawn(model, SHORT, LONG)

    def logits(pad_id: int, *rows: list[int]) -> Float[Tensor, "T V"]:
        batch = pad_left([Tokenized(ids, ids) for ids in rows], pad_id)
        return trailing_logits(model, {name: each.to(device) for name, each in batch.items()}, SHORT)[0].float()

    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            padded, otherwise, alone = logits(0, short, long), logits(words - 1, short, long), logits(0, short)
    except TRIAL_ERRORS:
        return False
    finally:
        model.train(was_training)
    return is_apart(padded, otherwise, alone, weights_dtype(model))
