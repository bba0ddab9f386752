"""Packages of int4 rounded on a calibration text, block by block.

Every linear is rounded on inputs that come from the embeddings as the package holds them, from the
blocks rounded before, and from the adapter of the package. It is fitted to its outputs in the model
that is not rounded, whose hidden states are carried along (GPTAQ, arXiv 2504.02692), so it makes up
for earlier errors too. Memory holds one block, and both models' hidden states up to a budget.

Shapes: T tokens of a batch, O output features, I input features of a linear.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.checkpoints.without_code import UnsupportedCheckpoint
from shears.config import ExportConfig
from shears.config.fields import TemplateName
from shears.config.serve_options import is_written
from shears.errors import InputError
from shears.export.merge import calibration_of
from shears.export.packing import Packing
from shears.models.activations import BUDGET, Activations
from shears.models.blocks import LoraUpdate, Matrix, block_matrices
from shears.models.capture import InputMoments, capturing
from shears.models.devices import autocast, pick_device
from shears.models.ref import ModelRef
from shears.models.sources import StreamedModel
from shears.models.walk import BlockRun, IrregularBlocks, Walk
from shears.progress import track
from shears.quantization.grid import Quantized, quantize
from shears.quantization.with_inputs import round_with_inputs
from shears.writing.written import text_source

logger = logging.getLogger(__name__)


@torch.no_grad()
def round_calibrated(
    model: ModelRef,
    updates: Mapping[str, LoraUpdate],
    settings: ExportConfig,
    template: TemplateName | None,
    packing: Packing,
    folder: Path,
) -> dict[str, Any]:
    """Pack the rounded linears of a model with an adapter's `updates`; return figures."""
    text = str(settings.calibration)
    if is_written(text) and updates:
        rule = "calibration must be a text or rows for a model with an adapter"
        raise InputError(f"{rule}, got {text}; make the text with shears write")
    size = settings.num_samples * settings.sequence_length
    text, _ = text_source(text, model, size, settings.seed, device=settings.device)
    try:
        source = StreamedModel(model.folder, torch.float32, pick_device(settings.device))
        batches, record = calibration_of(source.model, model, text, settings, trained=template)
        for name, parameter in source.model.named_parameters():
            table = next((packing.tied.get(each, each) for each in source.disk_names(name)), None)
            if table in packing.tables and not parameter.is_meta:
                form = packing.dense[table].quantized
                weight = packing.files.load(table)
                parameter.data.copy_(quantize(weight, form).dense() if form else weight)
        rounding = _Rounding(source, packing, updates)
        with (
            _updated(source.model, updates),
            Activations(BUDGET, folder) as hidden,
            Activations(BUDGET, folder) as exact,
        ):
            walk = Walk(source, batches, hidden, partial(autocast, "auto", source.device))
            for states in hidden:
                exact.append(states)
            for index in track(range(len(walk)), "rounding", len(walk), "blocks"):
                with walk.advancing(index) as block:
                    rounding.round_block(block, exact, folder)
    except (UnsupportedCheckpoint, IrregularBlocks) as error:
        raise InputError(f"{error}; leave --calibration out to round to nearest") from error
    return {**record, "rounded": rounding.figures()}


@contextmanager
def _updated(model: nn.Module, updates: Mapping[str, LoraUpdate]) -> Iterator[None]:

    def add(update: LoraUpdate, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        a = update.a.to(output.device, torch.float32)
        b = update.b.to(output.device, torch.float32) * update.scaling
        return output + nn.functional.linear(nn.functional.linear(args[0], a), b).to(output.dtype)

    with ExitStack() as hooks:
        for name, update in updates.items():
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_hook(partial(add, update)).remove)
        yield


class _Rounding:
    """Rounds the packed linears of one block after the other and hands them to the package."""

    def __init__(self, source: StreamedModel, packing: Packing, updates: Mapping[str, LoraUpdate]) -> None:
        self._source = source
        self._packing = packing
        self._updates = updates
        self._unreached: list[str] = []
        self._done: set[str] = set()

    def figures(self) -> dict[str, Any]:
        """Return the method, and the linears that are rounded to nearest, for the record."""
        to_nearest = [*self._unreached, *sorted(self._packing.packed.keys() - self._done)]
        if to_nearest:
            reason = "no calibration token reached them, or they are parts of a tensor"
            logger.warning("rounded to nearest because %s: %s", reason, ", ".join(to_nearest))
        return {"method": "masked GPTQ and coordinate descent", "to_nearest": to_nearest}

    def round_block(self, block: BlockRun, exact: Activations, folder: Path) -> None:
        """Round a block; its outputs before rounding replace the `exact` hidden states."""
        named = {each: self._linear_of(each) for each in block_matrices(block.name, block.block)}
        linears = {matrix: linear for matrix, linear in named.items() if linear is not None}
        groups = block.groups(list(linears)) if linears else []
        with Activations(BUDGET, folder) as inputs:
            places = _exact_inputs(block, exact, [group[0] for group in groups], inputs)
            for group in groups:
                moments, drift = _measured(block, group, (inputs, places.get(group[0], [])))
                for matrix in group:
                    rounded = self._rounded(matrix, moments.of(matrix), drift)
                    matrix.view(self._source.model).copy_(rounded.dense())
                    self._packing.put(linears[matrix], rounded.cpu())
                    self._done.add(linears[matrix])

    def _linear_of(self, matrix: Matrix) -> str | None:
        """Return the packed linear that a weight is in the files; None for a part (experts)."""
        names = self._source.disk_names(matrix.parameter)
        linear = names[0].removesuffix(".weight") if len(names) == 1 and matrix.index is None else None
        if linear not in self._packing.packed:
            return None
        stored = matrix.cut(self._packing.files.load(names[0]).float())
        view = matrix.view(self._source.model).cpu()
        return linear if stored.shape == view.shape and torch.equal(stored, view) else None

    def _rounded(self, matrix: Matrix, moments: Tensor | None, drift: Tensor | None) -> Quantized:
        weight = matrix.view(self._source.model).float()
        if moments is None or not moments.any():
            self._unreached.append(matrix.name)
            return quantize(weight, "int4")
        whole = weight
        if (update := self._updates.get(matrix.name)) is not None:
            whole = weight.addmm(update.b.to(weight), update.a.to(weight), alpha=update.scaling)
        missed = None if drift is None else drift @ whole.T  # X^T (X' - X) W^T: exact outputs seen through X
        return round_with_inputs(weight, weight != 0, moments, missed=missed)


def _exact_inputs(
    block: BlockRun, exact: Activations, linears: Sequence[Matrix], inputs: Activations
) -> dict[Matrix, list[int]]:
    """Run the block on the exact hidden states, which its outputs replace; keep linears' inputs.

    Return their places in `inputs`, batch by batch. A linear has none unless every batch multiplies
    it once, with all tokens: experts get other tokens in the rounded model.
    """
    places: dict[Matrix, list[int]] = {linear: [] for linear in linears}
    for batch, states in enumerate(exact):
        calls: dict[Matrix, list[Tensor]] = {linear: [] for linear in places}
        with capturing(block.model, block.block, list(places), lambda each, seen, to=calls: to[each].append(seen)):  # type: ignore[misc]
            exact[batch] = block.forward(batch, states)
        for linear, seen in calls.items():
            if len(seen) == 1 and len(seen[0]) == states[..., 0].numel():
                places[linear].append(len(inputs))
                inputs.append(seen[0].clone())  # the block may reuse the memory
            else:
                del places[linear]
    return places


def _measured(
    block: BlockRun, group: Sequence[Matrix], exact: tuple[Activations, Sequence[int]]
) -> tuple[InputMoments, Float[Tensor, "I I"] | None]:
    """Return the moments of a group's inputs X, and X^T (X' - X), X' in the unrounded model.

    The second is None where the first of the group has no places in the `exact` inputs.
    """
    moments = InputMoments()
    inputs, places = exact
    left = list(places)
    drift: list[Tensor] = []

    def receive(matrix: Matrix, seen: Float[Tensor, "T I"]) -> None:
        moments.receive(matrix, seen)
        if matrix == group[0] and left:
            tokens = seen.float()
            if not drift:
                drift.append(torch.zeros(tokens.shape[1], tokens.shape[1], device=tokens.device))
            drift[0].addmm_(tokens.T, inputs[left.pop(0)].float() - tokens)

    block.measure(group, receive)
    return moments, drift[0] if drift else None
