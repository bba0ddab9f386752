"""Does a model leave padding out? It is tried, as packing is: some recurrent ones read it like any other token.

T tokens, V words of the vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.adapt.training.packable import TRIAL_ERRORS, drawn, is_apart, num_words, weights_dtype
from shears.data.collate import pad_left
from shears.data.examples import Tokenized
from shears.models.losses import trailing_logits

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
