"""Packages rounded on a calibration text: weights block by block, embeddings chosen by their loss.

Every linear is rounded on inputs that come from the embeddings as the package holds them, from the
blocks rounded before, and from the adapter of the package. It is fitted to its outputs in the model
that is not rounded, whose hidden states are carried along (GPTAQ, arXiv 2504.02692), so it makes up
for earlier errors too. Memory holds one block, and both models' hidden states up to a budget.

Shapes: T tokens of a batch, O output features, I input features of a linear.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.checkpoints.configuration import UnsupportedCheckpoint
from shears.checkpoints.packed.layout import QUANTIZED
from shears.config import ExportConfig
from shears.config.fields import TemplateName
from shears.config.write import is_written
from shears.data.calibration import calibration_batches
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.export.merge import BATCH
from shears.export.packing import Packing
from shears.models.blocks import LoraUpdate
from shears.models.blockwise.activations import BUDGET, Activations
from shears.models.blockwise.capture import InputMoments, capturing
from shears.models.blockwise.matrices import Matrix, affordable, block_matrices
from shears.models.blockwise.sources import BlockSource, Skeleton, StreamedModel
from shears.models.blockwise.walk import Batches, BlockRun, IrregularBlocks, Walk
from shears.models.devices import autocast, pick_device
from shears.models.properties import check_calibration, check_sequence_length
from shears.models.ref import ModelRef
from shears.models.tokenizers import load_tokenizer
from shears.progress import track
from shears.quantization.grid import BLOCK, Quantized, by_input, quantize
from shears.quantization.with_inputs import output_error, round_with_inputs
from shears.writing.written import text_source

logger = logging.getLogger(__name__)
METHOD = "masked GPTQ and coordinate descent"
POSITIONS_AT_ONCE = 128  # positions whose logits are float32 at the same time
MEASURED = 16  # calibration sequences on which the losses of embeddings are measured


class Inputs(NamedTuple):
    """The model to calibrate, the adapter's updates by linear, the settings, and the training's template, if any."""

    model: ModelRef
    updates: Mapping[str, LoraUpdate]
    settings: ExportConfig
    template: TemplateName | None


def write_calibrated(
    inputs: Inputs, packing: Packing, path: Path, adapter: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any]]:
    """Write the package file; return its fingerprint and the record's figures of the calibration.

    InputError for an unusable text, and for a model whose blocks cannot be walked one by one.
    """
    try:
        return _write(inputs, packing, path, adapter)
    except (UnsupportedCheckpoint, IrregularBlocks) as error:
        raise InputError(f"{error}; leave --calibration out to round to nearest") from error


@torch.no_grad()
def _write(inputs: Inputs, packing: Packing, path: Path, adapter: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    settings = inputs.settings
    length = settings.sequence_length
    text = _text(inputs, settings.num_samples * length)
    source = _PackedTables(inputs, packing)
    check_sequence_length(source.model, length)
    tokenizer = load_tokenizer(inputs.model)
    drawn = calibration_batches(
        text, tokenizer, settings.num_samples, length, BATCH, settings.seed, trained=inputs.template
    )
    check_calibration(source.model, drawn.batches)
    figures: dict[str, Any] = {
        "calibration_fingerprint": drawn.fingerprint,
        "calibration_sha256": source_fingerprint(text),
    }
    with _updated(source.model, inputs.updates):
        source.put()
        packing.begin(path, adapter)
        if packing.form.values in QUANTIZED:
            rounding = _Rounding(source, packing, inputs.updates)
            rounding.run(drawn.batches, path.parent)
            figures["rounded"] = rounding.figures()
    return packing.finish(), figures


def _text(inputs: Inputs, tokens: int) -> str:
    """Return the calibration text, which the model may have to write; InputError if an adapter would."""
    source = str(inputs.settings.calibration)
    if is_written(source) and inputs.updates:
        rule = "the text that a model writes needs a model without an adapter"
        todo = "let a model write it with shears write, and name the file"
        raise InputError(f"{rule}, got calibration {source} for one with an adapter; {todo}")
    return text_source(source, inputs.model, tokens, inputs.settings.seed)[0]


@contextmanager
def _updated(model: nn.Module, updates: Mapping[str, LoraUpdate]) -> Iterator[None]:
    """Add the updates to the outputs of their linears, whose weights stay as they are."""

    def add(update: LoraUpdate, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        a = update.a.to(output.device, torch.float32)
        b = update.b.to(output.device, torch.float32) * update.scaling
        return output + nn.functional.linear(nn.functional.linear(args[0], a), b).to(output.dtype)

    with ExitStack() as hooks:
        for name, update in updates.items():
            hook = model.get_submodule(name).register_forward_hook(partial(add, update))
            hooks.callback(hook.remove)
        yield


class _PackedTables(BlockSource):
    """The model block by block; embeddings and head have the values that the package gives them."""

    def __init__(self, inputs: Inputs, packing: Packing) -> None:
        self.skeleton = Skeleton.open(inputs.model.folder, torch.float32, pick_device(inputs.settings.device))
        self._source = StreamedModel(self.skeleton)
        self.model = self._source.model
        self.prefix = self._source.prefix
        self.device = self._source.device
        self.resident = False
        self.packing = packing
        owner = {name: packing.tied.get(name, name) for name in packing.files.names}
        names = {name: self.skeleton.disk_names(name) for name, _ in self.model.named_parameters()}
        owners = {name: owner[stored[0]] for name, stored in names.items() if len(stored) == 1}
        self._tables = {name: table for name, table in owners.items() if table in packing.tables}

    def put(self) -> None:
        """Give the embeddings and the head in memory their present values in the package."""
        for name, table in self._tables.items():
            parameter = self.model.get_parameter(name)
            if not parameter.is_meta:
                form = self.packing.dense[table].quantized
                stored = self.packing.files.load(table)
                parameter.data.copy_(quantize(stored, form).dense() if form else stored)

    def opened(self, index: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which a block is in memory."""
        return self._source.opened(index)

    @contextmanager
    def with_head(self) -> Iterator[None]:
        """Hold the head in memory, as the package has it."""
        with self._source.with_head():
            self.put()
            yield

    def keep(self, index: int, parameters: Collection[str]) -> None:
        """Do nothing: the package is written elsewhere."""


class _Rounding:
    """Rounds the packed linears of one block after the other and hands them to the package."""

    def __init__(self, source: _PackedTables, packing: Packing, updates: Mapping[str, LoraUpdate]) -> None:
        self._source = source
        self._packing = packing
        self._updates = updates
        self._values = cast("Literal['int8', 'int4']", packing.form.values)
        self._error = 0.0
        self._nearest = 0.0
        self._unreached: list[str] = []
        self._done: set[str] = set()

    def run(self, batches: Batches, folder: Path) -> None:
        """Round every block; hidden states beyond the budget are kept in `folder`."""
        device = self._source.device
        with Activations(BUDGET, folder) as hidden, Activations(BUDGET, folder) as exact:
            walk = Walk(self._source, batches, hidden, lambda: autocast("auto", device))
            for states in hidden:
                exact.append(states)
            for index in track(range(len(walk)), "round", len(walk), "block"):
                with walk.advancing(index) as block:
                    self._round_block(block, exact, folder)
        for name in self.to_nearest:
            logger.warning("%s is rounded to nearest: no calibration token reached it, or it has no matrix", name)

    @property
    def to_nearest(self) -> list[str]:
        """Packed linears and matrices that were rounded without their inputs."""
        return [*self._unreached, *sorted(self._packing.packed.keys() - self._done)]

    def figures(self) -> dict[str, Any]:
        """Return the record's figures: method, and output error as a share of rounding to nearest.

        The error compares each linear with itself on its own inputs. Linears are fitted to outputs
        of the model before rounding, so the share may exceed 1 where inputs have moved far.
        """
        ratio = self._error / self._nearest if self._nearest > 0 else 1.0
        logger.info(
            "errors of single linears on their inputs: %.1f %% of those of rounding to nearest "
            "(minimized is the distance to the model before rounding)", 100 * ratio,
        )  # fmt: skip
        return {"method": METHOD, "output_error_of_nearest": ratio, "to_nearest": self.to_nearest}

    def _round_block(self, block: BlockRun, exact: Activations, folder: Path) -> None:
        packed = {f"{linear}.weight" for linear in self._packing.packed}
        stored = self._source.skeleton.disk_names
        matrices = [
            matrix
            for matrix in block_matrices(block.name, block.block)
            if not packed.isdisjoint(stored(matrix.parameter))
        ]
        rounded: dict[Matrix, Quantized] = {}
        groups = list(affordable(block.groups(matrices) if matrices else [], BUDGET))
        with Activations(BUDGET, folder) as inputs:
            known = _ExactInputs([group[0] for group in groups if group[0].index is None], inputs)
            known.run(block, exact)
            for group in groups:
                moments, drift = _measured(block, group, known)
                for matrix in group:
                    rounded[matrix] = self._rounded(matrix, moments.of(matrix), drift)
                    matrix.view(self._source.model).copy_(rounded[matrix].dense())
        for linear, quantized in self._as_stored(rounded):
            self._packing.put(linear, quantized)
            self._done.add(linear)

    def _rounded(self, matrix: Matrix, moments: Tensor | None, drift: "_Drift | None") -> Quantized:
        weight = matrix.view(self._source.model).float()
        nearest = quantize(weight, self._values)
        if moments is None or not moments.any():
            self._unreached.append(matrix.name)
            return nearest
        missed = None if drift is None else drift.missed(self._with_update(matrix, weight))
        rounded = round_with_inputs(weight, weight != 0, moments, self._values, missed=missed)
        self._error += float(output_error(weight, rounded, moments).double().sum())
        self._nearest += float(output_error(weight, nearest, moments).double().sum())
        return rounded

    def _with_update(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """Return the weight plus the update of the package's adapter."""
        update = self._updates.get(matrix.name)
        if update is None:
            return weight
        return weight.addmm(update.b.to(weight), update.a.to(weight), alpha=update.scaling)

    def _as_stored(self, rounded: Mapping[Matrix, Quantized]) -> Iterator[tuple[str, Quantized]]:
        """Yield codes, scales and zero points by the linears of the files.

        Files may hold experts one by one and fused linears. The model's own conversion splits them:
        codes, scales and zero points take the weights' places in turn, repeated to their shape.
        """
        codes = self._converted({each: weight.codes for each, weight in rounded.items()})
        scales = self._converted({each: _repeated(w.scales, w.codes) for each, w in rounded.items()})
        zeros = self._converted(
            {each: _repeated(w.zeros, w.codes) for each, w in rounded.items() if w.zeros is not None}
        )
        for matrix, weight in rounded.items():
            matrix.view(self._source.model).copy_(weight.dense())
        for linear, code in codes.items():
            if _same_in_blocks(scales[linear], self._values):
                yield linear, _quantized(code, scales[linear], zeros.get(linear))

    def _converted(self, tensors: Mapping[Matrix, Tensor]) -> dict[str, Tensor]:
        """Return the files' packed linears (O I) if the matrices hold these tensors."""
        for matrix, tensor in tensors.items():
            matrix.view(self._source.model).copy_(tensor)
        found = {}
        for name, tensor in self._source.skeleton.stored({each.parameter for each in tensors}):
            linear = name.removesuffix(".weight")
            if (entry := self._packing.packed.get(linear)) is not None:
                found[linear] = (tensor.T if entry.transposed else tensor).cpu().clone()
        return found


def _measured(block: BlockRun, group: Sequence[Matrix], known: "_ExactInputs") -> tuple[InputMoments, "_Drift | None"]:
    """Return the moments of a group's inputs and their drift, None without exact counterparts."""
    moments = InputMoments()
    drift = known.drift(group[0])

    def receive(matrix: Matrix, inputs: Tensor) -> None:
        moments.receive(matrix, inputs)
        if drift is not None:
            drift.receive(matrix, inputs)

    block.measure(group, receive)
    return moments, drift


class _ExactInputs:
    """Inputs of a block's linears in the model that is not rounded, kept in `inputs`.

    A linear has none unless every batch multiplies it once, with all tokens: experts get other
    tokens in the rounded model.
    """

    def __init__(self, linears: Sequence[Matrix], inputs: Activations) -> None:
        self._inputs = inputs
        self._places: dict[Matrix, list[int]] = {linear: [] for linear in linears}
        self._calls: dict[Matrix, list[Tensor]] = {}

    def run(self, block: BlockRun, exact: Activations) -> None:
        """Run the block, not rounded yet, on the exact hidden states; its outputs replace them."""
        for batch, states in enumerate(exact):
            self._calls = {linear: [] for linear in self._places}
            with capturing(block.model, block.block, list(self._places), self._receive):
                exact[batch] = block.forward(batch, states)
            for linear, calls in self._calls.items():
                if len(calls) == 1 and len(calls[0]) == states[..., 0].numel():
                    self._places[linear].append(len(self._inputs))
                    self._inputs.append(calls[0].clone())  # the block may reuse the memory
                else:
                    del self._places[linear]

    def _receive(self, matrix: Matrix, inputs: Tensor) -> None:
        self._calls[matrix].append(inputs)

    def drift(self, linear: Matrix) -> "_Drift | None":
        """Return the accumulator of a linear's drift; None for a linear without inputs."""
        places = self._places.get(linear)
        if places is None:
            return None
        return _Drift(linear, [partial(self._inputs.__getitem__, place) for place in places])


class _Drift:
    """X^T (X' - X) (I x I, float32): inputs X of a linear, X' in the model that is not rounded."""

    def __init__(self, linear: Matrix, exact: Sequence[Callable[[], Tensor]]) -> None:
        self._linear = linear
        self._exact = exact
        self._num_batches = 0
        self._moments: Tensor | None = None

    def receive(self, matrix: Matrix, inputs: Float[Tensor, "T I"]) -> None:
        """Add the products of a batch, if the matrix is the linear."""
        if matrix != self._linear:
            return
        tokens = inputs.float()
        if self._moments is None:
            self._moments = torch.zeros(tokens.shape[1], tokens.shape[1], device=tokens.device)
        self._moments.addmm_(tokens.T, self._exact[self._num_batches]().float() - tokens)
        self._num_batches += 1

    def missed(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "I O"] | None:
        """Return X^T (X' - X) W^T, the difference to the exact outputs seen through the inputs."""
        return None if self._moments is None else self._moments @ weight.T


def _repeated(table: Tensor, codes: Tensor) -> Tensor:
    """Return numbers by row, or by row and block, repeated for every input."""
    return table[:, None].expand_as(codes) if table.ndim == 1 else by_input(table, codes.shape[1])


def _same_in_blocks(scales: Tensor, values: str) -> bool:
    """Return whether a conversion left the blocks of inputs, each of one scale, where they were."""
    width = BLOCK if values == "int4" else scales.shape[1]
    in_blocks = scales[:, ::width].repeat_interleave(width, 1)[:, : scales.shape[1]]
    return torch.equal(scales, in_blocks)


def _quantized(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Quantized:
    if zeros is None:
        return Quantized(codes.to(torch.int8), scales[:, 0].contiguous(), None)
    block_scales = scales[:, ::BLOCK].half().contiguous()
    block_zeros = zeros[:, ::BLOCK].to(torch.uint8).contiguous()
    return Quantized(codes.to(torch.uint8), block_scales, block_zeros)
