"""A forward that begins at a later block, with hidden states of an earlier one; prompt caches.

It is the model's ordinary forward with stand-ins for the blocks below the start, so it has the same
bits. B prompts of T tokens, padded on the left; K configurations.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks, replaced_forwards
from shears.models.properties import TRIAL_ERRORS, forward_parameters, own_model

logger = logging.getLogger(__name__)
HIDDEN = "hidden_states"
States = dict[int, Tensor]
"""The inputs of the blocks in one forward, by the block's number."""
TRIED = 8  # blocks that a trial begins at, beside the last one
MAX_ROUNDING_ERROR = 0.2  # of the logits' standard deviation: the largest error of bf16 (docs/runtime.md)
Fill = Callable[[Mapping[str, Tensor]], Any]
"""Returns a cache of a batch without its last tokens, from which `generate` continues."""


class PrefixError(InputError):
    """A forward of this model cannot begin at a later block."""


class Prefix:
    """A model's decoder blocks, any of which can run first; made by `open_prefix`.

    `name` is the name of the list of blocks; `num_runs` counts the blocks that ran.
    """

    def __init__(self, model: nn.Module) -> None:
        self.name, self._blocks = decoder_blocks(own_model(model))
        self._output_length = 0  # of a block's output if it is a tuple; 0 for a bare tensor
        self.num_runs = 0
        self.bytes_per_position = 0  # of a block's inputs

    def __len__(self) -> int:
        return len(self._blocks)

    @contextmanager
    def starting(self, start: int, known: Mapping[int, Tensor], wanted: Collection[int] = ()) -> Iterator[States]:
        """Let the next forward begin at block `start` with the inputs `known[start]`.

        0 begins at the embeddings. Yields a dictionary that gets the inputs of `wanted` blocks.
        """
        seen: States = {}
        handles = [
            block.register_forward_pre_hook(self._watch(index, seen, index in wanted), with_kwargs=True)
            for index, block in enumerate(self._blocks)
            if index >= start
        ]
        try:
            with self._standing_in(start, known.get(start)):
                yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, index: int, seen: States, keep: bool) -> Callable[..., None]:
        def watch(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.num_runs += 1
            if keep:
                if index in seen:
                    raise PrefixError(f"block {index} runs more than once in a forward")
                seen[index] = args[0] if args else kwargs[HIDDEN]

        return watch

    def _standing_in(self, start: int, states: Tensor | None) -> AbstractContextManager[None]:
        """Let the blocks below the start return the inputs of the start."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            # a trial has shown that the other outputs of a block are not used
            return (states, *[None] * (self._output_length - 1)) if self._output_length else states

        return replaced_forwards(list(self._blocks)[:start], lambda _: forward)

    def inspect_outputs(self, forward: Callable[[], object]) -> None:
        """Find out from a forward whether the blocks return tuples, and of which length."""
        lengths: list[int] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            lengths.append(0 if isinstance(output, Tensor) else len(output))

        handles = [block.register_forward_hook(look) for block in self._blocks]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
        if len(set(lengths)) != 1:
            raise PrefixError("the decoder blocks' outputs differ in form")
        self._output_length = lengths[0]


@torch.no_grad()
def open_prefix(model: nn.Module, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Prefix:
    """Return the model's prefix after a trial; PrefixError if the trial fails.

    `first` and `second` are forwards on two small batches. The first must give the same bits when
    it begins at the last block and at others. The second runs before, so that states which blocks
    keep for later blocks show.
    """
    prefix = Prefix(model)
    try:
        prefix.inspect_outputs(first)
        with prefix.starting(0, {}, range(len(prefix))) as inputs:
            expected = first()
        if list(inputs) != list(range(len(prefix))):
            raise PrefixError("the decoder blocks do not run once each, in order")
        second()
        starts = {len(prefix) - 1, *kept_blocks(len(prefix), 1, TRIED)} - {0}
        for start in sorted(starts, reverse=True):  # descending, so that the blocks below saw the second batch last
            with prefix.starting(start, inputs):
                result = first()
            if not torch.equal(result, expected):
                raise PrefixError(f"a forward that begins at block {start} gives other results")
    except PrefixError:
        raise
    except TRIAL_ERRORS as error:
        raise PrefixError(f"a forward that begins at a later block fails ({first_line(error)})") from error
    prefix.num_runs = 0
    prefix.bytes_per_position = max(states.shape[-1] * states.element_size() for states in inputs.values())
    return prefix


def kept_blocks(num_blocks: int, bytes_each: int, budget: int) -> tuple[int, ...]:
    """Return blocks, spread evenly, whose inputs fit into a budget of bytes.

    Block 0 is never one of them: its inputs, the embeddings, cost nothing.
    """
    count = min(num_blocks - 1, budget // bytes_each)
    return tuple(round((place + 1) * num_blocks / (count + 1)) for place in range(count))


def first_blocks(modules: Mapping[str, Collection[str]], prefix: str) -> dict[str, int]:
    """Return, for each group, the first block with one of its modules; 0 outside the blocks.

    The blocks below compute the same whatever the ranks of the group.
    """
    found = {}
    for group, names in modules.items():
        behind = [name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}.")]
        inside = len(behind) == len(names) > 0
        found[group] = min(int(rest.split(".", 1)[0]) for rest in behind) if inside else 0
    return found


def first_difference(
    first: Mapping[str, int], one: Mapping[str, int], other: Mapping[str, int], num_blocks: int
) -> int:
    """Return the first block in which two configurations differ; the number of blocks if none.

    `first` is the result of `first_blocks`.
    """
    return min((first[group] for group in one if one[group] != other[group]), default=num_blocks)


@dataclass(frozen=True)
class Way:
    """How one configuration reads prompts: what activates it, and the first block it computes.

    Blocks below `start` equal those of the configuration that starts at block 0.
    """

    activate: Callable[[], object]
    start: int = 0


class PromptCaches:
    """Fills caches; made by `open_prompt_caches`, which tries whether the model supports it."""

    def __init__(self, model: nn.Module, prefix: Prefix) -> None:
        self._model = model
        self.prefix = prefix
        self._takes = forward_parameters(model)

    @torch.no_grad()
    def fill(self, batch: Mapping[str, Tensor], ways: Sequence[Way]) -> Any:
        """Return a cache of B x K rows, ordered by prompt, of all tokens of a batch but the last.

        One of the K ways starts at block 0; the others are computed from their start on.
        """
        tensors = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask", "position_ids")}
        inputs: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name in self._takes}
        inputs |= {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in self._takes else {})
        whole = min(ways, key=lambda way: way.start)
        base, known = self._read(inputs, whole, {}, {way.start for way in ways})
        caches = [base if way is whole else self._read(inputs, way, known)[0] for way in ways]
        for way, cache in zip(ways, caches, strict=True):
            cache.layers[: way.start] = base.layers[: way.start]
        return _interleaved(caches)

    def _read(
        self, inputs: Mapping[str, Any], way: Way, known: States, wanted: Collection[int] = ()
    ) -> tuple[Any, States]:
        """Return the cache of a forward from a way's start, and the wanted blocks' inputs."""
        way.activate()
        with self.prefix.starting(way.start, known, wanted) as seen:
            cache = self._model(**inputs).cache
        if len(cache.layers) != len(self.prefix):
            raise PrefixError("the number of layers in the cache differs from the number of blocks")
        return cache, seen


def _interleaved(caches: Sequence[Any]) -> Any:
    """Return the last cache with the rows of all caches, ordered by row."""
    for index, layers in enumerate(zip(*[list(cache.layers) for cache in caches], strict=True)):
        for name in ("keys", "values"):
            rows = [getattr(layer, name) for layer in layers]
            setattr(layers[-1], name, torch.stack(rows, dim=1).flatten(0, 1))
        caches[-1].layers[index] = layers[-1]
    return caches[-1]


def open_prompt_caches(
    model: nn.Module, batch: Mapping[str, Tensor], logits: Callable[[Any], Tensor]
) -> PromptCaches | None:
    """Return what fills caches, after a trial; None, with the reason in the log, if it fails.

    `logits(cache)` continues two copies of every prompt of the batch (B T), from a cache or, for
    None, from the start; both must give equal logits up to rounding.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def forward(ids: Tensor) -> Tensor:
        output: Tensor = own_model(model)(**{**inputs, "input_ids": ids}).logits
        return output

    ids = inputs["input_ids"]
    try:
        with torch.no_grad():
            prefix = open_prefix(model, lambda: forward(ids), lambda: forward(ids.flip(1)))
            caches = PromptCaches(model, prefix)
            ways = [Way(lambda: None), Way(lambda: None, len(prefix) // 2)]
            actual = logits(caches.fill(batch, ways)).float()
            expected = logits(None).float()
            if actual.shape != expected.shape or (actual - expected).abs().max() > MAX_ROUNDING_ERROR * expected.std():
                raise PrefixError("from a combined cache, the model gives other logits")
    except (InputError, *TRIAL_ERRORS) as error:
        logger.info("prompt caches are not shared, every configuration computes all blocks: %s", first_line(error))
        return None
    return caches
