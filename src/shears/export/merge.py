"""Formats merged and merged-sparse: one model folder with a sub-adapter in its weights.

An adapter trained without the mask fills the zeros when it is merged. For merged-sparse, it is
projected: each adapted linear gets the weights that W keeps, fitted by least squares to the outputs
of W + scaling B A. Blocks, and the groups of linears in a block, are fitted in order, each on
inputs from the projected ones.

Shapes: O output features, I input features of a linear; B sequences, T tokens.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from shears.checkpoints.tensor_files import quantized_by
from shears.checkpoints.zeros import count_zeros
from shears.config import ExportConfig
from shears.data.calibration import calibration_batches
from shears.data.rows import OWN_NAMES, located, source_fingerprint
from shears.errors import InputError, reading
from shears.export.peft import SubAdapter, origin, read_sub_adapter
from shears.models.activations import BUDGET, Activations
from shears.models.blocks import LoraUpdate, Matrix, linear_matrix, sharing_a_weight
from shears.models.capture import InputMoments
from shears.models.devices import autocast
from shears.models.load import answer_greedily, check_calibration, num_positions, refuse_longer
from shears.models.ref import ModelRef, checked_base, load_tokenizer, save_tokenizer
from shears.models.sources import BlockSource
from shears.models.sparse_adapter import masked_sum
from shears.models.walk import BlockRun, IrregularBlocks, Walk
from shears.progress import track
from shears.quantization.training import on_grid
from shears.records.artifacts import FORM, HEALED, SPARSITY, record_in, training_source, weights_fingerprint
from shears.sparsity.admm import refit
from shears.sparsity.rewrite import LinearSparsity, in_format, overall_sparsity, rewriting

logger = logging.getLogger(__name__)
BATCH = 2  # sequences in a forward; more would need much memory for logits
Linears = Mapping[str, LinearSparsity]


class MergedModel:
    """A model to merge into. `before` and `after` hold the zeros of the linears merged so far."""

    def __init__(self, source: BlockSource, updates: Mapping[str, LoraUpdate]) -> None:
        self.source = source
        self.updates = updates
        self.by_block: list[list[Matrix]] = []
        for index, block in enumerate(source.model.get_submodule(source.prefix).children()):
            named = {f"{source.prefix}.{index}.{name}": one for name, one in block.named_modules()}
            self.by_block.append([linear_matrix(name, module) for name, module in named.items() if name in updates])
        if absent := sorted(updates.keys() - {matrix.name for matrices in self.by_block for matrix in matrices}):
            raise InputError(f"adapted linears must be in decoder blocks, {absent[0]} is not")
        if (pair := sharing_a_weight(source.model, updates)) is not None:
            raise InputError(
                f"a merge needs linears with weights of their own, {pair[0]} shares its weight "
                f"with {pair[1]}; use format peft"
            )
        self.before: dict[str, LinearSparsity] = {}
        self.after: dict[str, LinearSparsity] = {}

    def put(self, matrix: Matrix, values: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"] | None) -> None:
        """Make `values` the weight, in the files' dtype, zero exactly where not `kept`."""
        view = matrix.view(self.source.model)
        zeros = count_zeros(view if kept is None else kept)
        self.before[matrix.name] = LinearSparsity(matrix.shape, zeros)
        dtype = self.source.dtype_of(matrix.parameter)
        rounded = values.to(dtype) if kept is None else in_format(values, kept, dtype)
        if not torch.isfinite(rounded).all():
            raise InputError(f"{matrix.name} must be finite in {dtype} after the merge; use fp32")
        view.copy_(rounded)
        self.after[matrix.name] = LinearSparsity(matrix.shape, count_zeros(rounded))


def write_merged(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write the base with the super- or sub-adapter of `source` in its weights; return its record.

    Every format but `merged` keeps each zero of the base: an adapter that was trained without the
    mask is projected on these zeros.
    """
    adapter = Path(source)
    chosen = read_sub_adapter(adapter, settings)
    base = checked_base(adapter, dict(chosen.record), model)
    if (method := quantized_by(base.folder)) is not None:
        raise InputError(f"a merge needs plain weights, {method} has quantized {base.name}")
    projects = settings.format != "merged" and not chosen.masked
    text, columns = _calibration_text(chosen, settings, adapter) if projects else ("", OWN_NAMES)
    calibration: dict[str, Any] = {}
    with rewriting(base, work, settings.device, "auto") as blocks:
        target = MergedModel(blocks, chosen.updates)
        if not projects:
            _merge(target, chosen)
        else:
            form = {"columns": columns, "trained": chosen.record["template"]}
            batches, calibration = calibration_of(blocks.model, base, text, settings, **form)
            try:
                project(target, batches, work)
            except IrregularBlocks as error:
                raise InputError(f"{error}; train with --sparse-adapter to merge such a model without loss") from error
    save_tokenizer(base, work)
    record = origin(base, chosen, settings)
    if FORM in record:
        answer_greedily(work)
    return {
        **record,
        "sparsity": _sparsity(base.folder, target.before, target.after, chosen.record["base_fingerprint"]),
        "projected": projects,
        **calibration,
        "fingerprint": weights_fingerprint(work),
    }


def calibration_of(
    model: PreTrainedModel, ref: ModelRef, text: str, settings: ExportConfig, **form: Any
) -> tuple[Sequence[Int[Tensor, "_ _"]], dict[str, Any]]:
    """Return the batches of a calibration text, and the keys of a record that name it."""
    refuse_longer(settings.sequence_length, num_positions(model))
    length = settings.sequence_length
    drawn = calibration_batches(text, load_tokenizer(ref), settings.num_samples, length, BATCH, settings.seed, **form)
    check_calibration(model, drawn.batches)
    fingerprints = {"calibration_fingerprint": drawn.fingerprint, "calibration_sha256": source_fingerprint(text)}
    return drawn.batches, fingerprints


def _calibration_text(chosen: SubAdapter, settings: ExportConfig, adapter: Path) -> tuple[str, Mapping[str, str]]:
    if settings.calibration is not None:
        return settings.calibration, OWN_NAMES
    trained = training_source(chosen.record)
    expected = trained["data_sha256"]
    source = located(str(trained["data"]), expected, adapter) if trained["data"] else None
    if source is None or (expected and source_fingerprint(source) != expected):
        raise InputError(
            "merged-sparse needs a text for an adapter trained without sparse_adapter; its training "
            f"data ({source or 'none'}) are missing or have changed; add --calibration FILE"
        )
    return source, trained.get("columns", OWN_NAMES)


def _sum(weight: Float[Tensor, "O I"], update: LoraUpdate) -> Float[Tensor, "O I"]:
    """Return W + scaling B A in float32; the sum has none of W's zeros."""
    a, b = (factor.to(weight.device, torch.float32) for factor in (update.a, update.b))
    return weight.float() + (b * update.scaling) @ a


@torch.no_grad()
def _merge(target: MergedModel, chosen: SubAdapter) -> None:
    for index, matrices in enumerate(target.by_block):
        if not matrices:
            continue
        with target.source.opened(index):
            for matrix in matrices:
                weight = matrix.view(target.source.model)
                update = target.updates[matrix.name]
                if not chosen.masked:
                    target.put(matrix, _sum(weight, update), None)
                    continue
                a, b = (factor.to(weight.device) for factor in (update.a, update.b))
                merged = masked_sum(weight, a, b, update.scaling) if a.numel() else weight
                if chosen.grids:  # a kept weight may be 0 on its grid
                    target.put(matrix, on_grid(merged, chosen.grids[matrix.name].to(weight.device)), None)
                else:
                    target.put(matrix, merged, weight != 0)
            target.source.keep([matrix.parameter for matrix in matrices])


def _sparsity(folder: Path, before: Linears, after: Linears, fingerprint: str) -> dict[str, float]:
    path = next((folder / name for name in (SPARSITY, HEALED) if (folder / name).is_file()), None)
    if path is not None and (record := record_in(path)).get("fingerprint") == fingerprint:
        with reading(path):
            pruned = {
                name: LinearSparsity((linear["shape"][0], linear["shape"][1]), linear["zeros"])
                for name, linear in record["linears"].items()
            }
        before = {name: before.get(name, linear) for name, linear in pruned.items()}
        after = {name: after.get(name, linear) for name, linear in pruned.items()}
    shares = {"before": overall_sparsity(before), "after": overall_sparsity(after)}
    if shares["after"] < shares["before"]:
        fall = f"{100 * shares['before']:.1f} % to {100 * shares['after']:.1f} %"
        logger.warning("the merge lowers the sparsity from %s; use --format merged-sparse to keep it", fall)
    return shares


@torch.no_grad()
def project(target: MergedModel, batches: Sequence[Int[Tensor, "_ _"]], folder: Path) -> None:
    """Merge the target's updates with every zero kept and the smallest output errors."""
    with Activations(BUDGET, folder) as hidden:
        walk = Walk(target.source, batches, hidden, lambda: autocast("auto", target.source.device))
        for index in track(range(len(walk)), "fitting the adapter", len(walk), "blocks"):
            with walk.advancing(index) as run:
                _project_block(target, run)


def _project_block(target: MergedModel, run: BlockRun) -> None:
    matrices = target.by_block[run.index]
    kept: dict[Matrix, Tensor] = {}
    whole: dict[Matrix, Tensor] = {}
    for matrix in matrices:
        view = matrix.view(target.source.model)
        kept[matrix] = view != 0
        whole[matrix] = _sum(view, target.updates[matrix.name])
        view.copy_(whole[matrix])
    for group in run.groups(matrices) if matrices else []:
        inputs = InputMoments()
        run.measure(group, inputs.receive)
        for matrix in group:
            moments = inputs.of(matrix)
            merged = whole[matrix].masked_fill(~kept[matrix], 0.0)
            if moments is None or not moments.any():
                logger.warning("no calibration token reached %s, so its zeros are set without a fit", matrix.name)
            elif not kept[matrix].all():
                merged = refit(whole[matrix], merged, kept[matrix], moments)
            target.put(matrix, merged, kept[matrix])
            del whole[matrix]
    target.source.keep([matrix.parameter for matrix in matrices])
