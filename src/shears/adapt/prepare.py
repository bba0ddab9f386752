"""What a training needs: its settings, its examples, and the frozen model with its adapter."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from shears.adapt.elastic import ElasticAdapter, lora_layers
from shears.adapt.groups import add_lora, build_space
from shears.checkpoints.configuration import known_config
from shears.checkpoints.tensor_files import num_weights
from shears.config import TrainConfig
from shears.data.examples import Tokenized, examples_of, tokenize_all
from shears.data.forms import form_of_rows
from shears.data.rows import read_rows
from shears.errors import InputError
from shears.models.devices import computing_dtype, pick_device
from shears.models.grid_adapter import grids_of, make_quantize_aware
from shears.models.load import load_model, refuse_unknown
from shears.models.properties import num_embeddings, positions_in
from shears.models.recovery import start_from_recovery
from shears.models.ref import ModelRef
from shears.models.sparse_adapter import make_sparse
from shears.models.tokenizers import load_tokenizer
from shears.quantization.grid import Grid
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER
from shears.records.trained_form import TrainedForm
from shears.training.batches import padding

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """The tokenized examples to train on, those to validate on, if any, the padding token, and the rows' form."""

    train: list[Tokenized]
    validation: list[Tokenized]
    pad_id: int
    form: TrainedForm


def settings_for(base: ModelRef, settings: TrainConfig) -> TrainConfig:
    """Return the settings with what the base decides: learning rate, alpha and start, where none is set."""
    linears = base.record.get("linears", {}).values()
    size = sum(math.prod(linear["shape"]) for linear in linears)
    sparsity = sum(linear["zeros"] for linear in linears) / max(size, 1)
    has_recovery = (base.folder / RECOVERY_FOLDER / RECOVERY).is_file()
    return settings.for_base(num_weights(base.folder), sparsity, has_recovery)


def read_training_rows(model: ModelRef, settings: TrainConfig) -> Rows:
    """Return the tokenized examples of `settings`; loads no model. InputError for unusable ones."""
    tokenizer = load_tokenizer(model)
    longest = min(settings.max_length, positions_in(known_config(model.folder)) or settings.max_length)
    sources = [settings.data, *filter(None, [settings.validation_source])]
    read = [read_rows(source, settings.columns) for source in sources]
    parts: list[list[Tokenized]] = []
    for source, rows in zip(sources, read, strict=True):
        examples = examples_of(rows, source, settings.template, tokenizer)
        parts.append(tokenize_all(examples, tokenizer, longest))
    trained, *held_out = parts
    if settings.validation_share is not None:
        trained, *held_out = split_off(trained, settings.validation_share, settings.seed)
    return Rows(trained, list(chain(*held_out)), padding(tokenizer), form_of_rows(read[0], settings.template))


def split_off(rows: Sequence[Tokenized], share: float, seed: int) -> tuple[list[Tokenized], list[Tokenized]]:
    """Return the rows to train on and those of the share, in order; InputError for a single row.

    The share is rounded, and both parts have at least one row. The draw is a function of the seed
    and the number of rows.
    """
    if len(rows) < 2:
        raise InputError(f"validation by a share needs at least two examples, got {len(rows)}; give a file")
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    drawn = set(random.Random(f"validation/{seed}").sample(range(len(rows)), count))
    trained = [row for index, row in enumerate(rows) if index not in drawn]
    return trained, [rows[index] for index in sorted(drawn)]


def prepare(model: ModelRef, settings: TrainConfig, rows: Rows) -> tuple[ElasticAdapter, Mapping[str, Grid]]:
    """Load the model and put an adapter on it; `settings` are those of `settings_for`.

    Return the handle on its ranks, and the grids of quantize_aware at the start, else none.
    """
    base = load_model(model, computing_dtype(settings.precision, pick_device(settings.device)), settings.device)
    refuse_unknown(max(max(row.input_ids) for row in chain(rows.train, rows.validation)), num_embeddings(base))
    space = build_space(base, settings.groups, settings.ranks)
    grids = {} if settings.quantize_aware == "none" else grids_of(base, model.folder)
    peft_model = add_lora(base, space, settings)
    if settings.init == "recovery":
        start_from_recovery(lora_layers(peft_model, "default"), model)
    elastic = ElasticAdapter(peft_model, space, nested=settings.sampling == "nested")
    if grids:
        make_quantize_aware(peft_model, grids, learn_scales=True)
    elif settings.masks:
        make_sparse(peft_model)
    logger.info("%d groups of ranks %s: %.3g sub-adapters", len(space.ranks), settings.ranks, space.size)
    return elastic, grids
