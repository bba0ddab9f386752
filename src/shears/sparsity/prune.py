"""Prune a model: the linears of its decoder blocks, and nothing else.

A killed pruning continues after its last saved block, to the same bits. A block's weights are in
the output files when it is saved. What the blocks after it need beside them are the hidden states,
which go into a folder of their own, and the decisions and figures so far.
"""

import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.checkpoints.tensor_files import refuse_non_finite
from shears.checkpoints.zeros import count_zeros
from shears.config.sparsify_options import METHODS, SparsifyConfig
from shears.errors import InputError, reading
from shears.models.activations import BUDGET, Activations
from shears.models.blocks import Matrix, affordable, block_matrices, decoder_blocks, linears, matching
from shears.models.capture import InputMoments, InputNorms
from shears.models.devices import autocast
from shears.models.load import check_calibration
from shears.models.recovery import Recovered
from shears.models.sources import BlockSource, StreamedModel
from shears.models.walk import Batches, BlockRun, Context, Walk
from shears.progress import track
from shears.records.artifacts import read_object, sync_path, sync_tree, write_json
from shears.records.folders import CHECKPOINTS, CONFIG, LOCK
from shears.sparsity.allocation import sensitivity_sparsities
from shears.sparsity.masks import Pattern, Task, prune_by_magnitude, zero_counts
from shears.sparsity.reconstruction import Reconstruction
from shears.sparsity.rewrite import LinearSparsity, add_zeros, overall_sparsity

logger = logging.getLogger(__name__)
SECONDS = 60.0  # of work lost by a kill: not every fast block writes gigabytes of hidden states
STATE = "state.json"
TENSORS = "tensors.safetensors"


class Checkpoint:
    """The last saved state of the pruning that works in a folder; empty at its beginning."""

    def __init__(self, work: Path, origin: Mapping[str, Any]) -> None:
        self.state: dict[str, Any] = {}
        self.done = 0
        self._folder = work / CHECKPOINTS
        self._origin = origin
        self._saved = time.monotonic()
        whole = [path for path in self._folder.glob("*") if path.name.isdecimal()]
        self._last = max(whole, key=lambda folder: int(folder.name), default=None)
        if self._last is not None:
            with reading(self._last / STATE):
                saved = read_object(self._last / STATE)
                if changed := [key for key, value in origin.items() if saved["origin"].get(key) != value]:
                    rule = f"a killed pruning must continue with the same {' and '.join(changed)}"
                    raise InputError(f"{rule}, the one in {work} had another; delete that folder to start again")
                self.state = saved["state"]
            self.done = int(self._last.name)
        files = work.glob("*.safetensors") if self.state.get("written") else ()
        kept = {work / CONFIG, work / LOCK, self._folder, self._last, *files}
        for path in [*work.iterdir(), *self._folder.glob("*")]:
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= SECONDS

    def save(
        self, done: int, state: Mapping[str, Any], hidden: Mapping[str, Activations], tensors: Mapping[str, Tensor]
    ) -> None:
        """Save JSON data, hidden states and tensors, synced to disk, in place of those before."""
        partial = self._folder / f"{done}.partial"
        partial.mkdir(parents=True)
        for name, activations in hidden.items():
            activations.save(partial / name)
        save_file(dict(tensors), partial / TENSORS)
        write_json(partial / STATE, {"origin": self._origin, "state": state})
        sync_tree(partial)
        folder = partial.rename(self._folder / str(done))
        sync_path(self._folder)
        if self._last is not None:
            shutil.rmtree(self._last)
        self._last = folder
        self._saved = time.monotonic()

    def load(self, hidden: Mapping[str, Activations]) -> dict[str, Tensor]:
        """Put the saved hidden states in place of others; return the saved tensors."""
        assert self._last is not None
        with reading(self._last):
            for name, activations in hidden.items():
                activations.load(self._last / name)
            mapped: dict[str, Tensor] = load_file(self._last / TENSORS)
            return {name: each.clone() for name, each in mapped.items()}  # the file is soon deleted


@dataclass
class SparsityReport:
    """What pruning did so far; no token reached the weights `by_magnitude` (experts by number)."""

    recovered: Recovered
    linears: dict[str, LinearSparsity] = field(default_factory=dict)
    by_magnitude: list[str] = field(default_factory=list)

    @property
    def achieved(self) -> float:
        return overall_sparsity(self.linears)


def sparsify_model(model: PreTrainedModel, batches: Batches, config: SparsifyConfig) -> SparsityReport:
    """Prune the linears of a model in memory, in place, block by block."""
    return prune_blocks(BlockSource(model), batches, config)


@torch.no_grad()
def prune_blocks(
    source: BlockSource,
    batches: Batches,
    config: SparsifyConfig,
    folder: Path | None = None,
    checkpoint: Checkpoint | None = None,
) -> SparsityReport:
    """Prune the blocks of `source`; hidden states beyond the budget go to `folder`."""
    by_block = choose(source.model, config)
    checkpoint = checkpoint if isinstance(source, StreamedModel) else None
    if config.needs_calibration:
        check_calibration(source.model, batches)
    context = partial(autocast, config.precision, source.device)
    zeros = checkpoint.state.get("zeros") if checkpoint is not None else None
    if zeros is None:
        zeros = _zeros_by_weight(source, batches, by_block, config, context, folder)
        if checkpoint is not None and checkpoint.is_due:
            checkpoint.save(0, {"zeros": zeros}, {}, {})
    pruner = _Pruner(source, by_block, zeros, config)
    if config.measures_inputs:
        _prune_walking(pruner, batches, context, folder, checkpoint)
    else:
        for index in track(range(len(by_block)), "sparsify", len(by_block), "blocks"):
            with source.opened(index):
                pruner.prune(index)
    return pruner.report


def _prune_walking(
    pruner: "_Pruner", batches: Batches, context: Context, folder: Path | None, checkpoint: Checkpoint | None
) -> None:
    fits = pruner.config.reconstruct == "block"
    if fits:
        batches = [sequence[None] for batch in batches for sequence in batch]  # a step for each
    budget = BUDGET // 2 if fits else BUDGET
    with Activations(budget, folder) as hidden, Activations(budget, folder) as dense:
        states = {"hidden": hidden, "dense": dense}
        walk = Walk(pruner.source, batches, hidden, context)
        if fits:
            pruner.reconstruction = Reconstruction(walk, dense, pruner.config.seed)
        begin = checkpoint.done if checkpoint is not None else 0
        if checkpoint is not None and begin:
            pruner.restore(checkpoint.state, checkpoint.load(states))
        for index in track(range(begin, len(walk)), "sparsify", len(walk) - begin, "blocks"):
            with walk.advancing(index) as block:
                if pruner.reconstruction is not None:
                    pruner.reconstruction.look(block)
                pruner.prune(index, block)
            if checkpoint is not None and checkpoint.is_due and index + 1 < len(walk):
                checkpoint.save(index + 1, pruner.state(), states, pruner.report.recovered.tensors())


class _Pruner:
    def __init__(
        self,
        source: BlockSource,
        by_block: Mapping[str, Sequence[Matrix]],
        zeros: Mapping[str, int],
        config: SparsifyConfig,
    ) -> None:
        self.source = source
        self.config = config
        self._model = source.model
        self._by_block = by_block
        self._zeros = zeros
        self._pattern = Pattern.parse(config.pattern)
        self._method = METHODS[config.method]
        self._removed: list[tuple[Matrix, Tensor, Tensor | None]] = []  # dense weight, input norms
        self.reconstruction: Reconstruction | None = None
        matrices = [matrix for matrices in by_block.values() for matrix in matrices]
        self.report = SparsityReport(Recovered(source.model, matrices, config))

    def prune(self, index: int, block: BlockRun | None = None) -> None:
        """Prune a block by the statistics of its inputs, or by its weights alone; save it."""
        matrices = self._by_block[f"{self.source.prefix}.{index}"]
        views = ((matrix.name, matrix.view(self._model)) for matrix in matrices)
        refuse_non_finite(self._model.name_or_path or "the model", views)
        if block is None:
            for matrix in matrices:
                self._prune(matrix)
        elif matrices:
            self._prune_measured(block, matrices)
        for matrix, dense, of_inputs in self._removed:  # what its weights, final by now, have lost
            self.report.recovered.add(matrix, dense - matrix.view(self._model).float(), of_inputs)
        self._removed.clear()
        self.source.keep([matrix.parameter for matrix in matrices])

    def _prune_measured(self, block: BlockRun, matrices: Sequence[Matrix]) -> None:
        """Prune by norms of the dense block, or by moments after all linears pruned before."""
        if self._method.needs == "moments":
            for group in affordable(block.groups(matrices), BUDGET):
                moments = InputMoments()
                block.measure(group, moments.receive)
                for matrix in group:
                    self._prune(matrix, moments=moments.of(matrix))
        else:
            norms = InputNorms()
            if self._method.needs == "norms" or any(map(self.report.recovered.takes, matrices)):
                block.measure(matrices, norms.receive)
            for matrix in matrices:
                self._prune(matrix, norms=norms.of(matrix))
        if self.reconstruction is not None:
            self.reconstruction.fit(block, matrices)

    def state(self) -> dict[str, Any]:
        report = self.report
        return {
            "zeros": self._zeros,
            "written": self.source.kept(),
            "linears": report.linears,
            "by_magnitude": report.by_magnitude,
            "recovered": list(report.recovered.linears),
            "reach": self.reconstruction.reach if self.reconstruction is not None else 0.0,
        }

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for name, ((rows, columns), zeros) in state["linears"].items():
            self.report.linears[name] = LinearSparsity((rows, columns), zeros)
        self.report.by_magnitude = list(state["by_magnitude"])
        self.report.recovered.restore(tensors, state["recovered"])
        if self.reconstruction is not None:
            self.reconstruction.reach = state["reach"]

    def _prune(self, matrix: Matrix, norms: Tensor | None = None, moments: Tensor | None = None) -> None:
        view = matrix.view(self._model)
        if moments is not None and moments.any():  # inputs that are all zero tell as little as none
            norms = moments.diagonal().sqrt()
        elif self._method.needs == "moments":
            moments = None
        recovers = self.report.recovered.takes(matrix)
        dense = view.to(torch.float32, copy=recovers)  # the recovery needs it after `view` changes
        task = Task(dense, self._pattern, self._zeros[matrix.name], norms, moments)
        if self._method.needs != "nothing" and norms is None:
            logger.warning("no calibration token reached %s, so it is pruned by magnitude", matrix.name)
            self.report.by_magnitude.append(matrix.name)
            weight, pruned = prune_by_magnitude(task)
        else:
            weight, pruned = resolve_name(self._method.prune)(task)
        view.copy_(weight)
        view.masked_fill_(pruned, 0.0)
        if recovers:
            self._removed.append((matrix, dense, norms))
        add_zeros(self.report.linears, matrix, count_zeros(view))


def choose(model: nn.Module, config: SparsifyConfig) -> dict[str, list[Matrix]]:
    """Return the weights of every decoder block that `skip` does not match."""
    prefix, blocks = decoder_blocks(model)
    first: dict[tuple[int, int | None], str] = {}
    by_block: dict[str, list[Matrix]] = {}
    for index, block in enumerate(blocks):
        name = f"{prefix}.{index}"
        own = {(id(model.get_parameter(each.parameter)), each.index): each for each in block_matrices(name, block)}
        by_block[name] = [each for key, each in own.items() if first.setdefault(key, name) == name]
    names = dict.fromkeys(each.linear for matrices in by_block.values() for each in matrices)
    # skip may name linears outside of the blocks too, such as lm_head
    skipped = matching(list({**names, **linears(model)}), config.skip) if config.skip else []
    targeted = names.keys() - set(skipped)
    if not targeted:
        raise InputError(f"the decoder blocks {prefix} must have linears to prune, they have none; check skip")
    by_block = {name: [each for each in matrices if each.linear in targeted] for name, matrices in by_block.items()}
    size = Pattern.parse(config.pattern).size or 1
    for odd in [each for weights in by_block.values() for each in weights if each.shape[1] % size]:
        rule = f"pattern {config.pattern} needs a multiple of {size} inputs"
        raise InputError(f"{rule}, {odd.name} has {odd.shape[1]}; leave that linear out with skip")
    return by_block


def _zeros_by_weight(
    source: BlockSource,
    batches: Batches,
    by_block: Mapping[str, Sequence[Matrix]],
    config: SparsifyConfig,
    context: Context,
    folder: Path | None,
) -> dict[str, int]:
    matrices = [matrix for matrices in by_block.values() for matrix in matrices]
    if (pattern := Pattern.parse(config.pattern)).size:
        return {matrix.name: pattern.num_zeros(matrix.shape) for matrix in matrices}
    sizes = {matrix.name: math.prod(matrix.shape) for matrix in matrices}
    sparsities = dict.fromkeys(sizes, config.sparsity)
    if config.allocation == "sensitivity":
        sparsities = sensitivity_sparsities(source, batches, by_block, config.sparsity, context, folder)
    return zero_counts(sparsities, sizes)
