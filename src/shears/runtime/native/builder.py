"""A model's parts, layer by layer in the order of computation, into what the native decoder reads."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix
from shears.errors import InputError
from shears.runtime.native import _native
from shears.runtime.native.architectures import LayerPlan, NotCoveredError, Plan
from shears.runtime.native.model_source import ModelSource, Rows, Update
from shears.runtime.native.weights import Arena, values_of

INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FOLLOWS = "rotary_emb.inv_freq"  # in old files: what the config says already
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Builder:
    """Takes a source apart. `embeddings` are read where they are and must be kept, all else goes into the arena.

    InputError for a config that does not fit the tensors, NotCoveredError where a tensor is missing or left over.
    """

    def __init__(self, source: ModelSource, plan: Plan, arena: Arena) -> None:
        self._plan, self._arena = plan, arena
        self._linears, self._tensors, self._updates = dict(source.linears), dict(source.tensors), dict(source.updates)
        self._tied = bool(getattr(source.config, "tie_word_embeddings", True))
        self._sizes = _sizes(plan)
        self.embeddings = self._rows(EMBEDDINGS)
        _check_shape(EMBEDDINGS, self.embeddings.values.shape, (plan.vocab_size, plan.hidden_size))
        self.values = _main_values(source)

    def weights(self, head: NumberFormat | None) -> tuple[_native.DecoderWeights, NumberFormat]:
        """Return everything the decoder reads, and the number format of its head."""
        weights = _native.DecoderWeights()
        for index, layer in enumerate(self._plan.layers):
            self._layer(weights, f"model.layers.{index}.", layer)
        rows = self._head()
        rows = rows.as_values(head or values_of(rows))
        norm = self._vector("model.norm.weight", self._plan.hidden_size, needed=True)
        frequencies = self._arena.floats(self._plan.inverse_frequencies)
        table = self.embeddings
        addresses = (table.values.data_ptr(), 0 if table.scales is None else table.scales.data_ptr())
        weights.set_ends(*addresses, values_of(table) == "bf16", norm, frequencies, self._arena.matrix(rows))
        self._refuse_rest()
        return weights, values_of(rows)

    def _layer(self, weights: _native.DecoderWeights, prefix: str, plan: LayerPlan) -> None:
        hidden, head = self._plan.hidden_size, self._plan.head_dim
        norms = [f"{prefix}{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")]
        before, behind = (self._vector(norm, hidden, needed=True) for norm in norms)
        query, key = (self._vector(f"{prefix}self_attn.{name}.weight", head) for name in ("q_norm", "k_norm"))
        weights.add_layer(before, behind, query, key, plan.window or 0, plan.rotates)
        for names in INPUTS:
            whole = {name: f"{prefix}{'self_attn' if name in ATTENTION else 'mlp'}.{name}" for name in names}
            for name, linear in whole.items():
                bias = self._vector(f"{linear}.bias", self._sizes[name][0])
                weights.set_linear(name, self._arena.matrix(self._linear(linear, self._sizes[name])), bias)
            self._give_updates(weights, whole)

    def _linear(self, name: str, sizes: tuple[int, int]) -> PackedMatrix | Rows:
        """Take a linear's weight: packed, or as it is where packing made it no smaller."""
        found = self._linears.pop(name, None) or self._rows(f"{name}.weight")
        shape = (found.rows, found.cols) if isinstance(found, PackedMatrix) else found.values.shape
        _check_shape(f"{name}.weight", shape, sizes)
        return found

    def _give_updates(self, weights: _native.DecoderWeights, linears: Mapping[str, str]) -> None:
        """Give the linears of one input their updates, if they have any."""
        updates = {name: self._updates.pop(full) for name, full in linears.items() if full in self._updates}
        if not updates:
            return
        bf16 = self.values != "fp32"
        for name, update in updates.items():
            _check_update(linears[name], update, self._sizes[name])
        weights.set_down(next(iter(linears)), self._arena.down(list(updates.values()), self.values))
        first = 0
        for name, update in updates.items():
            rank = update.a.shape[0]
            weights.set_update(name, self._arena.up(update, bf16=bf16), bf16, rank, first)
            first += rank

    def _head(self) -> Rows:
        head = self.embeddings if self._tied and HEAD not in self._tensors else self._rows(HEAD)
        _check_shape(HEAD, head.values.shape, (self._plan.vocab_size, self._plan.hidden_size))
        return head

    def _needed(self, name: str) -> Rows | Tensor:
        found = self._tensors.pop(name, None)
        if found is None:
            raise NotCoveredError(f"the native decoder covers models that hold {name}, this one does not")
        return found

    def _rows(self, name: str) -> Rows:
        """Take a matrix in a number format of the kernels; one of another format becomes fp32."""
        found = self._needed(name)
        if isinstance(found, Rows):
            return found
        return Rows((found if found.dtype in (torch.float32, torch.bfloat16) else found.float()).contiguous())

    def _vector(self, name: str, length: int, *, needed: bool = False) -> int:
        """Take a bias or a norm; return its address, 0 for one that is not there."""
        if not needed and name not in self._tensors:
            return 0
        found = self._needed(name)
        numbers = found.floats() if isinstance(found, Rows) else found
        _check_shape(name, numbers.shape, (length,))
        return self._arena.floats(numbers)

    def _refuse_rest(self) -> None:
        tensors = [name for name in self._tensors if not name.endswith(FOLLOWS)]
        if rest := [*self._linears, *self._updates, *tensors]:
            raise NotCoveredError(f"the native decoder must know every part of a model and its adapter, not {rest[0]}")


def _main_values(source: ModelSource) -> NumberFormat:
    """Return the number format of most linears."""
    dense = [part for name, part in source.tensors.items() if name.endswith("_proj.weight")]
    linears = [*source.linears.values(), *(part if isinstance(part, Rows) else Rows(part) for part in dense)]
    counts = Counter(map(values_of, linears))
    return counts.most_common(1)[0][0] if counts else "fp32"


def _sizes(plan: Plan) -> Mapping[str, tuple[int, int]]:
    """Return rows and columns of a layer's linears."""
    hidden, inner = plan.hidden_size, plan.intermediate_size
    query, key = plan.num_heads * plan.head_dim, plan.num_kv_heads * plan.head_dim
    attention = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    return attention | {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}


def _check_update(linear: str, update: Update, sizes: tuple[int, int]) -> None:
    rank = update.a.shape[0]
    _check_shape(f"A of {linear}", update.a.shape, (rank, sizes[1]))
    _check_shape(f"B of {linear}", update.b.shape, (sizes[0], rank))


def _check_shape(name: str, found: Sequence[int], wanted: tuple[int, ...]) -> None:
    if tuple(found) != wanted:
        raise InputError(f"{name} must be {wanted} by the model's config.json, it is {tuple(found)}; restore that file")
