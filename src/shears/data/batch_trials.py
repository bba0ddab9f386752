"""Which batches a model computes correctly: packed rows, padded rows. A trial decides, not a list of architectures.

T tokens, V words of the vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.data.batches import pad_left
from shears.data.examples import Tokenized
from shears.models.losses import forward_parameters, own_model, trailing_logits

TRIAL_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
"""What a model's code raises if a trial asks for something that it cannot do."""
PACKED_LENGTHS = (5, 7)
SHORT, LONG = 5, 9  # tokens of the rows that are padded together
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit
CLOSE_ELSE = 5e-2  # for dtypes that round more


@torch.no_grad()
def keeps_apart(model: nn.Module) -> bool:
    """Tell whether restarting positions suffice for the model not to look across examples of a packed row.

    An example must not depend on its neighbour, and must have about the logits that it has alone. The model's mode and
    the random generators stay as they are.
    """
    if "position_ids" not in forward_parameters(model):
        return False
    was_training = model.training
    model.eval()
    try:
        first, other, last = map(torch.tensor, drawn(model, PACKED_LENGTHS[0], *PACKED_LENGTHS))
        packed = _packed_logits(model, first, last)
        neighbour = _packed_logits(model, other, last)
        alone = _packed_logits(model, last)
    finally:
        model.train(was_training)
    behind = slice(PACKED_LENGTHS[0], None)
    return is_apart(packed[behind], neighbour[behind], alone, weights_dtype(model))


@torch.no_grad()
def ignores_padding(model: nn.Module) -> bool:
    """Tell whether a row that is padded on the left and masked has the logits that it has alone, for any padding token.

    Some recurrent models read padding like any other token: for them, only rows of equal lengths may share a batch.
    Tried in the arithmetic of the weights.
    """
    device = next(model.parameters()).device
    words = num_words(model)
    short, long = drawn(model, SHORT, LONG)

    def logits(pad_id: int, *rows: list[int]) -> Float[Tensor, "T V"]:
        batch = pad_left([Tokenized(ids, ids) for ids in rows], pad_id)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        return trailing_logits(model, inputs, SHORT)[0].float()

    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            padded = logits(0, short, long)
            padded_otherwise = logits(words - 1, short, long)
            alone = logits(0, short)
    except TRIAL_ERRORS:
        return False
    finally:
        model.train(was_training)
    return is_apart(padded, padded_otherwise, alone, weights_dtype(model))


def is_apart(
    beside: Float[Tensor, "T V"], neighbour: Float[Tensor, "T V"], alone: Float[Tensor, "T V"], dtype: torch.dtype
) -> bool:
    """Tell whether an example's logits beside two neighbours are equal, and close to those it has alone in `dtype`."""
    scale = alone.abs().max()
    independent = (beside - neighbour).abs().max() <= 1e-5 * scale
    return bool(independent and (beside - alone).abs().max() <= CLOSE.get(dtype, CLOSE_ELSE) * scale)


def num_words(model: nn.Module) -> int:
    """Return the number of tokens in a model's vocabulary."""
    return int(own_model(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def drawn(model: nn.Module, *lengths: int) -> list[list[int]]:
    """Return rows of random tokens, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(num_words(model), (length,), generator=generator).tolist() for length in lengths]


def _packed_logits(model: nn.Module, *examples: Tensor) -> Float[Tensor, "T V"]:
    device = next(model.parameters()).device
    positions = torch.cat([torch.arange(len(ids)) for ids in examples])
    ids = torch.cat(list(examples))
    output = model(input_ids=ids[None].to(device), position_ids=positions[None].to(device), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def weights_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights; an integer dtype if any are quantized."""
    dtypes = [parameter.dtype for parameter in model.parameters()]
    return next((dtype for dtype in dtypes if not dtype.is_floating_point), dtypes[0])
