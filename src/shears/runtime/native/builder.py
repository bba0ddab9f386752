"""Copies a model's weights, in the order of computation, into the memory that the native decoder reads."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shears.checkpoints.packed.layout import PANEL, NumberFormat, PackedMatrix
from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.runtime.native import _native
from shears.runtime.native.architectures import DecoderPlan, LayerPlan, NotCoveredError
from shears.runtime.native.dense_rows import DenseRows, rows_of
from shears.runtime.native.kernels import HugeBuffer, copied, copied_matrix, dense_matrix
from shears.runtime.native.model_source import ModelSource
from shears.runtime.native.tuning import CODES, is_dense_faster

INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
REDUNDANT = "rotary_emb.inv_freq"  # in old files; computed from the config
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Arena:
    """Memory for copies of weights; it lives as long as this object. Address 0 means that there is no weight.

    Sparse weights are stored with their zeros where that is faster on `threads` threads.
    Values follow values and masks follow masks in the order of the calls: a kernel that prefetches beyond the end of a
    weight prefetches the next weight.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._values = HugeBuffer()
        self._masks = HugeBuffer()
        self._rest = HugeBuffer()

    @property
    def num_bytes(self) -> int:
        """The bytes of all copies."""
        return sum(buffer.bytes for buffer in (self._values, self._masks, self._rest))

    def floats(self, tensor: Tensor | None) -> int:
        """Copy a tensor as float32; return its address."""
        return 0 if tensor is None else copied(tensor.float(), self._rest)

    def matrix(self, weight: PackedMatrix | DenseRows) -> _native.Matrix:
        """Copy a packed or a dense weight; return it for the kernels."""
        if isinstance(weight, PackedMatrix) and is_dense_faster(weight.values_dtype, self._threads):
            weight = rows_of(weight)
        if isinstance(weight, DenseRows):
            return dense_matrix(weight, self._values).native
        return copied_matrix(weight, self._values, self._masks, self._rest)[0]

    def up(self, update: LoraUpdate, *, bf16: bool) -> int:
        """Copy scaling * B of an update as [panel][rank][16 rows], padded with rows of zeros; return its address."""
        rows, rank = update.b.shape
        padded = torch.zeros(-(-rows // PANEL) * PANEL, rank)
        padded[:rows] = update.b.float() * update.scaling
        panels = padded.view(-1, PANEL, rank).transpose(1, 2)
        return copied(panels.to(torch.bfloat16 if bf16 else torch.float32), self._rest)


class Builder:
    """Takes the parts of a source one by one and copies them into the arena.

    `embeddings` are not copied: the decoder reads them where they are, so the caller keeps them. `values` is the number
    format of most linears. InputError for a config that does not fit the tensors, NotCoveredError for a tensor that is
    missing or left over.
    """

    def __init__(self, source: ModelSource, plan: DecoderPlan, arena: Arena) -> None:
        self._plan = plan
        self._arena = arena
        self._linears = dict(source.linears)
        self._tensors = dict(source.tensors)
        self._updates = dict(source.updates)
        self._tied = bool(getattr(source.config, "tie_word_embeddings", True))
        self._sizes = _sizes(plan)
        self.embeddings = self._take_rows(EMBEDDINGS)
        _check_shape(EMBEDDINGS, self.embeddings.shape, (plan.vocab_size, plan.hidden_size))
        self.values = _main_values(source)

    def weights(self, head_values: NumberFormat | None) -> tuple[_native.DecoderWeights, NumberFormat]:
        """Return everything the decoder reads, and the number format of its head."""
        weights = _native.DecoderWeights()
        for index, layer in enumerate(self._plan.layers):
            self._add_layer(weights, f"model.layers.{index}.", layer)
        head = self.embeddings if self._tied and HEAD not in self._tensors else self._take_rows(HEAD)
        _check_shape(HEAD, head.shape, (self._plan.vocab_size, self._plan.hidden_size))
        head = head.as_values(head_values or head.values_dtype)
        norm = self._take_vector("model.norm.weight", self._plan.hidden_size, required=True)
        frequencies = self._arena.floats(self._plan.inverse_frequencies)
        table = self.embeddings
        addresses = (_address(table.values), _address(table.scales), _address(table.zeros))
        weights.set_ends(CODES[table.values_dtype], *addresses, norm, frequencies, self._arena.matrix(head))
        tensors = [name for name in self._tensors if not name.endswith(REDUNDANT)]
        if rest := [*self._linears, *self._updates, *tensors]:
            raise NotCoveredError(f"the native decoder must know every part of a model and its adapter, not {rest[0]}")
        return weights, head.values_dtype

    def _add_layer(self, weights: _native.DecoderWeights, prefix: str, plan: LayerPlan) -> None:
        hidden, head_dim = self._plan.hidden_size, self._plan.head_dim
        weights.add_layer(
            self._take_vector(f"{prefix}input_layernorm.weight", hidden, required=True),
            self._take_vector(f"{prefix}post_attention_layernorm.weight", hidden, required=True),
            self._take_vector(f"{prefix}self_attn.q_norm.weight", head_dim),
            self._take_vector(f"{prefix}self_attn.k_norm.weight", head_dim),
            plan.window or 0,
            plan.rotates,
        )
        for names in INPUTS:
            linears = {name: f"{prefix}{'self_attn' if name in ATTENTION else 'mlp'}.{name}" for name in names}
            for name, linear in linears.items():
                bias = self._take_vector(f"{linear}.bias", self._sizes[name][0])
                weights.set_linear(name, self._arena.matrix(self._take_linear(linear, self._sizes[name])), bias)
            self._add_updates(weights, linears)

    def _take_linear(self, name: str, sizes: tuple[int, int]) -> PackedMatrix | DenseRows:
        """Return a linear's weight: packed, or dense if packing made it no smaller."""
        weight = self._linears.pop(name, None) or self._take_rows(f"{name}.weight")
        shape = (weight.rows, weight.cols) if isinstance(weight, PackedMatrix) else weight.shape
        _check_shape(f"{name}.weight", shape, sizes)
        return weight

    def _add_updates(self, weights: _native.DecoderWeights, linears: Mapping[str, str]) -> None:
        """Add the updates, if any, of the linears that share one input."""
        updates = {name: self._updates.pop(linear) for name, linear in linears.items() if linear in self._updates}
        if not updates:
            return
        bf16 = self.values != "fp32"
        first = 0
        for name, update in updates.items():
            rank = update.a.shape[0]
            rows, cols = self._sizes[name]
            _check_shape(f"A of {linears[name]}", update.a.shape, (rank, cols))
            _check_shape(f"B of {linears[name]}", update.b.shape, (rows, rank))
            weights.set_update(name, self._arena.up(update, bf16=bf16), bf16, rank, first)
            first += rank
        down = DenseRows(torch.cat([update.a.float() for update in updates.values()]))
        down = down.as_values("int8" if self.values == "int4" else self.values)  # 4 bits would be felt in the outputs
        weights.set_down(next(iter(linears)), self._arena.matrix(down))

    def _take(self, name: str) -> DenseRows | Tensor:
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise NotCoveredError(f"the native decoder covers models that hold {name}, this one does not")
        return tensor

    def _take_rows(self, name: str) -> DenseRows:
        """Return a matrix in a number format of the kernels; one of another format becomes fp32."""
        tensor = self._take(name)
        if isinstance(tensor, DenseRows):
            return tensor
        return DenseRows((tensor if tensor.dtype in (torch.float32, torch.bfloat16) else tensor.float()).contiguous())

    def _take_vector(self, name: str, length: int, *, required: bool = False) -> int:
        """Copy a bias or a norm; return its address, 0 for one that the model does not have."""
        if not required and name not in self._tensors:
            return 0
        tensor = self._take(name)
        numbers = tensor.floats() if isinstance(tensor, DenseRows) else tensor
        _check_shape(name, numbers.shape, (length,))
        return self._arena.floats(numbers)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _main_values(source: ModelSource) -> NumberFormat:
    """Return the number format of most linears."""
    dense = [tensor for name, tensor in source.tensors.items() if name.endswith("_proj.weight")]
    rows = [tensor if isinstance(tensor, DenseRows) else DenseRows(tensor) for tensor in dense]
    counts = Counter(linear.values_dtype for linear in [*source.linears.values(), *rows])
    return counts.most_common(1)[0][0] if counts else "fp32"


def _sizes(plan: DecoderPlan) -> Mapping[str, tuple[int, int]]:
    """Return the rows and columns of a layer's linears."""
    hidden, inner = plan.hidden_size, plan.intermediate_size
    query, key = plan.num_heads * plan.head_dim, plan.num_kv_heads * plan.head_dim
    attention = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    return attention | {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}


def _check_shape(name: str, shape: Sequence[int], expected: tuple[int, ...]) -> None:
    if tuple(shape) != expected:
        raise InputError(
            f"{name} must have the shape {expected} of the model's config.json, got {tuple(shape)}; restore that file"
        )
