"""Copies weights, in the order of use, into the decoder's memory (docs/internals/kernels.md).

Importing this module needs the extension (`shears.runtime.native.kernels_available`).
"""

import ctypes
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple
from itertools import chain

import torch
from torch import Tensor

from shears.checkpoints.packed_layout import (
    FORMAT_DTYPES,
    PANEL,
    NumberFormat,
    PackedMatrix,
    blocks_by_panel,
    mask_shape,
    pack_nibbles,
)
from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.runtime.native import _native
from shears.runtime.native.architectures import DecoderPlan, LayerPlan, NotCoveredError
from shears.runtime.native.fused import Fusion, unfused, unfused_updates
from shears.runtime.native.model_source import DenseRows, ModelSource, Weight, rows_of
from shears.runtime.native.tuning import CODES, is_dense_faster, tune

ATTENTION = (("q_proj", "k_proj", "v_proj"), ("o_proj",))
GATED_ATTENTION = (("q_proj", "k_proj", "v_proj", "q_gate"), ("o_proj",))
DELTA_NET = (("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), ("out_proj",))
FORWARD = (("gate_proj", "up_proj"), ("down_proj",))
REDUNDANT = "rotary_emb.inv_freq"  # in old files; computed from the config
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
MAX_INT8_COLS = 131071
GROUP_BYTES = 4  # of a row in a panel: one fp32, two bf16, four int8


def copied_matrix(
    packed: PackedMatrix, values: _native.HugeBuffer, masks: _native.HugeBuffer, rest: _native.HugeBuffer
) -> _native.Matrix:
    """Copy a packed weight's parts into buffers; a weight without masks is dense to the kernels."""
    _check_columns(packed.values_dtype, packed.cols)
    tune(packed.values_dtype, packed.masks is not None)
    buffers = {"masks": masks, "values": values, "offsets": rest, "scales": rest, "zeros": rest}  # in _native's order
    parts = {name: getattr(packed, name) for name in buffers}
    addresses = [0 if part is None else copied(part, buffers[name]) for name, part in parts.items()]
    return _native.Matrix(CODES[packed.values_dtype], packed.rows, packed.cols, *addresses)


def dense_matrix(weight: DenseRows, buffer: _native.HugeBuffer) -> _native.Matrix:
    """Copy a dense weight into a buffer, in panels; InputError for other floats."""
    name = weight.values_dtype
    if weight.values.dtype != FORMAT_DTYPES[name]:
        raise InputError(f"a weight must be float32, bfloat16, int8 or int4, got {weight.values.dtype}; convert it")
    rows, cols = weight.shape
    _check_columns(name, cols)
    tune(name, False)
    panels, groups, _ = mask_shape(rows, cols, name)
    num_bytes = panels * groups * (32 if name == "int4" else 64)  # of a group of 16 rows
    address = buffer.copy(0, num_bytes)
    values = weight.values.contiguous()
    if name != "int4" and rows % PANEL == 0 and cols * values.itemsize % GROUP_BYTES == 0:
        # torch's threads copy whole panels several times as fast: a group of a row has 4 bytes
        if values.storage_offset() * values.itemsize % GROUP_BYTES:
            values = values.clone()  # int8 of a mapped file may not be aligned for int32
        groups_by_row = values.view(torch.int32).view(panels, PANEL, groups).transpose(1, 2)
        memory = (ctypes.c_ubyte * num_bytes).from_address(address)
        torch.frombuffer(memory, dtype=torch.int32).view(groups_by_row.shape).copy_(groups_by_row)
    else:
        _native.pack_dense(CODES[name], values.data_ptr(), rows, cols, address)
    if weight.zeros is not None and weight.scales is not None:
        parts = [blocks_by_panel(weight.scales), pack_nibbles(blocks_by_panel(weight.zeros))]
    else:
        parts = [] if weight.scales is None else [weight.scales.float()]
    addresses = [copied(part, buffer) for part in parts]
    return _native.Matrix(CODES[name], rows, cols, 0, address, 0, *addresses)


def copied(tensor: Tensor, buffer: _native.HugeBuffer) -> int:
    tensor = tensor.contiguous()
    return buffer.copy(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _check_columns(values: NumberFormat, cols: int) -> None:
    if values == "int8" and cols > MAX_INT8_COLS:
        raise InputError(f"an int8 weight must have at most {MAX_INT8_COLS} columns, got {cols}; use bf16")


class Arena:
    """Memory for copies of weights, as long as this object lives; address 0: no weight.

    Values follow values and masks follow masks in the order of the calls, so a kernel that
    prefetches beyond the end of a weight prefetches the next one.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._values = _native.HugeBuffer()
        self._masks = _native.HugeBuffer()
        self._rest = _native.HugeBuffer()

    @property
    def num_bytes(self) -> int:
        return sum(buffer.bytes for buffer in (self._values, self._masks, self._rest))

    def floats(self, tensor: Tensor | None) -> int:
        return 0 if tensor is None else copied(tensor.float(), self._rest)

    def matrix(self, weight: PackedMatrix | DenseRows) -> _native.Matrix:
        """Copy a packed or a dense weight; return it for the kernels."""
        if isinstance(weight, PackedMatrix) and weight.masks is not None:
            weight = rows_of(weight) if is_dense_faster(weight.values_dtype, self.threads) else weight
        if isinstance(weight, DenseRows):
            return dense_matrix(weight, self._values)
        return copied_matrix(weight, self._values, self._masks, self._rest)

    def up(self, update: LoraUpdate, *, bf16: bool) -> int:
        """Copy scaling * B as [panel][rank][16 rows], zero-padded; return its address."""
        rows, rank = update.b.shape
        padded = torch.zeros(-(-rows // PANEL) * PANEL, rank)
        padded[:rows] = update.b.float() * update.scaling
        panels = padded.view(-1, PANEL, rank).transpose(1, 2)
        return copied(panels.to(torch.bfloat16 if bf16 else torch.float32), self._rest)


Call = tuple[str, tuple[object, ...]]  # a method of _native.DecoderWeights and its arguments
SharedInput = dict[str, str]  # a layer's linears with one input, by kind; updates are set together


class Builder:
    """Takes the parts of a source one by one and copies them into the arena.

    `embeddings` are not copied: the caller keeps them. `values` is the number format of most
    linears. NotCoveredError, before anything is taken, for a tensor that is missing or left over.
    """

    def __init__(self, source: ModelSource, plan: DecoderPlan, arena: Arena) -> None:
        self._plan = plan
        self._arena = arena
        self._sizes = linear_sizes(plan)
        self.values = source.values or _main_values(source)
        self._fusion = Fusion(plan.fused, self._sizes, plan.num_heads)
        source = unfused(source, self._fusion) if plan.fused else source
        self._linears = source.linears
        self._tensors = dict(source.tensors)
        self._updates = source.updates
        self._release = source.release
        self._tied = bool(getattr(source.config, "tie_word_embeddings", True))
        self._steps: list[Call | SharedInput] = []
        self._check_parts()
        self.embeddings = self._take_rows(EMBEDDINGS)
        _check_shape(EMBEDDINGS, self.embeddings.shape, (plan.vocab_size, plan.hidden_size))

    def weights(self, head_values: NumberFormat | None) -> tuple[_native.DecoderWeights, NumberFormat]:
        """Return everything the decoder reads, and the number format of its head; called once."""
        weights = _native.DecoderWeights()
        with closing(self._taken(head_values)) as steps:
            for step in steps:
                self._steps.append(step)
                self._set(weights, step, self._updates, self._arena)
        return weights, self._head_values

    def adapted(self, updates: Mapping[str, LoraUpdate], arena: Arena) -> _native.DecoderWeights:
        """Return all that the decoder reads, with other updates in an arena of their own."""
        updates = unfused_updates(updates, self._fusion) if self._plan.fused else updates
        names = {*self._linear_names()}
        _refuse_rest([name for name in updates if name not in names])
        weights = _native.DecoderWeights()
        for step in self._steps:
            self._set(weights, step, updates, arena)
        return weights

    def _check_parts(self) -> None:
        names = [*self._linear_names()]
        layers = [f"model.layers.{index}." for index in range(len(self._plan.layers))]
        norms = [f"{layer}{name}.weight" for layer in layers for name in self._plan.norms.by_place if name]
        nets = [
            f"{layer}linear_attn.{name}"
            for layer, plan in zip(layers, self._plan.layers, strict=True) if plan.is_delta
            for name in ("conv1d.weight", "A_log", "dt_bias", "norm.weight")
        ]  # fmt: skip
        needed = [EMBEDDINGS, NORM, *norms, *nets, *(f"{name}.weight" for name in names if name not in self._linears)]
        if missing := [name for name in needed if name not in self._tensors]:
            raise NotCoveredError(f"the native decoder needs {missing[0]}, this model lacks it")
        by_head = [f"{layer}self_attn.{name}_norm.weight" for layer in layers for name in "qk"]
        known = {*needed, HEAD, *by_head, *(f"{name}.bias" for name in names)}
        tensors = [name for name in self._tensors if name not in known and not name.endswith(REDUNDANT)]
        _refuse_rest([*(name for name in self._linears if name not in {*names}), *tensors])
        _refuse_rest([name for name in self._updates if name not in {*names}])

    def _linear_names(self) -> Iterator[str]:
        for index in range(len(self._plan.layers)):
            yield from (linear_name(index, kind) for kind in chain(*self._inputs(index)))

    def _inputs(self, index: int) -> tuple[tuple[str, ...], ...]:
        """Return the kinds of a layer's linears in the order of use, grouped by their input."""
        if self._plan.layers[index].is_delta:
            return (*DELTA_NET, *FORWARD)
        return (*(GATED_ATTENTION if self._plan.delta else ATTENTION), *FORWARD)

    def _taken(self, head_values: NumberFormat | None) -> Generator[Call | SharedInput, None, None]:
        """Copy all weights; yield what the decoder is to be told, in the order of computation."""
        with closing(self._packed_ahead()) as packed:
            for index, layer in enumerate(self._plan.layers):
                yield from self._taken_layer(index, layer, packed)
        table = self.embeddings
        head = table if self._tied and HEAD not in self._tensors else self._take_rows(HEAD)
        _check_shape(HEAD, head.shape, (self._plan.vocab_size, self._plan.hidden_size))
        head = head.as_values(head_values or head.values_dtype)
        self._head_values = head.values_dtype
        norm = self._take_vector(NORM, self._plan.hidden_size, self._plan.norms.offset)
        yield from self._variation()
        frequencies = self._arena.floats(self._plan.inverse_frequencies)
        addresses = [0 if part is None else part.data_ptr() for part in (table.values, table.scales, table.zeros)]
        yield "set_ends", (CODES[table.values_dtype], *addresses, norm, frequencies, self._arena.matrix(head))

    def _packed_ahead(self) -> Generator[Weight, None, None]:
        """Yield the linears in the order of computation, a few packed ahead on other threads.

        To be closed: the garbage collector may run where a thread begins, and would wait there for
        these threads for ever.
        """
        waiting: deque[tuple[str, Future[Weight]]] = deque()
        with ThreadPoolExecutor(self._arena.threads) as workers:
            for name in [name for name in self._linear_names() if name in self._linears]:
                waiting.append((name, workers.submit(self._linears[name])))
                if len(waiting) > self._arena.threads:
                    yield self._first_of(waiting)
            while waiting:
                yield self._first_of(waiting)

    def _first_of(self, waiting: deque[tuple[str, Future[Weight]]]) -> Weight:
        name, packed = waiting.popleft()
        weight = packed.result()
        self._release(name)
        return weight

    def _taken_layer(self, index: int, plan: LayerPlan, packed: Iterator[Weight]) -> Iterator[Call | SharedInput]:
        hidden, head_dim = self._plan.hidden_size, self._plan.head_dim
        prefix = f"model.layers.{index}."
        norms = self._plan.norms
        before, after, before_forward, after_forward = [
            self._take_vector(f"{prefix}{name}.weight", hidden, norms.offset) for name in norms.by_place
        ]
        sizes = [self._sizes[kind][0] if norms.whole else head_dim for kind in ("q_proj", "k_proj")]
        heads = [
            self._take_vector(f"{prefix}self_attn.{name}_norm.weight", size, norms.offset)
            for name, size in zip("qk", sizes, strict=True)
        ]
        yield "add_layer", (before, before_forward, *heads, plan.window or 0, plan.rotates)
        if after or after_forward or norms.whole or plan.is_local:
            yield "vary_layer", (after, after_forward, norms.whole, plan.is_local)
        if plan.is_delta:
            yield self._taken_delta(f"{prefix}linear_attn.")
        for names in self._inputs(index):
            linears = {name: linear_name(index, name) for name in names}
            for name, linear in linears.items():
                bias = self._take_vector(f"{linear}.bias", self._sizes[name][0])
                weight = next(packed) if linear in self._linears else self._take_rows(f"{linear}.weight")
                shape = (weight.rows, weight.cols) if isinstance(weight, PackedMatrix) else weight.shape
                _check_shape(f"{linear}.weight", shape, self._sizes[name])
                yield "set_linear", (name, self._arena.matrix(weight), bias)
            yield linears

    def _taken_delta(self, prefix: str) -> Call:
        plan = self._plan.delta
        assert plan is not None
        kernel = self._arena.floats(self._floats(f"{prefix}conv1d.weight", (plan.channels, 1, plan.window))[:, 0].T)
        decay = self._arena.floats(-self._floats(f"{prefix}A_log", (plan.value_heads,)).exp())
        bias = self._take_vector(f"{prefix}dt_bias", plan.value_heads)
        return "set_delta", (kernel, decay, bias, self._take_vector(f"{prefix}norm.weight", plan.value_size))

    def _floats(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._tensors.pop(name)
        numbers = tensor.floats() if isinstance(tensor, DenseRows) else tensor.float()
        _check_shape(name, numbers.shape, shape)
        return numbers

    def _variation(self) -> Iterator[Call]:
        plan, scales = self._plan, self._plan.scales
        rotary = 2 * len(plan.inverse_frequencies)
        if plan.delta is not None:
            yield "set_delta_shape", astuple(plan.delta)
        factors = (scales.embeddings, scales.residual, scales.logits)
        if plan.is_gelu or rotary < plan.head_dim or plan.local_frequencies is not None or factors != (1.0, 1.0, 1.0):
            yield "vary_model", (plan.is_gelu, rotary, self._arena.floats(plan.local_frequencies), *factors)

    def _set(
        self, weights: _native.DecoderWeights, step: Call | SharedInput, given: Mapping[str, LoraUpdate], arena: Arena
    ) -> None:
        if isinstance(step, tuple):
            getattr(weights, step[0])(*step[1])
            return
        updates = {name: given[linear] for name, linear in step.items() if linear in given}
        if not updates:
            return
        bf16 = self.values != "fp32"
        downs: dict[int, Tensor] = {}  # parts of a fused weight share their A
        firsts: dict[int, int] = {}
        first = 0
        for name, update in updates.items():
            rank = update.a.shape[0]
            rows, cols = self._sizes[name]
            _check_shape(f"A of {step[name]}", update.a.shape, (rank, cols))
            _check_shape(f"B of {step[name]}", update.b.shape, (rows, rank))
            if id(update.a) not in downs:
                downs[id(update.a)], firsts[id(update.a)] = update.a.float(), first
                first += rank
            weights.set_update(name, arena.up(update, bf16=bf16), bf16, rank, firsts[id(update.a)])
        down = DenseRows(torch.cat([*downs.values()]))
        down = down.as_values("int8" if self.values == "int4" else self.values)  # int4: too coarse
        weights.set_down(next(iter(step)), arena.matrix(down))

    def _take_rows(self, name: str) -> DenseRows:
        tensor = self._tensors.pop(name)
        if isinstance(tensor, DenseRows):
            return tensor
        return DenseRows((tensor if tensor.dtype in (torch.float32, torch.bfloat16) else tensor.float()).contiguous())

    def _take_vector(self, name: str, length: int, offset: float = 0.0) -> int:
        """Copy a bias or a norm, with an offset; return its address, 0 if the model lacks it."""
        if name not in self._tensors:
            return 0
        return self._arena.floats(self._floats(name, (length,)) + offset)


def linear_name(layer: int, kind: str) -> str:
    parts = {"mlp": FORWARD, "linear_attn": DELTA_NET, "self_attn": GATED_ATTENTION}
    (part,) = [part for part, inputs in parts.items() if kind in {*chain(*inputs)}]
    return f"model.layers.{layer}.{part}.{kind}"


def _refuse_rest(rest: Sequence[str]) -> None:
    if rest:
        raise NotCoveredError(
            f"the native decoder must know every part of a model and its adapter, it does not know {rest[0]}"
        )


def _main_values(source: ModelSource) -> NumberFormat:
    dense = [tensor for name, tensor in source.tensors.items() if name.endswith("_proj.weight")]
    rows = [tensor if isinstance(tensor, DenseRows) else DenseRows(tensor) for tensor in dense]
    counts = Counter(weight.values_dtype for weight in [*(read() for read in source.linears.values()), *rows])
    return counts.most_common(1)[0][0] if counts else "fp32"


def linear_sizes(plan: DecoderPlan) -> Mapping[str, tuple[int, int]]:
    hidden, inner = plan.hidden_size, plan.intermediate_size
    query, key = plan.num_heads * plan.head_dim, plan.num_kv_heads * plan.head_dim
    sizes = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    if plan.delta is not None:
        heads = plan.delta.value_heads
        sizes |= {"q_gate": (query, hidden), "in_proj_qkv": (plan.delta.channels, hidden)}
        sizes |= {"in_proj_z": (plan.delta.values, hidden), "out_proj": (hidden, plan.delta.values)}
        sizes |= {"in_proj_b": (heads, hidden), "in_proj_a": (heads, hidden)}
    return sizes | {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}


def _check_shape(name: str, shape: Sequence[int], expected: tuple[int, ...]) -> None:
    if tuple(shape) != expected:
        raise InputError(
            f"{name} must have the shape {expected} of the model's config.json, got {tuple(shape)}; restore that file"
        )
