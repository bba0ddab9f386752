"""The model that an adapter is merged into: its adapted linears block by block, from files or in memory."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.blockwise.matrices import Matrix, linear_matrix
from shears.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.blockwise.walk import by_block_or_whole
from shears.checkpoints.tensor_files import TensorWriter
from shears.errors import InputError
from shears.export.updates import Update, in_format
from shears.models.blocks import sharing_a_weight
from shears.models.devices import pick_device
from shears.models.load import load_model
from shears.models.ref import ModelRef
from shears.sparsity.report import LinearSparsity

COPIED = ("config.json", "generation_config.json")
Made = TypeVar("Made")


class Target:
    """A model to merge into. `before` and `after` are the zeros of the linears merged so far.

    InputError where the model lacks a linear that has an update, or where its weight is another linear's too: what
    becomes of one would become of both.
    """

    def __init__(
        self, source: BlockSource, updates: Mapping[str, Update], format_of: Callable[[str], torch.dtype]
    ) -> None:
        self.source, self.updates, self._format_of = source, updates, format_of
        self.by_block = _by_block(source, updates)
        if (pair := sharing_a_weight(source.model, updates)) is not None:
            raise InputError(
                f"a merge must give each linear a weight of its own, {pair[0]} shares its with {pair[1]}; export peft"
            )
        self.before: dict[str, LinearSparsity] = {}
        self.after: dict[str, LinearSparsity] = {}

    @property
    def indices(self) -> list[int]:
        """Numbers of the blocks that have adapted linears."""
        return [index for index, matrices in enumerate(self.by_block) if matrices]

    @contextmanager
    def opened(self, index: int) -> Iterator[list[Matrix]]:
        """Hold a block in memory and yield its adapted linears; keep what they become."""
        matrices = self.by_block[index]
        with self.source.opened(index):
            yield matrices
            self.keep(index)

    def keep(self, index: int) -> None:
        """Keep what the adapted linears of an open block have become."""
        self.source.keep(index, [matrix.parameter for matrix in self.by_block[index]])

    def view(self, matrix: Matrix) -> Float[Tensor, "O I"]:
        """Return a weight of the open block as it is now."""
        return matrix.view(self.source.model)

    def put(self, matrix: Matrix, values: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"] | None) -> None:
        """Make `values` the weight, rounded to what the files hold; zeros stay where not `kept` (None: anywhere).

        InputError where they are too large for that.
        """
        view = self.view(matrix)
        if matrix.name not in self.before:
            self.before[matrix.name] = LinearSparsity(matrix.shape, int((view == 0 if kept is None else ~kept).sum()))
        dtype = self._format_of(matrix.parameter)
        rounded = values.to(dtype) if kept is None else in_format(values, kept, dtype)
        if not torch.isfinite(rounded).all():
            what = f"exceeds {dtype}; take a base of another dtype"
            if not torch.isfinite(values).all():
                what = "has NaN or infinity before it is rounded; make its base, or its adapter, again"
            raise InputError(f"merged weights must be finite, {matrix.name} {what}")
        view.copy_(rounded)
        self.after[matrix.name] = LinearSparsity(matrix.shape, int((rounded == 0).sum()))


def _by_block(source: BlockSource, updates: Mapping[str, Update]) -> list[list[Matrix]]:
    blocks = source.model.get_submodule(source.prefix)
    found = [
        [linear_matrix(f"{source.prefix}.{index}.{name}", linear) for name, linear in block.named_modules()
         if f"{source.prefix}.{index}.{name}" in updates]
        for index, block in enumerate(blocks.children())
    ]  # fmt: skip
    if absent := sorted(updates.keys() - {matrix.name for matrices in found for matrix in matrices}):
        raise InputError(f"every adapted linear must be in a decoder block of the base model, {absent[0]} is not")
    return found


class Changed(BlockSource):
    """The target's model, unchanged, whose adapted linears read as `change` makes them while a block is open."""

    def __init__(self, target: Target, change: Callable[[Tensor, Update], Tensor]) -> None:
        source = target.source
        self.model: PreTrainedModel = source.model
        self.prefix, self.device, self.resident = source.prefix, source.device, source.resident
        self._target, self._change = target, change

    @contextmanager
    def opened(self, index: int) -> Iterator[nn.Module]:
        """Yield the block, changed for a while."""
        target = self._target
        with target.source.opened(index) as block:
            before = {}
            for matrix in target.by_block[index]:
                view = target.view(matrix)
                before[matrix] = view.clone()
                view.copy_(self._change(view, target.updates[matrix.name]))
            try:
                yield block
            finally:
                for matrix, weight in before.items():
                    target.view(matrix).copy_(weight)

    def with_head(self) -> AbstractContextManager[None]:
        """Hold the head in memory for a while."""
        return self._target.source.with_head()

    def keep(self, index: int, parameters: object) -> None:
        """Nothing to do: the model stays as it is."""


@dataclass(frozen=True)
class Merged(Generic[Made]):
    """What merging returned, the zeros by linear, and what opens the merged model."""

    made: Made
    before: Mapping[str, LinearSparsity]
    after: Mapping[str, LinearSparsity]
    source: Callable[[], BlockSource]


def merge_into(
    model: ModelRef, work: Path, updates: Mapping[str, Update], device: str, merge: Callable[[Target], Made]
) -> Merged[Made]:
    """Write the model, as `merge` changes it, to `work`.

    The model is read and written block by block, or, where it cannot be read so, from memory.
    """

    def whole() -> Merged[Made]:
        network = load_model(model, "auto", device, to_save=True)
        target = Target(WholeModel(network), updates, lambda name: network.get_parameter(name).dtype)
        made = merge(target)
        network.save_pretrained(work)
        return Merged(made, target.before, target.after, lambda: target.source)

    return by_block_or_whole(work, lambda: _streamed(model.folder, work, updates, device, merge), whole)


def _streamed(
    folder: Path, work: Path, updates: Mapping[str, Update], device: str, merge: Callable[[Target], Made]
) -> Merged[Made]:
    skeleton = Skeleton.open(folder, torch.float32, pick_device(device))
    writer = TensorWriter(skeleton.files, work)
    source = StreamedModel(skeleton, writer)
    target = Target(source, updates, lambda name: writer.dtype(skeleton.disk_names(name)[0]))
    made = merge(target)
    writer.finish()
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, work / name)

    def written() -> BlockSource:
        return StreamedModel(Skeleton.open(work, torch.float32, pick_device(device)), writer)

    return Merged(made, target.before, target.after, written)
