"""Log-likelihoods: of choices behind a prompt, of completions, and the perplexity of a text.

N pairs of a prompt and a continuation, T tokens of a window.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.data.examples import IGNORED, Example, Tokenized, prompts_of
from shears.data.tokens import encode
from shears.errors import InputError, option
from shears.evaluation.evaluated import Evaluation
from shears.evaluation.statistics import Z95
from shears.models.devices import device_of
from shears.models.load import num_positions, refuse_longer
from shears.progress import track
from shears.training.batches import length_buckets, pad_right, padding
from shears.training.losses import logits_at, token_losses

logger = logging.getLogger(__name__)
POSITIONS_AT_ONCE = 128  # turned into float32 log-probabilities: 25 MB for 49 k words
MAX_LOSS = 709.0  # nats; the exponential of more exceeds float64
Pair = tuple[list[int], list[int]]
"""The tokens of a prompt and the tokens that follow it."""


def scored_choices(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[tuple[list[float], list[float]]]:
    """Return the summed and mean log-likelihoods of each example's choices, without the end."""
    prompts = prompts_of(examples, tokenizer)
    texts = iter(encode([choice for example in examples for choice in example.choices], tokenizer))
    choices = [[next(texts) for _ in example.choices] for example in examples]
    for number, (example, prompt) in enumerate(zip(examples, prompts, strict=True), start=1):
        if example.answer not in example.choices or not prompt or not all(text.strip() for text in example.choices):
            raise InputError(
                f"task choices needs rows with a prompt, a list of choices and an answer among them, row {number} has "
                f"{example.choices}; add the column choices, or end the instruction in 'Answer format: a/b/c'"
            )
    pairs = [(prompt, ids) for prompt, each in zip(prompts, choices, strict=True) for ids in each]
    warn_beyond(model, [len(prompt) + len(ids) - 1 for prompt, ids in pairs])
    totals = iter(log_likelihoods(model, pairs, padding(tokenizer), batch_size).tolist())
    scored = []
    for number, each in enumerate(choices, start=1):
        sums = [next(totals) for _ in each]
        if any(map(math.isnan, sums)):
            rule = f"the model must give every choice a log-likelihood, got nan in row {number}"
            raise InputError(f"{rule}; it may be damaged, or need --precision fp32")
        scored.append((sums, [total / len(ids) for total, ids in zip(sums, each, strict=True)]))
    return scored


@torch.no_grad()
def log_likelihoods(model: nn.Module, pairs: Sequence[Pair], pad_id: int, batch_size: int) -> Float[Tensor, " N"]:
    """Return log p(continuation | prompt) of each pair in nats.

    Pairs that differ only in their last token share a row. Padding follows the rows, where none of
    their tokens sees it.
    """
    rows: dict[tuple[int, ...], list[int]] = {}  # the pairs that a row of inputs predicts
    for number, (prompt, continuation) in enumerate(pairs):
        rows.setdefault((*prompt, *continuation[:-1]), []).append(number)
    inputs = list(rows)
    total = torch.zeros(len(pairs), dtype=torch.float64)
    buckets = length_buckets(list(map(len, inputs)), batch_size)
    for bucket in track(buckets, "scoring", len(buckets), "batches"):
        batch = pad_right([Tokenized(list(inputs[row]), list(inputs[row])) for row in bucket], pad_id)
        counts = [max(len(pairs[number][1]) for number in rows[inputs[row]]) for row in bucket]
        wanted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for line, (row, count) in enumerate(zip(bucket, counts, strict=True)):
            wanted[line, len(inputs[row]) - count : len(inputs[row])] = True
        on_device = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
        with option("data"):  # a model with a table of positions fails beyond it
            logits = logits_at(model, on_device, wanted.to(device_of(model)))
        log_probs = torch.log_softmax(logits.float(), dim=-1).split(counts)
        for row, predicted in zip(bucket, log_probs, strict=True):
            for number in rows[inputs[row]]:
                ids = pairs[number][1]
                own = predicted[len(predicted) - len(ids) :]
                total[number] = own[range(len(ids)), ids].double().sum().cpu()
    return total.float()


def warn_beyond(model: nn.Module, lengths: Sequence[int]) -> None:
    """Log how many examples exceed the context that the model was made for."""
    context = num_positions(model)
    if context is not None and (beyond := [length for length in lengths if length > context]):
        message = "%d of %d examples have more tokens (up to %d) than the %d positions that the model was made for"
        logger.warning(message, len(beyond), len(lengths), max(beyond), context)


@torch.no_grad()
def completion_nats(
    model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the negative log-likelihood of each row's labelled tokens in nats and their number."""
    counts = [sum(label != IGNORED for label in row.labels[1:]) for row in rows]
    total = torch.zeros(len(rows), dtype=torch.float64)
    for numbers in length_buckets([len(row.input_ids) for row in rows], batch_size):
        batch = pad_right([rows[number] for number in numbers], pad_id)
        losses = token_losses(model, {name: tensor.to(device_of(model)) for name, tensor in batch.items()})
        of_rows = losses.double().cpu().split([counts[number] for number in numbers])
        total[numbers] = torch.stack([each.sum() for each in of_rows])
    return total, torch.tensor(counts, dtype=torch.float64)


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Sequence[int], sequence_length: int, limit: int | None = None) -> Evaluation:
    """Return the perplexity of the first `limit` whole windows, first tokens not predicted.

    A shorter text is one window. The interval is exp(mean +- 1.96 standard errors) over windows
    or, with one window, over tokens.
    """
    refuse_longer(sequence_length, num_positions(model))
    if len(tokens) < 2:
        raise InputError(f"the text must have at least 2 tokens, got {len(tokens)}")
    length = min(sequence_length, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)[:limit]
    windows = (torch.tensor(tokens[start : start + length]) for start in starts)
    tracked = track(windows, "measuring perplexity", len(starts), "windows")
    losses = torch.stack([_window_losses(model, window) for window in tracked]).double()
    mean = float(losses.mean())
    values = losses.mean(dim=1) if len(losses) > 1 else losses[0]
    half = Z95 * (float(values.std()) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    if not mean + half <= MAX_LOSS:  # nan too
        raise InputError(
            f"the model's loss must be finite and at most {MAX_LOSS:.0f} nats for a perplexity, "
            f"got {mean:.5g} +- {half:.5g}; the model may be damaged, or need --precision fp32"
        )
    value, low, high = (math.exp(nats) for nats in (mean, mean - half, mean + half))
    sums = enumerate(losses.sum(dim=1).tolist())
    records = [{"window": index, "nll": nll, "tokens": length - 1} for index, nll in sums]
    details = {"windows": float(len(losses))}
    return Evaluation("perplexity", "perplexity", value, losses.numel(), (low, high), records, details)


def _window_losses(model: Any, window: Int[Tensor, " T"]) -> Float[Tensor, " T-1"]:
    ids = window.to(device_of(model))
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    pieces = [
        torch.nn.functional.cross_entropy(part.float(), targets, reduction="none")
        for part, targets in zip(logits.split(POSITIONS_AT_ONCE), ids[1:].split(POSITIONS_AT_ONCE), strict=True)
    ]
    return torch.cat(pieces).cpu()
