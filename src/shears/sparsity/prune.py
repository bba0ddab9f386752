"""Prune a model: the linears of its decoder blocks, and nothing else."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.checkpoints.tensor_files import refuse_non_finite
from shears.checkpoints.zeros import count_zeros
from shears.config.sparsify import ALLOCATIONS, METHODS, Method, SparsifyConfig
from shears.errors import InputError
from shears.models.blockwise.activations import Activations
from shears.models.blockwise.capture import InputMoments, InputNorms, Receive, capturing
from shears.models.blockwise.matrices import Matrix, affordable
from shears.models.blockwise.sources import BlockSource, WholeModel
from shears.models.blockwise.walk import Batches, BlockRun, IrregularBlocks, Walk, evaluating, walk_blocks
from shears.models.properties import check_calibration
from shears.models.recovery import Recovered
from shears.progress import track
from shears.sparsity.checkpoint import Checkpoint
from shears.sparsity.masks import Pattern
from shears.sparsity.methods.refit import refit
from shears.sparsity.methods.scores import Pruned, Task, prune_by_magnitude
from shears.sparsity.plan import CalibrationRun, Chosen, choose, linear_name, zeros_by_weight
from shears.sparsity.reconstruction import BlockErrors, Reconstruction
from shears.sparsity.rewrite import LinearSparsity, overall_sparsity

logger = logging.getLogger(__name__)
Measure = Callable[[Sequence[Matrix], Receive], None]
_Removed = tuple[Matrix, Tensor, Tensor | None, Tensor | None]  # dense weight, norms and moments of its inputs


@dataclass(frozen=True)
class SparsityReport:
    """What pruning did: the target, the pruned linears, the share of weights left dense.

    `by_magnitude` names the weights (experts by number) that no calibration token reached; `blocks`
    has the errors of the blocks that were fitted.
    """

    target: float
    linears: Mapping[str, LinearSparsity]
    uncovered: float
    by_magnitude: Sequence[str] = ()
    recovered: Recovered | None = None
    blocks: Mapping[str, BlockErrors] = field(default_factory=dict)

    @property
    def achieved(self) -> float:
        """Share of zeros over all pruned linears."""
        return overall_sparsity(self.linears)


def sparsify_model(model: PreTrainedModel, batches: Batches, config: SparsifyConfig) -> SparsityReport:
    """Prune the linears of a model in memory, in place, block by block.

    `batches` are calibration token ids; a method that needs weights alone needs none. Embeddings,
    norms and head stay as they are. InputError if nothing can be pruned or a weight is not finite.
    """
    return prune_blocks(WholeModel(model), batches, config)


@torch.no_grad()
def prune_blocks(
    source: BlockSource,
    batches: Batches,
    config: SparsifyConfig,
    folder: Path | None = None,
    checkpoint: Checkpoint | None = None,
) -> SparsityReport:
    """Prune the blocks of `source`; hidden states beyond the budget go to `folder`.

    With a checkpoint, which takes a source that is not resident, the pruning goes on from there.
    InputError as in `sparsify_model`.
    """
    chosen = choose(source.model, config)
    if source.resident:
        check_weights(source.model, chosen.matrices)
    if config.needs_calibration:
        check_calibration(source.model, batches)
    if config.reconstruct == "block":
        batches = [sequence[None] for batch in batches for sequence in batch]  # a gradient step for each
    run = CalibrationRun(source, batches, config, folder)
    pruner = _Pruner(run, chosen, _zeros(run, chosen, checkpoint))
    if config.measures_inputs:
        parts = 2 if config.reconstruct == "block" else 1
        with run.activations(parts) as hidden, run.activations(parts) as dense:
            _prune_on_the_way(run, pruner, hidden, dense, checkpoint)
    else:
        for index in track(range(len(chosen.by_block)), "sparsify", len(chosen.by_block), "block"):
            with source.opened(index):
                pruner.prune_unmeasured(index)
    return pruner.report()


def _zeros(run: CalibrationRun, chosen: Chosen, checkpoint: Checkpoint | None) -> dict[str, int]:
    """Return the number of zeros of every weight."""
    if checkpoint is not None and checkpoint.state:
        with checkpoint.reading():
            return {name: int(checkpoint.state["zeros"][name]) for name in chosen.sizes}
    zeros = zeros_by_weight(chosen, run.config, _sparsities(run, chosen))
    if checkpoint is not None and checkpoint.is_due:
        checkpoint.save(0, {"zeros": zeros})
    return zeros


def _sparsities(run: CalibrationRun, chosen: Chosen) -> dict[str, float] | None:
    """Return the sparsity of every weight; None for the same in all.

    It is None too if the method's default allocation needs a walk, and the model allows none.
    """
    config = run.config
    reference = ALLOCATIONS[config.allocation]
    if reference is None:
        return None
    try:
        return dict(resolve_name(reference)(run, chosen, config.sparsity))
    except IrregularBlocks as error:
        is_default = config.allocation == SparsifyConfig(method=config.method).allocation
        if not (run.source.resident and is_default):
            raise
        logger.warning("%s; all linears get the same sparsity instead (allocation uniform)", error)
        return None


def _prune_on_the_way(
    run: CalibrationRun,
    pruner: "_Pruner",
    hidden: Activations,
    dense: Activations,
    checkpoint: Checkpoint | None,
) -> None:
    """Prune each block when the walk reaches it; all at once if the model allows no walk.

    `dense` takes the dense model's hidden states if blocks are fitted. InputError if they are to be
    and the model allows no walk.
    """
    try:
        walk = run.walk(hidden)
    except IrregularBlocks as error:
        if not run.source.resident:
            raise
        if run.config.reconstruct == "block":
            raise InputError(f"reconstruct must be none or linear here, got block: {error}") from None
        logger.warning("%s; all linears are measured on the dense model instead", error)
        pruner.prune_at_once()
    else:
        if run.config.reconstruct == "block":
            pruner.reconstruction = Reconstruction(walk, dense, run.config.seed)
        if checkpoint is None:
            walk_blocks(walk, pruner.prune_block)
        else:
            _walk_on(walk, pruner, {"hidden": hidden, "dense": dense}, checkpoint)


def _walk_on(walk: Walk, pruner: "_Pruner", states: Mapping[str, Activations], checkpoint: Checkpoint) -> None:
    """Prune the blocks behind those of the checkpoint, and save a new one now and then."""
    if checkpoint.done:
        with checkpoint.reading():
            pruner.restore(checkpoint.state, checkpoint.load(states))

    def reached(index: int) -> None:
        if checkpoint.is_due:
            checkpoint.save(index, pruner.state(), states, pruner.tensors())

    walk_blocks(walk, pruner.prune_block, begin=checkpoint.done, reached=reached)


class _Pruner:
    """Prunes block after block, and collects the figures of the report."""

    def __init__(self, run: CalibrationRun, chosen: Chosen, zeros: Mapping[str, int]) -> None:
        config = run.config
        self._run = run
        self._config = config
        self._model = run.source.model
        self._chosen = chosen
        self._zeros = zeros
        self._pattern = Pattern.parse(config.pattern)
        self._method = METHODS[config.method]
        self._needs = config.needs
        self.reconstruction: Reconstruction | None = None
        self._recovered = Recovered(self._model, chosen.matrices, config)
        self._removed: list[_Removed] = []
        self._linears: dict[str, LinearSparsity] = {}
        self._by_magnitude: list[str] = []

    def prune_block(self, block: BlockRun) -> None:
        """Measure a block's inputs and prune it.

        Norms are measured on the dense block, as in Wanda. Moments are measured group by group
        behind the linears that are pruned already, so that each group makes up for them. Moments
        for the recovery alone come with the norms.
        """
        matrices = self._chosen.by_block[block.name]
        if self.reconstruction is not None:
            self.reconstruction.look(block)
        if self._needs == "moments" and matrices:
            for group in affordable(block.groups(self._checked(matrices)), self._run.budget):
                moments = InputMoments()
                block.measure(group, moments.receive)
                for matrix in group:
                    self._prune(matrix, moments=moments.of(matrix))
        else:
            self._prune_measured(matrices, block.measure)
        if self.reconstruction is not None and matrices:
            self.reconstruction.fit(block, matrices)
            self._recover()
        self._keep(block.index, matrices)

    def prune_unmeasured(self, index: int) -> None:
        """Prune a block by its weights alone."""
        matrices = self._chosen.by_block[f"{self._run.source.prefix}.{index}"]
        for matrix in self._checked(matrices):
            self._prune(matrix)
        self._keep(index, matrices)

    def prune_at_once(self) -> None:
        """Prune all blocks by the statistics of one forward of the whole dense model."""
        batches = self._run.batches

        def measure(matrices: Sequence[Matrix], receive: Receive) -> None:
            with evaluating(self._model), capturing(self._model, self._model, matrices, receive):
                for batch in track(batches, "sparsify", len(batches), "batch"):
                    with self._run.context():
                        self._model(batch.to(self._run.source.device), use_cache=False)

        self._prune_measured(self._chosen.matrices, measure)

    def report(self) -> SparsityReport:
        """Return the figures of what was pruned."""
        recovered = self._recovered if self._config.recover_rank else None
        uncovered = self._chosen.uncovered
        target = self._config.sparsity
        blocks = self.reconstruction.errors if self.reconstruction is not None else {}
        return SparsityReport(target, self._linears, uncovered, self._by_magnitude, recovered, blocks)

    def state(self) -> dict[str, Any]:
        """Return as JSON data what the report, a resume and the blocks to come need of those pruned."""
        fitted = self.reconstruction
        return {
            "zeros": self._zeros,
            "written": self._run.source.kept(),
            "linears": {name: [*linear.shape, linear.zeros] for name, linear in self._linears.items()},
            "by_magnitude": self._by_magnitude,
            "recovered": list(self._recovered.linears),
            "blocks": {name: list(errors) for name, errors in fitted.errors.items()} if fitted else {},
            "reach": fitted.reach if fitted else 0.0,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the recoveries so far."""
        return self._recovered.tensors()

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` and `tensors` returned."""
        linears = state["linears"]
        self._linears = {
            name: LinearSparsity((rows, columns), zeros) for name, (rows, columns, zeros) in linears.items()
        }
        self._by_magnitude = list(state["by_magnitude"])
        self._recovered.restore(tensors, state["recovered"])
        if self.reconstruction is not None:
            self.reconstruction.errors = {name: BlockErrors(*errors) for name, errors in state["blocks"].items()}
            self.reconstruction.reach = state["reach"]

    def _prune_measured(self, matrices: Sequence[Matrix], measure: Measure) -> None:
        """Prune weights by the statistics of their inputs that pruning or the recovery needs."""
        norms = InputNorms()
        moments = InputMoments()

        def receive(matrix: Matrix, inputs: Tensor) -> None:
            if self._needs != "moments":
                norms.receive(matrix, inputs)
            if "moments" in (self._needs, self._recovered.needs(matrix)):
                moments.receive(matrix, inputs)

        def is_measured(matrix: Matrix) -> bool:
            return {self._needs, self._recovered.needs(matrix)} != {"nothing"}

        if measured := list(filter(is_measured, matrices)):
            measure(measured, receive)
        for matrix in self._checked(matrices):
            self._prune(matrix, norms.of(matrix), moments.of(matrix))

    def _checked(self, matrices: Sequence[Matrix]) -> Sequence[Matrix]:
        if not self._run.source.resident:
            check_weights(self._model, matrices)
        return matrices

    def _keep(self, index: int, matrices: Sequence[Matrix]) -> None:
        self._run.source.keep(index, [matrix.parameter for matrix in matrices])

    def _prune(self, matrix: Matrix, norms: Tensor | None = None, moments: Tensor | None = None) -> None:
        """Prune one weight in place by the statistics of its inputs, and count its zeros."""
        view = matrix.view(self._model)
        recovers = self._recovered.needs(matrix) != "nothing"
        if moments is not None and not moments.any():
            moments = None  # inputs that are always zero tell as little as none
        if self._needs == "moments" and moments is not None:
            norms = moments.diagonal().sqrt()
        elif norms is None and self._needs != "nothing":
            logger.warning("no calibration token reached %s: pruned by magnitude alone", matrix.name)
            self._by_magnitude.append(matrix.name)
        # the recovery needs the dense weight after `view` is overwritten
        dense = view.to(torch.float32, copy=recovers)
        task = Task(dense, self._pattern, self._zeros[matrix.name], norms, moments)
        weight, pruned = prune_weight(task, self._method, reconstruct=self._config.reconstruct == "linear")
        view.copy_(weight)
        view.masked_fill_(pruned, 0.0)
        if recovers:
            self._removed.append((matrix, dense, norms, moments))
        if self.reconstruction is None:
            self._recover()
        self._count(matrix, count_zeros(view))

    def _recover(self) -> None:
        """Give the recovery what the weights that are final by now have lost."""
        for matrix, dense, norms, moments in self._removed:
            self._recovered.add(matrix, dense - matrix.view(self._model).float(), norms, moments)
        self._removed.clear()

    def _count(self, matrix: Matrix, zeros: int) -> None:
        """Add the zeros of a weight to its linear; all experts of a stack are one linear."""
        outputs, inputs = matrix.shape
        name = linear_name(matrix)
        if name in self._linears:
            outputs += self._linears[name].shape[0]
            zeros += self._linears[name].zeros
        self._linears[name] = LinearSparsity((outputs, inputs), zeros)


def prune_weight(task: Task, method: Method, *, reconstruct: bool) -> Pruned:
    """Return the pruned weight and its mask; by magnitude without the method's statistics."""
    statistics = {"nothing": task.weight, "norms": task.norms, "moments": task.moments}
    if statistics[method.needs] is None:
        return prune_by_magnitude(task)
    weight, pruned = resolve_name(method.prune)(task)
    if reconstruct and task.moments is not None:
        weight = refit(task.weight, weight, ~pruned, task.moments)
    return weight, pruned


def check_weights(model: nn.Module, matrices: Sequence[Matrix]) -> None:
    """Raise InputError for a weight that is no plain number or not finite."""
    for matrix in matrices:
        weight = model.get_parameter(matrix.parameter)
        if not weight.is_floating_point():
            raise InputError(
                f"weights must be plain numbers to be pruned, {matrix.name} is {weight.dtype}; load it unquantized"
            )
        refuse_non_finite(getattr(model, "name_or_path", "") or "the model", [(matrix.name, matrix.cut(weight))])
