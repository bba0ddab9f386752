"""A forward that begins at a later block, with hidden states of an earlier one.

It is the model's ordinary forward with stand-ins for the blocks below the start, so it has the same
bits.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks, replaced_forwards
from shears.models.properties import TRIAL_ERRORS, own_model

HIDDEN = "hidden_states"
States = dict[int, Tensor]
"""The inputs of the blocks in one forward, by the block's number."""
TRIED = 8  # blocks that a trial begins at, beside the last one


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
