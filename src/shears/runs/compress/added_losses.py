"""Losses that each sparsity and each number format adds alone, on the model in memory.

Their sum orders the candidates. It is an estimate: a weight that pruning removed needs no rounding,
and healing and training are not in it. A model that has yet to learn its rows may predict them
better when it is pruned; what changes more is never taken to lose less.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from shears.config import CompressConfig, SparsifyConfig
from shears.config.fields import TemplateName
from shears.data.calibration import calibration_batches, text_tokens
from shears.evaluation.perplexity import perplexity
from shears.models.blocks import decoder_blocks, linears, weight_oi
from shears.models.blockwise.capture import InputMoments, capturing
from shears.models.blockwise.matrices import Matrix, block_matrices
from shears.models.devices import autocast, computing_dtype
from shears.models.load import load_model, refuse_unknown
from shears.models.properties import check_calibration, num_embeddings, within_context
from shears.models.ref import ModelRef
from shears.models.tokenizers import load_tokenizer
from shears.progress import meter
from shears.quantization.grid import quantize
from shears.quantization.with_inputs import output_error, round_with_inputs
from shears.runs.compress.exam import Texts
from shears.sparsity.prune import sparsify_model

logger = logging.getLogger(__name__)
BITS = {"bf16": 16, "keep": 16, "int8": 8, "int4": 4}
SEQUENCES = 4  # of each text: enough to order candidates, few enough to take minutes
LENGTH = 256  # tokens of each
INT4 = ("values", "int4")
SAMPLE = (0.25, 0.75)  # places of the blocks, as shares of the depth
READS = 6  # passes over a text of 1,024 tokens that the sample takes as long as
Method = Literal["magnitude", "wanda"]


@dataclass(frozen=True)
class AddedLosses:
    """Nats a token above the dense loss: by sparsity, format of weights, format of embeddings."""

    dense: float
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
    model: ModelRef,
    kinds: Iterable[tuple[float, str, str]],
    config: CompressConfig,
    texts: Texts,
    template: TemplateName,
) -> AddedLosses:
    """Return the loss of each sparsity and format in `kinds` alone, on the held-out text.

    Instructions of both texts are rendered in `template`. Weights are rounded to nearest and pruned
    by wanda, or by magnitude where the method is that. What int4 weights add is lowered to the share
    of the error that rounding with known inputs leaves. InputError for a text that is too short.
    """
    tokenizer = load_tokenizer(model)
    network = load_model(model, computing_dtype("auto", "cpu"), "cpu")
    length = within_context(network, min(LENGTH, config.sequence_length))
    tokens = text_tokens(str(texts.held_out), tokenizer, template=template)
    samples = min(SEQUENCES, config.num_samples or SEQUENCES)
    text = str(texts.calibration)
    calibration = calibration_batches(text, tokenizer, samples, length, samples, config.seed, trained=template)
    check_calibration(network, calibration.batches)
    refuse_unknown(max(tokens, default=0), num_embeddings(network))

    def loss(changed: PreTrainedModel) -> float:
        with autocast("auto", "cpu"):
            sums = perplexity(changed, tokens, length, samples).records
        return float(sum(record["nll"] for record in sums) / sum(record["tokens"] for record in sums))

    dense = loss(network)
    window = min(length, len(tokens))
    held_out = torch.tensor(tokens[: min(samples, len(tokens) // window) * window]).view(-1, window)
    changes = _changes(kinds)
    added: dict[str, dict[float | str, float]] = {"sparsity": {}, "values": {}, "embeddings": {}}
    method: Method = "magnitude" if config.method == "magnitude" else "wanda"
    with meter("losses", len(changes), "kind") as progress, torch.no_grad():
        for kind, form in changes:
            network = load_model(model, computing_dtype("auto", "cpu"), "cpu")
            share = share_of_nearest(network, calibration.batches, held_out) if (kind, form) == INT4 else 1.0
            _change(network, kind, form, calibration.batches, method)
            added[kind][form] = share * (loss(network) - dense)
            logger.info("%s %s alone adds %.4f nats a token", kind, form, added[kind][form])
            progress.advance(note=f", {kind} {form}")
    return AddedLosses(dense, *map(rising, added.values()))  # type: ignore[arg-type]


def rising(added: Mapping[float | str, float]) -> dict[float | str, float]:
    """Return what each sparsity or format of weights adds, none less than one that changes less, or than 0."""
    by_change = sorted(added, key=lambda each: -BITS[each] if isinstance(each, str) else each)
    most = accumulate((added[each] for each in by_change), max, initial=0.0)
    return dict(zip(by_change, islice(most, 1, None), strict=True))


def seconds_of_losses(kinds: Iterable[tuple[float, str, str]], load: float, forward: float) -> float:
    """Return the seconds that `measured_losses` takes, of those of loading and of a token of a forward pass.

    Each change loads the model and reads the held-out text once; pruning reads a text twice more.
    """
    changes = _changes(kinds)
    zeros = sum(kind == "sparsity" for kind, _ in changes)
    reads = 1 + len(changes) + 2 * zeros + READS * (INT4 in changes)
    return len(changes) * load + reads * SEQUENCES * LENGTH * forward


def _changes(kinds: Iterable[tuple[float, str, str]]) -> list[tuple[str, float | str]]:
    """Return what the candidates change of the dense model, each sparsity and format once."""
    sparsities, values, embeddings = (sorted(set(each), key=str) for each in zip(*kinds, strict=True))
    return [
        *(("sparsity", each) for each in sparsities if each),
        *(("values", each) for each in values if each != "bf16"),
        *(("embeddings", each) for each in embeddings if each != "keep"),
    ]


def _change(network: PreTrainedModel, kind: str, form: float | str, text: Sequence[Tensor], method: Method) -> None:
    """Prune the model, or round its weights or embeddings to nearest."""
    if kind == "sparsity":
        sparsify_model(network, text, SparsifyConfig(sparsity=float(form), method=method))
    for weight in {"values": _weights, "embeddings": _tables}.get(kind, lambda _: [])(network):
        weight.copy_(quantize(weight, str(form)).dense())


def _weights(network: PreTrainedModel) -> list[Tensor]:
    """Return the weights of the linears in the blocks (O I)."""
    blocks = decoder_blocks(network)[1]
    return [weight_oi(linear) for block in blocks for linear in linears(block).values()]


def _tables(network: PreTrainedModel) -> list[Tensor]:
    """Return the embeddings and the output head; tied ones once."""
    tables: list[Any] = [network.get_input_embeddings(), network.get_output_embeddings()]
    return list({id(table.weight): table.weight for table in tables if table is not None}.values())


@torch.no_grad()
def share_of_nearest(
    network: PreTrainedModel, text: Sequence[Int[Tensor, "_ _"]], held_out: Int[Tensor, "_ _"]
) -> float:
    """Return the squared output error of int4 that `text` rounds, as a share of that of rounding to nearest.

    Both errors are of the tokens of `held_out`. 1 where nothing errs, at most 1.
    """
    prefix, blocks = decoder_blocks(network)
    places = sorted({int(share * len(blocks)) for share in SAMPLE})
    matrices = [
        matrix
        for place in places
        for matrix in block_matrices(f"{prefix}.{place}", blocks[place])
        if matrix.index is None
    ]
    known, unseen = (_moments(network, matrices, batches) for batches in (text, [held_out]))
    error = nearest = 0.0
    for matrix in matrices:
        inputs, test = known.of(matrix), unseen.of(matrix)
        if inputs is None or test is None or not inputs.any():
            continue
        weight = matrix.view(network).float()
        rounded = round_with_inputs(weight, weight != 0, inputs)
        error += float(output_error(weight, rounded, test).double().sum())
        nearest += float(output_error(weight, quantize(weight, "int4"), test).double().sum())
    return min(error / nearest, 1.0) if nearest > 0 else 1.0


def _moments(
    network: PreTrainedModel, matrices: Sequence[Matrix], batches: Sequence[Int[Tensor, "_ _"]]
) -> InputMoments:
    moments = InputMoments()
    with capturing(network, network, matrices, moments.receive):
        for ids in batches:
            network(ids, use_cache=False, logits_to_keep=1)
    return moments
