"""A model's parts, layer by layer in the order of computation, into what the native decoder reads."""

from collections.abc import Mapping

from torch import Tensor

from shears.packed.layout import Values
from shears.runtime import _native
from shears.runtime.architectures import LayerPlan, Plan
from shears.runtime.model_source import ModelSource, Rows
from shears.runtime.native_weights import Arena, values_of

INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Builder:
    """Takes a source apart. `embeddings` are read where they are and must be kept, all else goes into the arena."""

    def __init__(self, source: ModelSource, plan: Plan, arena: Arena) -> None:
        self._source, self._plan, self._arena = source, plan, arena
        first = source.linears["model.layers.0.self_attn.q_proj"]
        self.values = values_of(first)
        table = source.tensors["model.embed_tokens.weight"]
        self.embeddings = table if isinstance(table, Rows) else Rows(table.contiguous())

    def weights(self, head: Values | None) -> tuple[_native.DecoderWeights, Values]:
        """Return everything the decoder reads, and the number format of its head."""
        weights = _native.DecoderWeights()
        for index, layer in enumerate(self._plan.layers):
            self._layer(weights, f"model.layers.{index}.", layer)
        own = self._source.tensors.get("lm_head.weight", self.embeddings)
        rows = own if isinstance(own, Rows) else Rows(own)
        rows = rows.as_values(head or values_of(rows))
        norm = self._arena.floats(self._tensor("model.norm.weight"))
        frequencies = self._arena.floats(self._plan.inverse_frequencies)
        table = self.embeddings
        addresses = (table.values.data_ptr(), 0 if table.scales is None else table.scales.data_ptr())
        weights.set_ends(*addresses, values_of(table) == "bf16", norm, frequencies, self._arena.matrix(rows))
        return weights, values_of(rows)

    def _layer(self, weights: _native.DecoderWeights, prefix: str, plan: LayerPlan) -> None:
        norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        before, behind, query, key = (self._arena.floats(self._tensor(f"{prefix}{norm}.weight")) for norm in norms)
        weights.add_layer(before, behind, query, key, plan.window or 0, plan.rotates)
        for names in INPUTS:
            whole = {name: f"{prefix}{'self_attn' if name in ATTENTION else 'mlp'}.{name}" for name in names}
            for name, linear in whole.items():
                bias = self._arena.floats(self._tensor(f"{linear}.bias"))
                weights.set_linear(name, self._arena.matrix(self._source.linears[linear]), bias)
            self._updates(weights, whole)

    def _updates(self, weights: _native.DecoderWeights, linears: Mapping[str, str]) -> None:
        """Give the linears of one input their updates, if they have any."""
        updates = {name: self._source.updates[full] for name, full in linears.items() if full in self._source.updates}
        if not updates:
            return
        bf16 = self.values != "fp32"
        weights.set_down(next(iter(linears)), self._arena.down(list(updates.values()), self.values))
        first = 0
        for name, update in updates.items():
            rank = update.a.shape[0]
            weights.set_update(name, self._arena.up(update, bf16=bf16), bf16, rank, first)
            first += rank

    def _tensor(self, name: str) -> Tensor | None:
        tensor = self._source.tensors.get(name)
        return tensor.floats() if isinstance(tensor, Rows) else tensor
