"""Log-likelihoods of completions: of the given one, or of each one to choose from; logits only where they count.

N rows, B rows of a batch, K trailing positions, V words of the vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.data.collate import length_buckets, pad_left
from shears.data.examples import Example, Tokenized, encode, prompt_ids, prompt_of
from shears.errors import InputError
from shears.losses import IGNORED, trailing_logits
from shears.losses import completion_losses as token_losses
from shears.progress import track

Continuation = tuple[list[int], list[int]]  # tokens of a prompt, tokens that follow


class RowLosses(NamedTuple):
    """Each row's negative log-likelihood, summed over its labelled tokens, and how many those are."""

    total: Float[Tensor, " N"]
    num_tokens: Int[Tensor, " N"]


@dataclass(frozen=True)
class Choice:
    """The likeliest choice of an example, by the sum and by the mean over its tokens, and every choice's sum."""

    likeliest: int
    likeliest_per_token: int
    log_likelihoods: tuple[float, ...]


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are."""
    return next(model.parameters()).device


@torch.no_grad()
def completion_losses(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> RowLosses:
    """Return the rows' losses in nats, in their order; computed in batches of about equal lengths."""
    total, num_tokens = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
    buckets = length_buckets([len(row.input_ids) for row in rows], batch_size)
    for indices in track(buckets, "scoring", len(buckets), "batches"):
        batch = pad_left([rows[index] for index in indices], pad_id)
        losses = token_losses(model, _on_device(model, batch))
        total[indices] = losses.sum(dim=1).cpu()
        num_tokens[indices] = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    return RowLosses(total, num_tokens)


def mean_completion_loss(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> float:
    """Return the loss per labelled token over all rows, in nats; summed in float64."""
    losses = completion_losses(model, rows, pad_id, batch_size)
    tokens = int(losses.num_tokens.sum())
    if not tokens:
        raise InputError("the examples must have completion tokens to score, got none")
    return float(losses.total.double().sum()) / tokens


def choose(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[Choice]:
    """Return each example's likeliest choice; the end of sequence is not scored, as in other evaluations."""
    prompts = prompt_ids([prompt_of(example) for example in examples], tokenizer)
    texts = iter(encode([choice for example in examples for choice in example.choices], tokenizer))
    pairs = [(prompt, next(texts)) for prompt, example in zip(prompts, examples, strict=True) for _ in example.choices]
    sums = iter(log_likelihoods(model, pairs, padding(tokenizer), batch_size).tolist())
    lengths = iter([max(len(continuation), 1) for _, continuation in pairs])
    return [_choice([(next(sums), next(lengths)) for _ in example.choices]) for example in examples]


def _choice(scored: list[tuple[float, int]]) -> Choice:
    sums = [total for total, _ in scored]
    means = [total / length for total, length in scored]
    return Choice(sums.index(max(sums)), means.index(max(means)), tuple(sums))


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up batches; any will do, for it is masked."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


@torch.no_grad()
def log_likelihoods(
    model: nn.Module, pairs: Sequence[Continuation], pad_id: int, batch_size: int
) -> Float[Tensor, " N"]:
    """Return log p(continuation | prompt) of each pair, summed over the continuation's tokens, in nats.

    A last token need not be fed in, so that continuations of a prompt that differ in it alone share one forward.
    """
    shared: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (prompt, continuation) in enumerate(pairs):
        shared[(*prompt, *continuation[:-1])].append(index)
    inputs, result = list(shared), torch.zeros(len(pairs))
    buckets = length_buckets([len(ids) for ids in inputs], batch_size)
    for bucket in track(buckets, "scoring", len(buckets), "batches"):
        keep = max(len(pairs[index][1]) for row in bucket for index in shared[inputs[row]])
        log_probs = _trailing_log_probs(model, [list(inputs[row]) for row in bucket], pad_id, keep)
        for row_log_probs, row in zip(log_probs, bucket, strict=True):
            for index in shared[inputs[row]]:
                result[index] = _summed(row_log_probs, pairs[index][1])
    return result


def _summed(log_probs: Float[Tensor, "K V"], continuation: list[int]) -> Float[Tensor, ""]:
    """The last len(continuation) positions predict its tokens."""
    last = log_probs[log_probs.shape[0] - len(continuation) :]
    return last.gather(1, torch.tensor(continuation, dtype=torch.int64).view(-1, 1)).sum()


def _trailing_log_probs(model: nn.Module, rows: Sequence[list[int]], pad_id: int, keep: int) -> Float[Tensor, "B K V"]:
    batch = _on_device(model, pad_left([Tokenized(ids, ids) for ids in rows], pad_id))
    return torch.log_softmax(trailing_logits(model, batch, keep).float(), dim=-1).cpu()


def _on_device(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
