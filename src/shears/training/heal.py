"""The verb `heal`: train a sparse model to predict what the dense one predicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.checkpoints.tensor_files import num_weights, weights_bytes
from shears.checkpoints.without_code import known_config
from shears.checkpoints.zeros import count_zeros
from shears.config import HealConfig
from shears.config.fields import TemplateName
from shears.config.resolve import build
from shears.data.calibration import check_text, text_template, text_tokens
from shears.data.examples import IGNORED, Tokenized, rows_fingerprint
from shears.data.forms import trained_template
from shears.errors import InputError
from shears.models.blocks import block_matrices
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.load import load_model, num_embeddings, positions_in, refuse_longer, refuse_unknown
from shears.models.ref import ModelRef, load_tokenizer, resolve, save_tokenizer
from shears.progress import is_first_process
from shears.records import artifacts
from shears.records.artifacts import HEALED
from shears.records.folders import refuse_full_disk
from shears.records.paths import expanded
from shears.sparsity.rewrite import LinearSparsity, add_zeros, in_format, overall_sparsity, rewriting
from shears.training import kept_weights as kept
from shears.training.batches import padding
from shears.training.checkpoints import first_process_first, origin_of, training_folder
from shears.training.fit import Training, fit
from shears.training.teacher import TeacherSource, find_teacher, refuse_other_vocabulary, teacher_targets
from shears.writing.written import text_source


def heal(sparse: str | Path, output: str | Path, **config: Any) -> Path:
    """Train `sparse` to predict what its teacher predicts; write and return the folder `output`.

    The keywords are the fields of `HealConfig`. The zeros of the result are those of `sparse`. The
    same call continues an interrupted run from its last whole checkpoint. Under a launcher all
    processes call this, and the first one writes. InputError if an input is unusable, or if the
    loss or the weights stop being finite.
    """
    settings = build(HealConfig, "heal", config)
    output = expanded(output)
    base = resolve(sparse)
    base.refuse_package("heal")
    check_text(settings.data, settings.columns)
    refuse_full_disk(output, weights_bytes(base.folder))
    teacher = teacher_of(base, settings)
    origin = origin_of(base, settings, teacher.fingerprint)
    with training_folder(output, settings, origin) as work:
        if not (work / HEALED).is_file():  # else interrupted before the renaming
            decided = settings.model_copy(update={"learning_rate": settings.rate_for(num_weights(base.folder))})
            tokenizer = load_tokenizer(base)
            rows = sequences(base, teacher, tokenizer, decided)
            targets = teacher_targets(teacher, rows, padding(tokenizer), decided)
            model = _trainable_model(base, rows, decided)
            training = Training(
                "heal",
                model,
                rows,
                padding(tokenizer),
                decided.num_steps,
                targets,
                "cosine",
                callbacks=[kept.Refresh()],
            )
            fit(training, work, decided)
            if is_first_process():
                linears = _write_healed(base, model, work)
                record = {
                    "shears_version": artifacts.__version__,
                    "config": artifacts.as_data(settings),
                    "model": base.record.get("model", base.recorded_name),
                    "sparse": base.recorded_name,
                    **artifacts.inherited(base.record),
                    "teacher": teacher.recorded_name,
                    **origin,
                    "learning_rate": decided.learning_rate,
                    "data_fingerprint": rows_fingerprint(rows),
                    "fingerprint": artifacts.weights_fingerprint(work),
                    "num_steps": artifacts.read_rows(work / artifacts.TRAINING_LOG)[-1]["step"],
                    "achieved": overall_sparsity(linears),
                    "linears": {name: each.as_record() for name, each in linears.items()},
                }
                artifacts.sync_tree(work)
                artifacts.write_json(work / HEALED, record)  # last: it marks the folder as whole
    return output


def teacher_of(sparse: ModelRef, settings: HealConfig) -> TeacherSource:
    """Return the teacher of the settings, by default the model that `sparse` was pruned from."""
    if settings.teacher is not None:
        teacher = find_teacher(settings.teacher)
    else:
        name = sparse.record.get("model")
        if not isinstance(name, str):
            raise InputError(f"heal needs the dense model, and {sparse.name} has no record of it; add --teacher")
        teacher = TeacherSource(resolve(name, str(sparse.record.get("config", {}).get("dtype", "auto"))))
        teacher.model.refuse_package("teach")
    if teacher.fingerprint == sparse.fingerprint:
        raise InputError(f"the teacher must be another model than the one to heal, both are {teacher.name}")
    refuse_other_vocabulary(teacher, sparse)
    return teacher


def sequences(
    sparse: ModelRef, teacher: TeacherSource, tokenizer: PreTrainedTokenizerBase, settings: HealConfig
) -> list[Tokenized]:
    """Return the text in sequences, all tokens but the first predicted; InputError if too short."""
    length = settings.sequence_length
    refuse_longer(length, positions_in(known_config(sparse.folder)))
    tokens = settings.num_sequences * length
    with first_process_first():
        data, columns = text_source(
            settings.data, teacher.model, tokens, settings.seed, settings.columns, device=settings.device
        )
    template: TemplateName = settings.template or text_template(trained_template(sparse.folder), tokenizer)
    ids = text_tokens(data, tokenizer, columns, template)
    pieces = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if len(pieces) < settings.batch_size:
        raise InputError(
            f"heal needs at least a batch of {settings.batch_size} sequences of {length} tokens, {settings.data} has "
            f"{len(ids)} tokens; give more text, or a smaller batch_size or sequence_length"
        )
    wanted = settings.num_steps * settings.batch_size
    if wanted < len(pieces):
        pieces = [pieces[number * len(pieces) // wanted] for number in range(wanted)]
    return [Tokenized(piece, [IGNORED, *piece[1:]]) for piece in pieces]


def _trainable_model(sparse: ModelRef, rows: list[Tokenized], settings: HealConfig) -> PreTrainedModel:
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    model = load_model(sparse, "fp32" if precision == "fp32" else "auto", settings.device)
    refuse_unknown(max(max(row.input_ids) for row in rows), num_embeddings(model))
    packed_as = None if settings.quantize_aware == "none" else settings.quantize_aware
    kept.train_kept(model, kept.trainable(model), None if precision == "fp32" else DTYPES[precision], packed_as)
    return model


@torch.no_grad()
def _write_healed(sparse: ModelRef, model: nn.Module, work: Path) -> Mapping[str, LinearSparsity]:
    for file in work.glob("*.safetensors*"):
        file.unlink()  # of an interruption while writing
    trained = kept.kept_weights(model)
    linears: dict[str, LinearSparsity] = {}
    with rewriting(sparse, work, "cpu", "auto") as source:
        for index, _ in enumerate(source.model.get_submodule(source.prefix).children()):
            with source.opened(index) as block:
                matrices = block_matrices(f"{source.prefix}.{index}", block)
                for matrix in matrices:
                    view = matrix.view(source.model)
                    if matrix.name in trained:
                        weight = trained[matrix.name].healed().to(view.device)
                        dtype = source.dtype_of(matrix.parameter)
                        if not torch.isfinite(weight.to(dtype)).all():
                            rule = f"healed weights must be finite in {dtype}"
                            raise InputError(f"{rule}, those of {matrix.name} are not; lower learning_rate")
                        view.copy_(in_format(weight, view != 0, dtype))
                    add_zeros(linears, matrix, count_zeros(view))
                source.keep([matrix.parameter for matrix in matrices if matrix.name in trained])
    save_tokenizer(sparse, work)
    return linears
