"""A healing, made ready: the sparse model, its teacher, the sequences."""

import logging

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.checkpoints.packed.index import is_block_matrix
from shears.checkpoints.tensor_files import TensorFiles
from shears.checkpoints.zeros import count_zeros, zeros_share
from shears.config import HealConfig
from shears.config.fields import TemplateName
from shears.data.calibration import text_template, text_tokens
from shears.data.example import IGNORED, Tokenized
from shears.errors import InputError
from shears.healing.linears import HealedWeights, Refresh, add_recovery, train_kept, trainable
from shears.models.blocks import decoder_blocks
from shears.models.devices import DTYPES, computing_dtype, pick_device, resolved_precision
from shears.models.load import load_model, refuse_unknown
from shears.models.properties import num_embeddings
from shears.models.ref import ModelRef, resolve
from shears.models.tokenizers import load_tokenizer
from shears.records.trained_form import trained_template
from shears.training.batches import padding
from shears.training.cached_teacher import open_teacher
from shears.training.distillation import Loss
from shears.training.loop import Training
from shears.training.teacher import TeacherSource, find_teacher, refuse_other_vocabulary
from shears.training.trainer import Collator

logger = logging.getLogger(__name__)
VERB = "heal"
SCHEDULER = "cosine"  # the learning rate falls along half a cosine to 0
OPTIMIZER = "adamw_torch"
MOST_EPOCHS = 4  # up to this, repeated text is worth about as much as new text (arXiv 2305.16264)


def teacher_of(sparse: ModelRef, settings: HealConfig) -> TeacherSource:
    """Return the teacher of the settings, by default the model that `sparse` was pruned from.

    InputError where there is none, where it is the sparse model itself or has another vocabulary.
    """
    teacher = find_teacher(settings.teacher) if settings.teacher is not None else _pruned_from(sparse)
    if teacher.fingerprint == sparse.fingerprint:
        raise InputError(f"the teacher must be another model than the one to heal, both are {teacher.name}")
    refuse_other_vocabulary(teacher, sparse)
    return teacher


def _pruned_from(sparse: ModelRef) -> TeacherSource:
    """Return the model that a sparse one was pruned from; InputError without a record of it."""
    name = sparse.record.get("model")
    if not isinstance(name, str):
        raise InputError(f"heal needs the dense model, and {sparse.name} has no record of it; add --teacher")
    config = sparse.record.get("config")
    dtype = config.get("dtype", "auto") if isinstance(config, dict) else "auto"
    teacher = TeacherSource(resolve(name, str(dtype)))
    teacher.model.refuse_package("teach")
    return teacher


def refuse_dense(sparse: ModelRef) -> None:
    """Raise InputError if no matrix of the blocks has a zero in its files, before anything is computed."""
    files = TensorFiles(sparse.folder)
    matrices = (name for name in files.names if is_block_matrix(name, (files.dtype(name), files.shape(name))))
    if not any(count_zeros(files.load(name)) for name in matrices):
        raise _dense(sparse)


def _dense(sparse: ModelRef) -> InputError:
    return InputError(f"the model to heal must have zeros, the linears of {sparse.name} have none; sparsify it first")


def prepare(sparse: ModelRef, source: TeacherSource, settings: HealConfig) -> Training:
    """Load models and text; return what the loop trains, on padded sequences of one length.

    InputError for anything unusable, before the text is trained on.
    """
    tokenizer = load_tokenizer(sparse)
    template = settings.template or text_template(trained_template(sparse.folder), tokenizer)
    rows = sequences(tokenizer, settings, template)
    pad_id = padding(tokenizer)
    teacher = open_teacher(source, pad_id, rows, settings)
    model = load_model(sparse, computing_dtype(settings.precision, pick_device(settings.device)), settings.device)
    refuse_unknown(max(max(row.input_ids) for row in rows), num_embeddings(model))
    _start(sparse, model, settings)
    weights = HealedWeights(model)
    loss = Loss(teacher, settings.kl, settings.cross_entropy)
    collator = Collator(pad_id, None)
    steps = settings.num_steps
    return Training(VERB, weights, rows, collator, loss, steps, SCHEDULER, OPTIMIZER, callbacks=[Refresh()])


def sequences(tokenizer: PreTrainedTokenizerBase, settings: HealConfig, template: TemplateName) -> list[Tokenized]:
    """Return the text in sequences, every token but the first predicted; InputError if too short.

    Of more text than all steps read, evenly spaced sequences, whatever the seed: no other needs a
    teacher's targets.
    """
    length = settings.sequence_length
    tokens = text_tokens(settings.data, tokenizer, settings.columns, template)
    pieces = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    if len(pieces) < settings.batch_size:
        raise InputError(
            f"heal needs at least a batch of {settings.batch_size} sequences of {length} tokens, {settings.data} has "
            f"{len(tokens)} tokens; give more text, or a smaller batch_size or sequence_length"
        )
    wanted = settings.num_steps * settings.batch_size
    if wanted < len(pieces):
        logger.info("taking %d of the %d sequences of %s, evenly spaced", wanted, len(pieces), settings.data)
        pieces = [pieces[number * len(pieces) // wanted] for number in range(wanted)]
    epochs = settings.num_sequences / len(pieces)
    if epochs > MOST_EPOCHS:
        logger.warning(
            "%s has %d tokens, which are read %.1f times for %d; more than %d times gives little: take more text, or "
            "fewer tokens", settings.data, len(tokens), epochs, settings.tokens, MOST_EPOCHS,
        )  # fmt: skip
    return [Tokenized(ids, [IGNORED, *ids[1:]]) for ids in pieces]


def _start(sparse: ModelRef, model: PreTrainedModel, settings: HealConfig) -> None:
    """Make the kept weights the only trained parameters; InputError for a model without zeros."""
    linears = trainable(model)
    blocks = decoder_blocks(model)[1]
    zeros = zeros_share(model.get_parameter(f"{name}.weight") for name in linears)
    if not zeros:
        raise _dense(sparse)
    size = sum(matrix.shape[0] * matrix.shape[1] for matrix in linears.values())
    total = sum(parameter.numel() for parameter in blocks.parameters() if parameter.ndim > 1)
    if size < total:
        logger.warning(
            "%.0f %% of the blocks' weights are in no plain linear: they stay as they are", 100 - 100 * size / total
        )
    precision = resolved_precision(settings.precision, pick_device(settings.device))
    packed_as = None if settings.quantize_aware == "none" else settings.quantize_aware
    train_kept(model, linears, None if precision == "fp32" else DTYPES[precision], packed_as)
    if settings.recovery:
        add_recovery(model, sparse)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("healing %d linears, %.1f %% zeros: %.4g M trained numbers", len(linears), 100 * zeros, trained / 1e6)
