"""Losses that each sparsity and each number format adds alone, measured on a model in memory before
anything is made.

Their sum orders the candidates. It is an estimate: a weight that pruning removed needs no rounding,
and healing and training are not in it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.config import CompressConfig, SparsifyConfig
from shears.data.calibration import Calibration, calibration_batches, text_tokens
from shears.evaluation.scoring.perplexity import perplexity
from shears.models.blocks import decoder_blocks, linears, weight_oi
from shears.models.devices import autocast
from shears.models.load import load_model, load_tokenizer
from shears.models.properties import within_context
from shears.models.ref import ModelRef
from shears.progress import meter
from shears.quantization.grid import quantize
from shears.sparsity.prune import sparsify_model

logger = logging.getLogger(__name__)
SEQUENCES = 8  # of each text: enough to order candidates, few enough to take minutes
LENGTH = 256  # tokens of each


@dataclass(frozen=True)
class AddedLosses:
    """Nats a token above the dense model's loss, by sparsity, by format of weights and by format of
    embeddings.

    `seconds_per_token` is the time of a forward pass of the dense model over many tokens.
    """

    dense: float
    seconds_per_token: float
    by_sparsity: Mapping[float, float] = field(default_factory=dict)
    by_values: Mapping[str, float] = field(default_factory=dict)
    by_embeddings: Mapping[str, float] = field(default_factory=dict)

    def added(self, sparsity: float, values: str, embeddings: str) -> float:
        """Return the sum of what a sparsity and two formats add; 0 for those of the dense model."""
        return (
            self.by_sparsity.get(sparsity, 0.0)
            + self.by_values.get(values, 0.0)
            + self.by_embeddings.get(embeddings, 0.0)
        )


def measured_losses(
    model: ModelRef, kinds: Iterable[tuple[float, str, str]], config: CompressConfig, text: str, held_out: str
) -> AddedLosses:
    """Return the losses of the sparsities and formats that occur in `kinds`, each alone, on the
    file `held_out`.

    Weights are rounded to nearest and pruned by wanda, or by magnitude where the method is that.
    InputError for a text that is too short.
    """
    tokenizer = load_tokenizer(model)
    network = load_model(model, "auto", "cpu")
    length = within_context(network, min(LENGTH, config.sequence_length))
    tokens = text_tokens(held_out, tokenizer)
    samples = min(SEQUENCES, config.num_samples)
    calibration = calibration_batches(text, tokenizer, samples, length, samples, config.seed)

    def loss(changed: PreTrainedModel) -> float:
        with autocast("auto", "cpu"):
            sums = perplexity(changed, tokens, length, samples).records
        return float(sum(record["nll"] for record in sums) / sum(record["tokens"] for record in sums))

    started = time.perf_counter()
    dense = loss(network)
    seconds = (time.perf_counter() - started) / min(len(tokens), samples * length)
    sparsities, values, embeddings = (sorted(set(each), key=str) for each in zip(*kinds, strict=True))
    changes: list[tuple[str, float | str, Callable[[PreTrainedModel], object]]] = [
        *(("sparsity", each, _pruning(each, config, calibration)) for each in sparsities if each),
        *(("values", each, _rounding_linears(each)) for each in values if each != "bf16"),
        *(("embeddings", each, _rounding_tables(each)) for each in embeddings if each != "keep"),
    ]
    added: dict[str, dict[float | str, float]] = {"sparsity": {}, "values": {}, "embeddings": {}}
    with meter("losses", len(changes), "kind") as progress:
        for kind, name, change in changes:
            network = load_model(model, "auto", "cpu")
            with torch.no_grad():
                change(network)
            added[kind][name] = loss(network) - dense
            logger.info("%s %s alone adds %.4f nats a token", kind, name, added[kind][name])
            progress.advance(note=f", {kind} {name}")
    return AddedLosses(dense, seconds, *added.values())  # type: ignore[arg-type]


def _pruning(sparsity: float, config: CompressConfig, calibration: Calibration) -> Callable[[PreTrainedModel], object]:
    method = "magnitude" if config.method == "magnitude" else "wanda"
    settings = SparsifyConfig(sparsity=sparsity, method=method)
    return lambda network: sparsify_model(network, calibration.batches, settings)


def _rounding_linears(values: str) -> Callable[[PreTrainedModel], None]:
    def change(network: PreTrainedModel) -> None:
        for block in decoder_blocks(network)[1]:
            for linear in linears(block).values():
                weight = weight_oi(linear)
                weight.copy_(quantize(weight, values).dense())

    return change


def _rounding_tables(form: str) -> Callable[[PreTrainedModel], None]:
    def change(network: PreTrainedModel) -> None:
        tables = [network.get_input_embeddings(), network.get_output_embeddings()]
        found: dict[int, Tensor] = {id(table.weight): table.weight for table in tables if isinstance(table, nn.Module)}  # type: ignore[misc]
        for weight in found.values():  # a tied table is rounded once
            weight.copy_(quantize(weight, form).dense())

    return change
