"""What merging costs: a model's mean loss on calibration sequences, on held-out ones, on completions, block by block.

The loss on all tokens tells how near the projection comes to what it imitates; whether that is any good, the loss on
completions does, where the text are examples: what an adapter does to prompts nobody trained.

Shapes: B sequences, T tokens, V words of the vocabulary, N labelled tokens.
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.blockwise.activations import Activations
from shears.blockwise.sources import BlockSource
from shears.blockwise.walk import BlockRun, Walk, walk_blocks
from shears.config import ExportConfig, SparsifyConfig
from shears.config.notation import num_bytes
from shears.data.calibration import calibration_batches
from shears.data.examples import load_examples, tokenize_all
from shears.errors import InputError
from shears.models.devices import autocast
from shears.models.losses import IGNORED, check_sequence_length

BUDGET = num_bytes(SparsifyConfig.model_fields["activation_budget"].default)  # hidden states in memory
BATCH = 2  # sequences in a forward: their logits are of the vocabulary's size
EXAMPLES = 8  # in a forward, which are shorter
POSITIONS_AT_ONCE = 128  # of a batch, turned into float32 log-probabilities


class Text(NamedTuple):
    """A calibration text, and the template of its examples, where it has any."""

    source: str
    template: str


class Labelled(NamedTuple):
    """Sequences of one length; labels are the tokens themselves, or -100 where they do not count."""

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]


class Samples(NamedTuple):
    """Batches to fit on; by name, what losses are taken on; the fingerprint of the text's tokens."""

    fit: list[Int[Tensor, "_ _"]]
    parts: Mapping[str, list[Labelled]]
    fingerprint: str


def draw_samples(
    text: Text, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, settings: ExportConfig
) -> Samples:
    """Return `num_samples` sequences to fit on, and as many held out and twice as many examples, where there are such.

    Ready token ids are all for the fit, unless there are exactly twice as many as asked for. InputError where the text
    is too short for the fit or the sequences too long for the model.
    """
    check_sequence_length(model, settings.sequence_length)
    count, length, seed = settings.num_samples, settings.sequence_length, settings.seed
    try:
        drawn = calibration_batches(text.source, tokenizer, 2 * count, length, BATCH, seed)
    except InputError:  # too short for both; or wrong, and then it is again
        drawn = calibration_batches(text.source, tokenizer, count, length, BATCH, seed)
    sequences = [Labelled(row[None], row[None]) for batch in drawn.batches for row in batch]
    share = count if len(sequences) == 2 * count else len(sequences)
    parts = {
        "calibration": _batched(sequences[:share], BATCH),
        "held_out": _batched(sequences[share:], BATCH),
        "completions": _completions(text, tokenizer, settings),
    }
    fit = [batch.tokens for batch in parts["calibration"]]
    return Samples(fit, {name: part for name, part in parts.items() if part}, drawn.fingerprint)


def _completions(text: Text, tokenizer: PreTrainedTokenizerBase, settings: ExportConfig) -> list[Labelled]:
    """Return examples drawn from the text, their completions labelled; none where it holds no examples."""
    try:
        examples = load_examples(text.source, text.template, tokenizer)
        generator = random.Random(f"completions {settings.seed}")
        chosen = generator.sample(examples, min(2 * settings.num_samples, len(examples)))
        rows = tokenize_all(chosen, tokenizer, settings.sequence_length)
    except InputError:
        return []
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    return _batched(
        [Labelled(torch.tensor([row.input_ids]), torch.tensor([row.labels])) for row in by_length], EXAMPLES
    )


def _batched(sequences: Sequence[Labelled], size: int) -> list[Labelled]:
    """Batch neighbours of equal length."""
    groups = [list(group) for _, group in groupby(sequences, key=lambda sequence: sequence.tokens.shape[1])]
    pieces = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return [Labelled(torch.cat([one.tokens for one in piece]), torch.cat([one.labels for one in piece]))
            for piece in pieces]  # fmt: skip


def context_of(source: BlockSource) -> AbstractContextManager[object]:
    """Return the context in which the source's model runs: bf16 where the processor has it."""
    return autocast("auto", source.device)


@torch.no_grad()
def losses(source: BlockSource, parts: Mapping[str, Sequence[Labelled]], folder: Path, title: str) -> dict[str, float]:
    """Return the mean negative log-likelihood of a labelled token, in nats, over each of the parts.

    Hidden states that exceed the budget wait in `folder`. IrregularBlocks where blocks cannot be walked, InputError
    where a loss is no number.
    """
    batches = [batch for part in parts.values() for batch in part]
    found: list[Tensor] = []
    with Activations(BUDGET, folder) as hidden:
        walk = Walk(source, [batch.tokens for batch in batches], hidden, lambda: context_of(source))

        def visit(run: BlockRun) -> None:
            if run.index == len(walk) - 1:
                with source.with_head():
                    found.extend(
                        _token_losses(walk.logits(index, states), batches[index].labels)
                        for index, states in enumerate(run.outputs())
                    )

        walk_blocks(walk, visit, title)
    means = {name: float(torch.cat([found.pop(0) for _ in part]).double().mean()) for name, part in parts.items()}
    if odd := [name for name, mean in means.items() if not math.isfinite(mean)]:
        raise InputError(
            f"losses must be finite, {title} on {odd[0]} is {means[odd[0]]}; look for NaN in embeddings and head"
        )
    return means


def _token_losses(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, " N"]:
    wanted = labels[:, 1:].to(logits.device)
    scores, wanted = logits[:, :-1][wanted != IGNORED], wanted[wanted != IGNORED]
    pieces = zip(scores.split(POSITIONS_AT_ONCE), wanted.split(POSITIONS_AT_ONCE), strict=True)
    return torch.cat(
        [torch.nn.functional.cross_entropy(piece.float(), words, reduction="none") for piece, words in pieces]
    ).cpu()
