"""The sparse weights whose outputs come nearest to those of sparse weights and adapter together.

An adapter trained without the mask fills the zeros when it is merged. Block by block, group by group behind the already
projected ones, each adapted linear gets the least-squares fit of W + scaling B A on the weights that W keeps.

Shapes: O output features, I input features of a linear.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shears.blockwise.activations import Activations
from shears.blockwise.capture import InputMoments
from shears.blockwise.matrices import Matrix
from shears.blockwise.walk import BlockRun, IrregularBlocks, Walk, walk_blocks
from shears.config import ExportConfig, SparsifyConfig
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.export.quality import BUDGET, Samples, Text, context_of, draw_samples, losses
from shears.export.target import Changed, Merged, Target, merge_into
from shears.export.updates import Update, with_masked, with_whole
from shears.models.load import load_tokenizer
from shears.models.ref import ModelRef
from shears.sparsity.methods.refit import refit

logger = logging.getLogger(__name__)
DAMPING: float = SparsifyConfig.model_fields["damping"].default


def merge_projected(
    model: ModelRef, work: Path, updates: Mapping[str, Update], text: Text, settings: ExportConfig
) -> tuple[Merged[Any], dict[str, Any]]:
    """Write the model with the updates, projected on its zeros, to `work`; return it and its figures.

    The figures compare losses (nats a token) on the text: of sparse weights and adapter apart, of their sum with zeros
    put in, of the projection. InputError for a text that does not do and for a model whose blocks cannot be walked.
    """
    tokenizer = load_tokenizer(model)

    def merge(target: Target) -> tuple[Samples, dict[str, dict[str, float]]]:
        samples = draw_samples(text, tokenizer, target.source.model, settings)
        found = {
            "unmerged": losses(Changed(target, with_whole), samples.parts, work, "loss, un-merged"),
            "masked": losses(Changed(target, with_masked), samples.parts, work, "loss, masked"),
        }
        project(target, samples.fit, work)
        return samples, found

    try:
        merged = merge_into(model, work, updates, settings.device, merge)
    except IrregularBlocks as error:
        raise InputError(f"{error}; train with --sparse-adapter to merge such a model without loss") from error
    samples, found = merged.made
    found["projected"] = losses(merged.source(), samples.parts, work, "loss, projected")
    _log(found)
    return merged, {
        "losses": found,
        "calibration_fingerprint": samples.fingerprint,
        "calibration_sha256": source_fingerprint(text.source),
    }


def _log(found: Mapping[str, Mapping[str, float]]) -> None:
    for part in found["unmerged"]:
        logger.info(
            "nats a token, %s: %.4f un-merged, %.4f plainly masked, %.4f projected",
            part.replace("_", " "), *(found[kind][part] for kind in ("unmerged", "masked", "projected")),
        )  # fmt: skip


@torch.no_grad()
def project(target: Target, batches: Sequence[Int[Tensor, "_ _"]], folder: Path) -> None:
    """Merge the target's updates so that every zero stays, with the smallest output errors; see the top.

    Hidden states that exceed the budget wait in `folder`. IrregularBlocks where blocks cannot be walked.
    """
    with Activations(BUDGET, folder) as hidden:
        walk = Walk(target.source, batches, hidden, lambda: context_of(target.source))
        walk_blocks(walk, lambda run: _visit(target, run), "project")


def _visit(target: Target, run: BlockRun) -> None:
    matrices = target.by_block[run.index]
    kept, whole = dict[Matrix, Tensor](), dict[Matrix, Tensor]()
    for matrix in matrices:
        view = target.view(matrix)
        kept[matrix], whole[matrix] = view != 0, with_whole(view, target.updates[matrix.name])
        view.copy_(whole[matrix])
    for group in run.groups(matrices) if matrices else []:
        moments = InputMoments()
        run.measure(group, moments.receive)
        for matrix in group:
            if (seen := moments.of(matrix)) is None:
                logger.warning("no calibration token reached %s: its sum is masked as it is", matrix.name)
            target.put(matrix, nearest(whole.pop(matrix), kept[matrix], seen), kept[matrix])
    target.keep(run.index)


def nearest(
    weight: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"], moments: Float[Tensor, "I I"] | None
) -> Float[Tensor, "O I"]:
    """Return the weight that is zero where not `kept` and whose outputs are nearest to those of `weight`.

    Without moments (X^T X of the inputs), the weight with zeros put in.
    """
    masked = weight.masked_fill(~kept, 0.0)
    if moments is None or not moments.any() or bool(kept.all()):
        return masked
    return refit(weight, masked, kept, moments, DAMPING)
