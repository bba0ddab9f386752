"""Formats merged and merged-sparse: one model folder with a sub-adapter in its weights.

An adapter trained without the mask fills the zeros when it is merged. For merged-sparse, it is
projected: each adapted linear gets the weights that W keeps, fitted by least squares to the outputs
of W + scaling B A. Blocks, and the groups of linears in a block, are fitted in order, each on
inputs from the projected ones. The losses on all tokens, calibration and held out, measure how well
the projection imitates the un-merged model; the loss on completions measures the task itself.

Shapes: O output features, I input features of a linear; B sequences, T tokens, V words of the
vocabulary, N labelled tokens.
"""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.checkpoints.tensor_files import quantized_by
from shears.config import ExportConfig, SparsifyConfig
from shears.config.fields import TemplateName
from shears.config.notation import num_bytes
from shears.data.calibration import calibration_batches
from shears.data.example import IGNORED, OWN_NAMES
from shears.data.examples import load_examples, tokenize_all
from shears.data.rows import located, source_fingerprint
from shears.errors import InputError
from shears.export.peft import SubAdapter, origin, read_sub_adapter
from shears.export.target import Changed, MergedModel, merge_into, with_masked, with_rounded, with_whole
from shears.models.blocks import LoraUpdate
from shears.models.blockwise.activations import Activations
from shears.models.blockwise.capture import InputMoments
from shears.models.blockwise.matrices import Matrix
from shears.models.blockwise.sources import BlockSource, Skeleton, StreamedModel
from shears.models.blockwise.walk import BlockRun, IrregularBlocks, Walk, walk_blocks
from shears.models.devices import autocast
from shears.models.load import answer_greedily
from shears.models.properties import check_calibration, check_sequence_length
from shears.models.ref import ModelRef, checked_base
from shears.models.tokenizers import load_tokenizer, save_tokenizer
from shears.records.artifacts import FORM, HEALED, SPARSITY, record_in, training_source, weights_fingerprint
from shears.sparsity.methods.refit import refit
from shears.sparsity.rewrite import LinearSparsity, check_saved, overall_sparsity

logger = logging.getLogger(__name__)
BUDGET = num_bytes(SparsifyConfig.model_fields["activation_budget"].default)  # hidden states in memory
BATCH = 2  # sequences in a forward; more would need much memory for logits
EXAMPLES = 8  # examples in a forward; they are shorter than sequences
POSITIONS_AT_ONCE = 128  # positions of a batch whose logits are float32 at the same time
Linears = Mapping[str, LinearSparsity]


class Text(NamedTuple):
    """A calibration text, the prompt template for its examples, and the columns of its rows."""

    source: str
    template: TemplateName
    columns: Mapping[str, str] = OWN_NAMES


def write_merged(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write the base with the sub-adapter of `source` in its weights; return its record.

    `source` is a super-adapter or an exported sub-adapter. Every format but `merged` keeps each
    zero of the base: an adapter that was trained without the mask is projected on these zeros.
    InputError for ranks outside the search space, for another base, for a quantized one, and where
    the projection has no calibration text.
    """
    adapter = Path(source)
    chosen = read_sub_adapter(adapter, settings)
    base = checked_base(adapter, dict(chosen.record), model)
    if (method := quantized_by(base.folder)) is not None:
        raise InputError(
            f"a model to merge into must have plain weights, {base.name} is quantized by {method}; export peft"
        )
    projects = settings.format != "merged" and not chosen.masked
    figures: dict[str, Any] = {}
    if projects:
        text = _calibration_text(chosen, settings, adapter)
        target, figures = merge_projected(base, work, chosen.updates, text, settings)
    else:
        updates = chosen.padded_updates if chosen.grids else chosen.updates
        target, _ = merge_into(base, work, updates, settings.device, lambda target: _merge(target, chosen))
    check_saved(work, target.after)
    save_tokenizer(base, work)
    record = origin(base, chosen, settings)
    if FORM in record:
        answer_greedily(work)
    return {
        **record,
        "sparsity": _sparsity(base.folder, target.before, target.after, chosen.record["base_fingerprint"]),
        "projected": projects,
        **figures,
        "fingerprint": weights_fingerprint(work),
    }


def _calibration_text(chosen: SubAdapter, settings: ExportConfig, adapter: Path) -> Text:
    """Return the calibration text of the settings, or the unchanged training data of an adapter's folder."""
    trained = training_source(chosen.record)
    source = settings.calibration or trained["data"]
    expected = trained["data_sha256"]
    if settings.calibration is None and source is not None:
        source = located(str(source), expected, adapter)
    if source is None:
        raise InputError(
            "merged-sparse must fit an adapter trained without sparse_adapter on a text, got none; add --calibration"
        )
    if settings.calibration is None and expected and (current := source_fingerprint(str(source))) != expected:
        raise InputError(
            f"merged-sparse fits this adapter on its training data, {source}, which must be as it was (sha256 "
            f"{str(expected)[:12]}), got {current[:12] if current else 'no such file'} here, nor beside or above "
            f"{adapter}; add --calibration"
        )
    columns = trained.get("columns", OWN_NAMES) if settings.calibration is None else OWN_NAMES
    return Text(str(source), chosen.record["template"], columns)


@torch.no_grad()
def _merge(target: MergedModel, chosen: SubAdapter) -> None:
    """Make every adapted linear W + scaling B A, masked and on a grid as in training."""
    for index in target.indices:
        with target.opened(index) as matrices:
            for matrix in matrices:
                weight = target.view(matrix)
                update = target.updates[matrix.name]
                if chosen.grids:  # a kept weight may be 0 on its grid
                    target.put(matrix, with_rounded(weight, update, chosen.grids[matrix.name]), None)
                elif chosen.masked:
                    target.put(matrix, with_masked(weight, update), weight != 0)
                else:
                    target.put(matrix, with_whole(weight, update), None)


def _sparsity(folder: Path, before: Linears, after: Linears, fingerprint: str) -> dict[str, float]:
    """Return the shares of zeros before and after, over the pruned or else the adapted linears."""
    path = next((folder / name for name in (SPARSITY, HEALED) if (folder / name).is_file()), None)
    record = {} if path is None else record_in(path)
    if path is not None and record.get("fingerprint") == fingerprint:
        pruned = _pruned_linears(path, record)
        before = {name: before.get(name, linear) for name, linear in pruned.items()}
        after = {name: after.get(name, linear) for name, linear in pruned.items()}
    shares = {"before": overall_sparsity(before), "after": overall_sparsity(after)}
    if shares["after"] < shares["before"]:
        fall = f"{100 * shares['before']:.1f} % to {100 * shares['after']:.1f} %"
        logger.warning("sparsity falls from %s; use --format merged-sparse to keep it", fall)
    return shares


def _pruned_linears(path: Path, record: Mapping[str, Any]) -> dict[str, LinearSparsity]:
    try:
        return {
            name: LinearSparsity((int(linear["shape"][0]), int(linear["shape"][1])), int(linear["zeros"]))
            for name, linear in record["linears"].items()
        }
    except (LookupError, TypeError, ValueError):
        raise InputError(
            f"{path} must have the shape and the zeros of every linear, it does not; make the folder again"
        ) from None


class Labelled(NamedTuple):
    """Sequences of one length; a label is the token, or -100 where the token does not count."""

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]


class Samples(NamedTuple):
    """Batches to fit on, parts to measure losses on by name, and the fingerprint of the tokens."""

    fit: list[Int[Tensor, "_ _"]]
    parts: Mapping[str, list[Labelled]]
    fingerprint: str


def merge_projected(
    model: ModelRef, work: Path, updates: Mapping[str, LoraUpdate], text: Text, settings: ExportConfig
) -> tuple[MergedModel, dict[str, Any]]:
    """Write the model with its projected updates to `work`; return the model and the figures.

    The figures are losses on the text (nats a token): of the adapter un-merged, of the plainly
    masked sum, and of the projection. InputError for a text that cannot be used and for a model
    whose blocks cannot be walked.
    """
    tokenizer = load_tokenizer(model)

    def merge(target: MergedModel) -> tuple[Samples, dict[str, dict[str, float]]]:
        samples = draw_samples(text, tokenizer, target.source.model, settings)
        before = {
            "unmerged": losses(Changed(target, with_whole), samples.parts, work, "loss, un-merged"),
            "masked": losses(Changed(target, with_masked), samples.parts, work, "loss, masked"),
        }
        project(target, samples.fit, work)
        return samples, before

    try:
        target, (samples, before) = merge_into(model, work, updates, settings.device, merge)
    except IrregularBlocks as error:
        raise InputError(f"{error}; train with --sparse-adapter to merge such a model without loss") from error
    written = target.source
    if not written.resident:
        written = StreamedModel(Skeleton.open(work, torch.float32, written.device))
    by_model = {**before, "projected": losses(written, samples.parts, work, "loss, projected")}
    for part in by_model["unmerged"]:
        logger.info(
            "nats a token, %s: %.4f un-merged, %.4f plainly masked, %.4f projected",
            part.replace("_", " "),
            *(by_model[name][part] for name in ("unmerged", "masked", "projected")),
        )
    return target, {
        "losses": by_model,
        "calibration_fingerprint": samples.fingerprint,
        "calibration_sha256": source_fingerprint(text.source),
    }


@torch.no_grad()
def project(target: MergedModel, batches: Sequence[Int[Tensor, "_ _"]], folder: Path) -> None:
    """Merge the target's updates with every zero kept and the smallest output errors.

    Hidden states beyond the budget are kept in `folder`. IrregularBlocks where blocks cannot be
    walked.
    """
    with Activations(BUDGET, folder) as hidden:
        walk = Walk(target.source, batches, hidden, lambda: autocast("auto", target.source.device))
        walk_blocks(walk, lambda run: _project_block(target, run), "project")


def _project_block(target: MergedModel, run: BlockRun) -> None:
    matrices = target.by_block[run.index]
    kept: dict[Matrix, Tensor] = {}
    whole: dict[Matrix, Tensor] = {}
    for matrix in matrices:
        view = target.view(matrix)
        kept[matrix] = view != 0
        whole[matrix] = with_whole(view, target.updates[matrix.name])
        view.copy_(whole[matrix])
    for group in run.groups(matrices) if matrices else []:
        moments = InputMoments()
        run.measure(group, moments.receive)
        for matrix in group:
            if moments.of(matrix) is None:
                logger.warning("no calibration token reached %s: its zeros are put in without a fit", matrix.name)
            target.put(matrix, nearest(whole.pop(matrix), kept[matrix], moments.of(matrix)), kept[matrix])
    target.keep(run.index)


def nearest(
    weight: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"], moments: Float[Tensor, "I I"] | None
) -> Float[Tensor, "O I"]:
    """Return the weight with zeros where not `kept` whose outputs are nearest to `weight`'s.

    `moments` are X^T X of the inputs; without them, return the weight with zeros put in.
    """
    masked = weight.masked_fill(~kept, 0.0)
    if moments is None or not moments.any() or bool(kept.all()):
        return masked
    return refit(weight, masked, kept, moments)


def draw_samples(
    text: Text, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, settings: ExportConfig
) -> Samples:
    """Return `num_samples` sequences to fit on, as many held out, and at most twice as many examples.

    A text that is too short has no held-out sequences, and one without examples no completions.
    Token ids from a file are all for the fit, unless their number is exactly twice `num_samples`.
    InputError where the text is too short for the fit or the sequences are too long for the model.
    """
    check_sequence_length(model, settings.sequence_length)
    count = settings.num_samples
    length = settings.sequence_length
    draw = partial(calibration_batches, text.source, tokenizer, columns=text.columns, trained=text.template)
    try:
        drawn = draw(2 * count, length, BATCH, settings.seed, all_needed=True)
    except InputError:  # too short for both parts; any other error comes again
        drawn = draw(count, length, BATCH, settings.seed)
    check_calibration(model, drawn.batches)
    sequences = [Labelled(row[None], row[None]) for batch in drawn.batches for row in batch]
    share = count if len(sequences) == 2 * count else len(sequences)
    parts = {
        "calibration": _batched(sequences[:share], BATCH),
        "held_out": _batched(sequences[share:], BATCH),
        "completions": _completions(text, tokenizer, settings),
    }
    fit = [batch.tokens for batch in parts["calibration"]]
    return Samples(fit, {name: part for name, part in parts.items() if part}, drawn.fingerprint)


def _completions(text: Text, tokenizer: PreTrainedTokenizerBase, settings: ExportConfig) -> list[Labelled]:
    """Return drawn examples with labelled completions; an empty list for a text without any."""
    try:
        examples = load_examples(text.source, text.template, tokenizer, columns=text.columns)
        generator = random.Random(f"completions {settings.seed}")
        chosen = generator.sample(examples, min(2 * settings.num_samples, len(examples)))
        rows = tokenize_all(chosen, tokenizer, settings.sequence_length)
    except InputError:
        return []
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    return _batched(
        [Labelled(torch.tensor([row.input_ids]), torch.tensor([row.labels])) for row in by_length], EXAMPLES
    )


def _batched(sequences: Sequence[Labelled], size: int) -> list[Labelled]:
    """Return batches of neighbours of equal length."""
    groups = [list(group) for _, group in groupby(sequences, key=lambda sequence: sequence.tokens.shape[1])]
    pieces = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return [
        Labelled(torch.cat([row.tokens for row in piece]), torch.cat([row.labels for row in piece])) for piece in pieces
    ]


@torch.no_grad()
def losses(source: BlockSource, parts: Mapping[str, Sequence[Labelled]], folder: Path, title: str) -> dict[str, float]:
    """Return the mean negative log-likelihood of a labelled token, in nats, over each of the parts.

    Hidden states beyond the budget are kept in `folder`. IrregularBlocks where blocks cannot be
    walked, InputError where a loss is not finite.
    """
    batches = [batch for part in parts.values() for batch in part]
    by_batch: list[Tensor] = []
    with Activations(BUDGET, folder) as hidden:
        tokens = [batch.tokens for batch in batches]
        walk = Walk(source, tokens, hidden, lambda: autocast("auto", source.device))

        def visit(run: BlockRun) -> None:
            if run.index == len(walk) - 1:
                with source.with_head():
                    by_batch.extend(
                        _token_losses(walk.logits(index, states), batches[index].labels)
                        for index, states in enumerate(run.outputs())
                    )

        walk_blocks(walk, visit, title)
    means = {name: float(torch.cat([by_batch.pop(0) for _ in part]).double().mean()) for name, part in parts.items()}
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise InputError(f"losses must be finite, {title} on {name} is {mean}; look for NaN in embeddings and head")
    return means


def _token_losses(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, " N"]:
    """Return the loss of every labelled token on the CPU."""
    following = labels[:, 1:].to(logits.device)
    counts = following != IGNORED
    pieces = zip(
        logits[:, :-1][counts].split(POSITIONS_AT_ONCE), following[counts].split(POSITIONS_AT_ONCE), strict=True
    )
    return torch.cat(
        [torch.nn.functional.cross_entropy(piece.float(), tokens, reduction="none") for piece, tokens in pieces]
    ).cpu()
