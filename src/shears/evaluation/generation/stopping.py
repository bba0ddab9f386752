"""What looks at each token as it is generated: where a row ends, which token is forced, whether logits are numbers.

B prompts, V words of the vocabulary (or logits).
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from shears.errors import InputError


class EndOfLine(StoppingCriteria):
    """Stops a row at the first line break behind a line that is not empty."""

    def __init__(self, line_breaks: Int[Tensor, " V"], prompt_length: int) -> None:
        self._breaks, self._start = line_breaks, prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Bool[Tensor, " B"]:
        """Return which rows have ended."""
        breaks = torch.isin(input_ids[:, self._start :], self._breaks.to(input_ids.device))
        return breaks[:, -1] & (~breaks).any(dim=1)


class Always(LogitsProcessor):
    """Makes one token the likeliest."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits of which that token's is the largest."""
        return torch.zeros_like(scores).index_fill_(1, torch.tensor([self._token], device=scores.device), 1.0)


class Numbers(LogitsProcessor):
    """Refuses logits of which none is the largest: the likeliest of such would be any token, said with no word."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits as they are; InputError where a row has nan, or no finite largest one."""
        largest = scores.amax(dim=-1)
        if not bool(largest.isfinite().all()):
            bad = largest[~largest.isfinite()][0].item()
            raise InputError(
                f"the model must give finite logits, got {bad} for a token; it may be damaged, or need --precision fp32"
            )
        return scores


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " V"]:
    """Return every token whose text holds a line break."""
    vocabulary = tokenizer.get_vocab()
    return torch.tensor([i for token, i in vocabulary.items() if "\n" in tokenizer.convert_tokens_to_string([token])])
