"""Prune a model: the linears of its decoder blocks, and nothing else."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.blockwise.activations import Activations
from shears.blockwise.capture import Captured, InputMoments, InputNorms, Receive
from shears.blockwise.matrices import Matrix
from shears.blockwise.sources import BlockSource, WholeModel
from shears.blockwise.walk import Batches, BlockRun, Context, IrregularBlocks, Walk, evaluating, walk_blocks
from shears.config import SparsifyConfig
from shears.config.notation import num_bytes
from shears.errors import InputError
from shears.models.devices import autocast
from shears.models.load import num_embeddings
from shears.models.losses import check_sequence_length
from shears.progress import track
from shears.sparsity.allocation.owl import allocate
from shears.sparsity.masks import Pattern
from shears.sparsity.methods.task import METHODS, Needs, Task, prune_weight
from shears.sparsity.plan import Chosen, choose, linear_name, zeros_by_weight
from shears.sparsity.recovery.adapter import Recoveries
from shears.sparsity.report import LinearSparsity, SparsityReport

logger = logging.getLogger(__name__)


def sparsify_model(
    model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]], config: SparsifyConfig
) -> SparsityReport:
    """Prune the target linears of a model in memory, in place, block by block.

    `batches` are calibration token ids; a method that looks at weights alone needs none. Embeddings, norms and head
    stay bitwise as they are. InputError where there is nothing to prune or a weight is not finite.
    """
    return prune_blocks(WholeModel(model), batches, config)


def needs_inputs(config: SparsifyConfig) -> bool:
    """Tell whether calibration text is looked at."""
    return config.allocation != "uniform" or _measures(config)


def _measures(config: SparsifyConfig) -> bool:
    """Tell whether pruning itself, once the sparsities are known, looks at inputs."""
    return METHODS[config.method].needs != "nothing" or config.reconstruct or config.recover_rank > 0


@torch.no_grad()
def prune_blocks(
    source: BlockSource, batches: Batches, config: SparsifyConfig, folder: Path | None = None
) -> SparsityReport:
    """Prune block by block where the blocks come from; hidden states that exceed the budget wait in `folder`.

    Errors as in `sparsify_model`.
    """
    chosen = choose(source.model, config)
    if source.resident:
        check_weights(source.model, chosen.matrices)
    if needs_inputs(config):
        _check_batches(source.model, batches)

    def new_activations(parts: int = 1) -> Activations:
        return Activations(num_bytes(config.activation_budget) // parts, folder)

    def context() -> AbstractContextManager[object]:
        return autocast(config.precision, source.device)

    zeros = zeros_by_weight(chosen, config, lambda: allocate(source, batches, chosen, config, new_activations, context))
    pruner = _Pruner(source, chosen, config, zeros)
    if not _measures(config):
        for index in track(range(len(chosen.by_block)), "sparsify", len(chosen.by_block), "block"):
            with source.opened(index):
                pruner.prune_all(index)
    else:
        with new_activations() as hidden:
            _prune_on_the_way(source, batches, pruner, hidden, context)
    return pruner.report(config.sparsity)


def _prune_on_the_way(
    source: BlockSource, batches: Batches, pruner: "_Pruner", hidden: Activations, context: Context
) -> None:
    """Prune each block when the walk arrives there; a model in memory whose blocks allow no walk, all at once."""
    try:
        walk = Walk(source, batches, hidden, context)
    except IrregularBlocks as error:
        if not source.resident:
            raise
        logger.warning("%s; all linears are measured on the dense model instead", error)
        pruner.prune_at_once(batches, context)
    else:
        walk_blocks(walk, pruner.visit)


class _Pruner:
    """Prunes block after block and counts what came of it."""

    def __init__(self, source: BlockSource, chosen: Chosen, config: SparsifyConfig, zeros: Mapping[str, int]) -> None:
        self._source, self._chosen, self._config, self._zeros = source, chosen, config, zeros
        self._pattern = Pattern.parse("layer" if config.pattern == "global" else config.pattern)
        self._method, self._recoveries = METHODS[config.method], Recoveries(source.model, chosen, config)
        self._found: dict[str, list[tuple[tuple[int, int], int]]] = {}
        self._by_magnitude: list[str] = []

    @property
    def _needs(self) -> Needs:
        return "moments" if self._config.reconstruct else self._method.needs

    def visit(self, run: BlockRun) -> None:
        """Measure a block's inputs and prune it.

        Norms are taken of the dense block, as Wanda does. Moments are taken linear by linear behind the pruned ones
        before it, so that each makes up for what those changed; moments that only the recovery needs, with the norms.
        """
        matrices = self._chosen.by_block[run.name]
        if self._needs == "moments" and matrices:
            for group in self._affordable(run.groups(self._checked(matrices))):
                moments = InputMoments()
                run.measure(group, moments.receive)
                for matrix in group:
                    self._prune(matrix, moments=moments.of(matrix))
        elif matrices:
            norms, moments = InputNorms(), InputMoments()
            measured = self._measured(matrices)
            if measured:
                run.measure(measured, self._receive(norms, moments))
            for matrix in self._checked(matrices):
                self._prune(matrix, norms.of(matrix), moments.of(matrix))
        self._keep(run.index, matrices)

    def _measured(self, matrices: Sequence[Matrix]) -> Sequence[Matrix]:
        """Return those whose inputs matter, to pruning or to the recovery."""
        return [matrix for matrix in matrices if {self._needs, self._recoveries.needs(matrix)} != {"nothing"}]

    def _receive(self, norms: InputNorms, moments: InputMoments) -> Receive:
        """Return what fills the statistics with as much as each weight needs."""

        def receive(matrix: Matrix, inputs: Tensor) -> None:
            if self._needs != "moments":
                norms.receive(matrix, inputs)
            if "moments" in (self._needs, self._recoveries.needs(matrix)):
                moments.receive(matrix, inputs)

        return receive

    def _affordable(self, groups: Sequence[Sequence[Matrix]]) -> Iterator[Sequence[Matrix]]:
        """Split stacks of experts, each of which has moments of its own, so that these stay within the budget."""
        for group in groups:
            size = 4 * group[0].shape[1] ** 2
            count = (
                max(num_bytes(self._config.activation_budget) // size, 1) if group[0].index is not None else len(group)
            )
            yield from (group[start : start + count] for start in range(0, len(group), count))

    def prune_all(self, index: int) -> None:
        """Prune a block by its weights alone."""
        matrices = self._chosen.by_block[f"{self._source.prefix}.{index}"]
        for matrix in self._checked(matrices):
            self._prune(matrix)
        self._keep(index, matrices)

    def prune_at_once(self, batches: Batches, context: Context) -> None:
        """Prune all blocks by what one forward of the whole dense model shows, for blocks that allow no walk."""
        model, norms, moments = self._source.model, InputNorms(), InputMoments()
        measured = self._measured(self._chosen.matrices)
        with evaluating(model), Captured(model, model, measured, self._receive(norms, moments)):
            for batch in track(batches, "sparsify", len(batches), "batch"):
                with context():
                    model(batch.to(self._source.device), use_cache=False)
        for matrix in self._chosen.matrices:
            self._prune(matrix, norms.of(matrix), moments.of(matrix))

    def _checked(self, matrices: Sequence[Matrix]) -> Sequence[Matrix]:
        if not self._source.resident:
            check_weights(self._source.model, matrices)
        return matrices

    def _keep(self, index: int, matrices: Sequence[Matrix]) -> None:
        self._source.keep(index, list(dict.fromkeys(matrix.parameter for matrix in matrices)))

    def _prune(self, matrix: Matrix, norms: Tensor | None = None, moments: Tensor | None = None) -> None:
        view, recovers = matrix.view(self._source.model), self._recoveries.needs(matrix) != "nothing"
        if moments is not None and not moments.any():
            moments = None  # inputs that are always zero tell as little as none
        if self._needs == "moments" and moments is not None:
            norms = moments.diagonal().sqrt()
        elif norms is None and self._needs != "nothing":
            logger.warning("no calibration token reached %s: pruned by magnitude alone", matrix.name)
            self._by_magnitude.append(matrix.name)
        dense = view.to(torch.float32, copy=recovers)  # else the very weight that is written over below
        task = Task(dense, self._pattern, self._zeros[matrix.name], self._config.damping, norms, moments)
        found, pruned = prune_weight(task, self._method, self._config.reconstruct)
        view.copy_(found)
        view.masked_fill_(pruned, 0.0)
        if recovers:
            self._recoveries.take(matrix, dense - view.float(), norms, moments)
        self._found.setdefault(linear_name(matrix), []).append((matrix.shape, int((view == 0).sum())))

    def report(self, target: float) -> SparsityReport:
        """Return what was done."""
        done = {
            name: LinearSparsity(
                (sum(shape[0] for shape, _ in parts), parts[0][0][1]), sum(zeros for _, zeros in parts)
            )
            for name, parts in self._found.items()
        }
        return SparsityReport(target, done, self._chosen.uncovered, self._by_magnitude, self._recoveries.report())


def check_weights(model: nn.Module, matrices: Sequence[Matrix]) -> None:
    """Raise InputError for a weight that is no plain number or not finite."""
    for matrix in matrices:
        weight = model.get_parameter(matrix.parameter)
        if not weight.is_floating_point():
            raise InputError(
                f"weights must be plain numbers to be pruned, {matrix.name} is {weight.dtype}; load it unquantized"
            )
        if not torch.isfinite(matrix.cut(weight)).all():
            raise InputError(
                f"weights must be finite, {matrix.name} holds NaN or infinity; get a sound copy of the model"
            )


def _check_batches(model: PreTrainedModel, batches: Batches) -> None:
    if not batches:
        raise InputError("there must be at least one batch of calibration tokens, got none; give a calibration text")
    vocabulary = num_embeddings(model)
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise InputError(f"calibration token ids must be below {vocabulary}, got {largest}; use this model's tokenizer")
    check_sequence_length(model, max(batch.shape[1] for batch in batches))
