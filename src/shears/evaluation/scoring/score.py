"""Log-likelihoods of choices; logits are computed only for the tokens that count.

If it pays, all continuations of a prompt stand in one row and none sees another. N pairs of a
prompt and a continuation, P rows of L tokens, K positions that predict a token, V words.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.data.examples import Example, Tokenized, prompts_of
from shears.data.tokens import encode
from shears.errors import InputError
from shears.models.devices import device_of
from shears.models.properties import (
    TRIAL_ERRORS,
    drawn,
    forward_parameters,
    ignores_padding,
    is_apart,
    num_positions,
    own_model,
)
from shears.progress import track
from shears.training.batches import length_buckets, pad, padding
from shears.training.losses import logits_at

logger = logging.getLogger(__name__)
Pair = tuple[list[int], list[int]]
"""The tokens of a prompt and the tokens that follow it."""
Ids = tuple[int, ...]
OFFSET = 8  # rows that a table of positions may have beyond the context; OPT's has 2
MAX_SHARE = 0.8  # of the tokens of separate rows; saving less is not worth own masks and more padding
Run = Callable[[Callable[[], Tensor]], Tensor]
"""Makes one forward, which it may shorten, with a function, and returns its result."""


@dataclass(frozen=True)
class Tree:
    """A row of a prompt and, behind it, distinct branches; each branch continues the prompt."""

    prompt: Ids
    branches: tuple[Ids, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.branches))

    @property
    def tokens(self) -> list[int]:
        """The tokens of the prompt, then those of branch after branch."""
        return [*self.prompt, *(token for branch in self.branches for token in branch)]


@dataclass(frozen=True)
class TreeBatch:
    """The rows of one forward; `shared` says whether they have branches.

    `tokens[i]` is the i-th token to predict, `owners[i]` its pair, `numbers[i]` its logits.
    """

    trees: Sequence[Tree]
    shared: bool
    wanted: Bool[Tensor, "P L"]
    numbers: Sequence[int]
    tokens: Sequence[int]
    owners: Tensor

    def inputs(self, pad_id: int) -> dict[str, Tensor]:
        """Return the model's inputs, padded on the left, or on the right if rows have branches."""
        if self.shared:
            return branched(self.trees, pad_id)
        return pad([Tokenized(tree.tokens, tree.tokens) for tree in self.trees], pad_id)


@dataclass(frozen=True)
class Forest:
    """The rows in which all pairs are scored.

    `places` holds, for each row, the positions that predict the continuation of each pair.
    """

    pairs: Sequence[Pair]
    trees: Sequence[Tree]
    places: Sequence[Mapping[int, Sequence[int]]]
    shared: bool
    padded: bool = True
    """Whether rows of different lengths share a batch."""

    def buckets(self, batch_size: int) -> list[list[int]]:
        """Return the rows of each batch: of similar lengths, or of equal ones without padding."""
        return length_buckets([len(tree) for tree in self.trees], batch_size, self.padded)

    def num_positions(self, batch_size: int) -> int:
        """Return the tokens of all batches, padding included."""
        return sum(len(bucket) * len(self.trees[bucket[0]]) for bucket in self.buckets(batch_size))

    def batch(self, bucket: Sequence[int]) -> TreeBatch:
        """Return some of the rows as a batch, with the tokens to predict in them."""
        trees = [self.trees[row] for row in bucket]
        length = max(map(len, trees))
        wanted = torch.zeros(len(trees), length, dtype=torch.bool)
        spots: list[tuple[int, int]] = []
        tokens: list[int] = []
        owners: list[int] = []
        for pair, line in sorted((pair, line) for line, row in enumerate(bucket) for pair in self.places[row]):
            shift = 0 if self.shared else length - len(trees[line])  # padding on the left
            places = [(line, place + shift) for place in self.places[bucket[line]][pair]]
            spots += places
            tokens += self.pairs[pair][1]
            owners += [pair] * len(places)
        for spot in spots:
            wanted[spot] = True
        wanted[0, -1] |= not spots  # the head needs at least one position
        order = (wanted.flatten().long().cumsum(0) - 1).view(wanted.shape).tolist()
        numbers = [order[row][place] for row, place in spots]
        return TreeBatch(trees, self.shared, wanted, numbers, tokens, torch.tensor(owners, dtype=torch.int64))


def build_forest(model: nn.Module, pairs: Sequence[Pair]) -> Forest:
    """Return the rows in which to score the pairs.

    Each prompt has a row if that saves enough tokens and the model keeps branches apart; else each
    distinct input. The last token of a continuation is no input.
    """
    apart = _separate_rows(pairs)
    shared = _shared_rows(pairs)
    before, after = (sum(map(len, forest.trees)) for forest in (apart, shared))
    saves = after <= MAX_SHARE * before and all(prompt for prompt, _ in pairs)
    if saves and keeps_branches_apart(model, max(map(len, shared.trees))):
        return shared
    return replace(apart, padded=len(set(map(len, apart.trees))) < 2 or ignores_padding(model))


def _separate_rows(pairs: Sequence[Pair]) -> Forest:
    """Give each distinct input a row."""
    places: dict[Ids, dict[int, Sequence[int]]] = defaultdict(dict)
    for pair, (prompt, continuation) in enumerate(pairs):
        ids = (*prompt, *continuation[:-1])
        places[ids][pair] = range(len(ids) - len(continuation), len(ids))
    return Forest(pairs, [Tree(ids) for ids in places], list(places.values()), shared=False)


def _shared_rows(pairs: Sequence[Pair]) -> Forest:
    """Give each distinct prompt a row."""
    branches: dict[Ids, dict[Ids, None]] = defaultdict(dict)
    for prompt, continuation in pairs:
        branches[tuple(prompt)][tuple(continuation[:-1])] = None
    trees = {prompt: Tree(prompt, tuple(each)) for prompt, each in branches.items()}
    places: dict[Ids, dict[int, Sequence[int]]] = defaultdict(dict)
    for pair, (prompt, continuation) in enumerate(pairs):
        branch = tuple(continuation[:-1])
        tree = trees[tuple(prompt)]
        start = len(prompt) + sum(map(len, tree.branches[: tree.branches.index(branch)]))
        predicting = [len(prompt) - 1, *range(start, start + len(branch))]
        places[tuple(prompt)][pair] = predicting[: len(continuation)]
    return Forest(pairs, list(trees.values()), list(places.values()), shared=True)


def branched(trees: Sequence[Tree], pad_id: int) -> dict[str, Tensor]:
    """Return input_ids, position_ids (Int "P L", right-padded), mask (Bool "P 1 L L")."""
    length = max(map(len, trees))
    ids = torch.full((len(trees), length), pad_id)
    positions = torch.zeros_like(ids)
    owners = torch.full_like(ids, -1)  # padding sees only padding, since a row of the mask must not be empty
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = torch.tensor(tree.tokens)
        place = len(tree.prompt)
        positions[row, :place] = torch.arange(place)
        owners[row, :place] = 0
        for number, branch in enumerate(tree.branches, start=1):
            end = place + len(branch)
            positions[row, place:end] = torch.arange(len(branch)) + len(tree.prompt)
            owners[row, place:end] = number
            place = end
    own_or_prompt = (owners[:, None] == owners[..., None]) | (owners[:, None] == 0)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    return {"input_ids": ids, "position_ids": positions, "attention_mask": (own_or_prompt & earlier)[:, None]}


@torch.no_grad()
def keeps_branches_apart(model: nn.Module, longest: int) -> bool:
    """Return whether a tree's branches are scored as in rows of their own.

    A row beyond a sliding window, `longest` tokens long, would need another mask.
    """
    config = getattr(own_model(model), "config", None)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if "position_ids" not in forward_parameters(model) or any(window and longest > window for window in windows):
        return False
    first, other, last, prompt = map(tuple, drawn(model, 4, 4, 6, 5))
    try:
        beside, neighbour = (_last_logits(model, Tree(prompt, (near, last))) for near in (first, other))
        alone = _last_logits(model, Tree((*prompt, *last)))
    except TRIAL_ERRORS:
        return False
    return is_apart(beside, neighbour, alone, alone.dtype)


def _last_logits(model: nn.Module, tree: Tree) -> Float[Tensor, "K V"]:
    """Return the last six logits of a tree; without branches, by the model's own mask."""
    batch = branched([tree], 0)
    if not tree.branches:
        del batch["attention_mask"]
    device = next(model.parameters()).device
    logits: Tensor = model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False).logits
    return logits[0, -6:]


def plainly(forward: Callable[[], Tensor]) -> Tensor:
    """Make a whole forward."""
    return forward()


@dataclass(frozen=True)
class Choice:
    """The likeliest choice by the sum and by the mean over tokens, and every choice's sum."""

    likeliest: int
    likeliest_per_token: int
    log_likelihoods: tuple[float, ...]


def likeliest_choices(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[Choice]:
    """Return each example's likeliest choice; the end of sequence is not scored."""
    questions = Questions(model, tokenizer, examples)
    check_lengths(model, questions.lengths, "leave it out")
    return questions.answer(model, batch_size)


class Questions:
    """The choices of examples as rows, built once: every `answer` makes the same forwards."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
        prompts = prompts_of(examples, tokenizer)
        texts = iter(encode([choice for example in examples for choice in example.choices], tokenizer))
        choices = [[next(texts) for _ in example.choices] for example in examples]
        _check_tokens(prompts, choices)
        pairs = [(prompt, ids) for prompt, each in zip(prompts, choices, strict=True) for ids in each]
        self._choice_lengths = [[len(ids) for ids in each] for each in choices]
        self.lengths = [
            len(ids) + max(map(len, each), default=1) - 1 for ids, each in zip(prompts, choices, strict=True)
        ]
        """Tokens of each prompt with its longest choice, whose last token is no input."""
        self._pad_id = padding(tokenizer)
        self.forest = build_forest(model, pairs)

    def answer(self, model: nn.Module, batch_size: int, run: Run = plainly) -> list[Choice]:
        """Return each example's likeliest choice; `run` makes the forwards."""
        sums = iter(log_likelihoods(model, self.forest, self._pad_id, batch_size, run).tolist())
        return [
            _choice(number, [(next(sums), length) for length in lengths])
            for number, lengths in enumerate(self._choice_lengths, start=1)
        ]

    def sample(self, model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs and the wanted positions of a small batch like those of `answer`."""
        trees = self.forest.trees
        longest = sorted(range(len(trees)), key=lambda row: -len(trees[row]))[-2:]
        batch = self.forest.batch(longest)
        return _on_device(model, batch.inputs(self._pad_id)), batch.wanted.to(device_of(model))


def _check_tokens(prompts: Sequence[list[int]], choices: Sequence[list[list[int]]]) -> None:
    """Raise InputError for a prompt or a choice without tokens, which has no likelihood."""
    for number, (prompt, each) in enumerate(zip(prompts, choices, strict=True), start=1):
        if not prompt:
            raise InputError(
                f"a prompt must not be empty, number {number} is; without a prompt, its choices have no likelihood"
            )
        if not all(each):
            raise InputError(
                "every choice must have tokens, for one without any is always the likeliest; "
                f"one of number {number} has none"
            )


def _choice(number: int, scored: list[tuple[float, int]]) -> Choice:
    sums = [total for total, _ in scored]
    if any(map(math.isnan, sums)):
        raise InputError(
            f"the model must give every choice a log-likelihood, got nan in row {number}; it may be damaged, "
            "or need --precision fp32"
        )
    means = [total / length for total, length in scored]
    return Choice(sums.index(max(sums)), means.index(max(means)), tuple(sums))


@torch.no_grad()
def log_likelihoods(
    model: nn.Module, forest: Forest, pad_id: int, batch_size: int, run: Run = plainly
) -> Float[Tensor, " N"]:
    """Return log p(continuation | prompt) of a forest's pairs in nats; `run` makes the forwards."""
    total = torch.zeros(len(forest.pairs), dtype=torch.float64)
    buckets = forest.buckets(batch_size)
    for bucket in track(buckets, "scoring", len(buckets), "batches"):
        batch = forest.batch(bucket)
        inputs = _on_device(model, batch.inputs(pad_id))
        logits = run(partial(logits_at, model, inputs, batch.wanted.to(device_of(model))))
        log_probs = torch.log_softmax(logits.float(), dim=-1)[batch.numbers, batch.tokens]
        total.index_add_(0, batch.owners, log_probs.cpu().double())
    return total.float()


def _on_device(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device_of(model)) for name, tensor in batch.items()}


def check_lengths(model: nn.Module, lengths: Sequence[int], advice: str) -> None:
    """Refuse examples without positions for them; warn of those beyond the context."""
    refuse_beyond(model, lengths, advice)
    warn_beyond(model, lengths)


def refuse_beyond(model: nn.Module, lengths: Sequence[int], advice: str) -> None:
    """Raise InputError for the first example that needs more positions than the model has."""
    context = num_positions(model)
    if context is None or max(lengths, default=0) <= context or not _positions_end(model, context):
        return
    number, length = next((number, length) for number, length in enumerate(lengths, start=1) if length > context)
    raise InputError(
        f"every example must fit into the model's {context} positions, number {number} comes to {length} tokens; "
        f"{advice}"
    )


def warn_beyond(model: nn.Module, lengths: Sequence[int]) -> None:
    """Log how many examples exceed the context that the model was made for."""
    context = num_positions(model)
    if context is not None and (beyond := [length for length in lengths if length > context]):
        message = (
            "%d of %d examples have more tokens (up to %d) than the %d positions that the model was made for; "
            "their figures mean little"
        )
        logger.warning(message, len(beyond), len(lengths), max(beyond), context)


def _positions_end(model: nn.Module, context: int) -> bool:
    """Return whether a model has a table with a row for each position, beside that of its words.

    MPT computes a table of biases from its `max_seq_len`.
    """
    own: Any = own_model(model)
    words = set(own.get_input_embeddings().modules())
    tables = [part.weight for part in own.modules() if isinstance(part, nn.Embedding) and part not in words]
    tables += [buffer for buffer in own.buffers() if buffer.ndim == 2]
    return hasattr(own.config, "max_seq_len") or any(context <= len(table) <= context + OFFSET for table in tables)
