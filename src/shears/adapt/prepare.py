"""What a training needs, loaded: the frozen model with its adapter, tokenizer, examples."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from shears.adapt.elastic import ElasticAdapter, factors_of, lora_layers, make_elastic
from shears.adapt.groups import with_auto
from shears.adapt.initial import start_from_principal, start_from_recovery
from shears.adapt.space import SearchSpace
from shears.checkpoints.configuration import known_config
from shears.checkpoints.tensor_files import num_weights
from shears.config import TrainConfig
from shears.data.example import Row
from shears.data.examples import Example, Tokenized, check_completions, examples_of, tokenize_all
from shears.data.forms import form_of_rows
from shears.data.rows import read_rows
from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks, linears, matching, sharing_a_weight, weight_oi
from shears.models.devices import DTYPES, computing_dtype, pick_device, resolved_precision
from shears.models.grid_adapter import grids_of, make_quantize_aware
from shears.models.load import keep_as_quantized, load_model, quantization_config, refuse_unknown
from shears.models.properties import num_embeddings, positions_in
from shears.models.ref import ModelRef
from shears.models.sparse_adapter import make_sparse
from shears.models.tokenizers import load_tokenizer
from shears.quantization.grid import Grid
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER
from shears.records.peft_files import ADAPTER_WEIGHTS
from shears.records.trained_form import TrainedForm
from shears.training.batches import padding

logger = logging.getLogger(__name__)


def build_space(model: nn.Module, groups: Sequence[str], ranks: Sequence[int]) -> SearchSpace:
    """Return the search space: in each block, the linears joined by + share one rank.

    Each part is a name's ending or a regex (see `models.blocks.matching`); the group `auto` stands
    for those of `auto_groups`. InputError if a part matches nothing, if two groups claim one
    linear, if a linear does not return one tensor of its outputs (routers that return their choice,
    grouped products), or if a rank exceeds min(inputs, outputs) of every linear in its group.
    """
    groups = with_auto(groups, model)
    prefix, blocks = decoder_blocks(model)
    by_block = {index: linears(block) for index, block in enumerate(blocks)}
    everywhere = [f"{index}.{name}" for index, names in by_block.items() for name in names]
    modules: dict[str, tuple[str, ...]] = {}
    for spec in groups:
        try:
            matched = matching(everywhere, [part.strip() for part in spec.split("+")])
        except InputError as error:
            raise InputError(f"groups must name linears of this model: {error}") from None
        for index in by_block:
            names = [name for name in matched if name.startswith(f"{index}.")]
            if names:
                modules[f"layers.{index}.{spec}"] = tuple(f"{prefix}.{name}" for name in names)
    _check(model, modules, max(ranks, default=0))
    return SearchSpace(ranks=dict.fromkeys(modules, tuple(ranks)), modules=modules)


def _check(model: nn.Module, modules: Mapping[str, Sequence[str]], largest: int) -> None:
    owner: dict[str, str] = {}
    for group, names in modules.items():
        for name in names:
            if name in owner:
                raise InputError(
                    f"a linear must belong to one group, {name} is in {owner[name]} and {group}; leave it out of one"
                )
            owner[name] = group
            linear = model.get_submodule(name)
            if not _is_linear(linear):
                raise InputError(
                    f"groups must be of linears, {name} of {group} is a {type(linear).__name__}, which returns "
                    "something else; leave it out of groups"
                )
        usable = max(min(_sides(model.get_submodule(name))) for name in names)
        if largest > usable:
            raise InputError(
                f"ranks of {group} must be at most {usable}, the most that one of its linears can use, got {largest}; "
                "lower the largest rank"
            )


def _is_linear(module: nn.Module) -> bool:
    """Tell whether a module returns one tensor with all of its outputs, to which LoRA can add.

    Of nn.Linear's subclasses, only those of transformers are tried: some return something else.
    """
    if not isinstance(module, nn.Linear) or not type(module).__module__.startswith("transformers."):
        return True
    try:
        with torch.no_grad():
            output = module(module.weight.new_zeros(1, module.in_features))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, module.out_features)


def _sides(linear: nn.Module) -> Sequence[int]:
    """Return the outputs and inputs of a linear, whose weight may be quantized and packed."""
    return (linear.out_features, linear.in_features) if isinstance(linear, nn.Linear) else weight_oi(linear).shape


def target_modules(model: nn.Module, space: SearchSpace) -> list[str]:
    """Return PEFT's target_modules: name endings if they match exactly the space, else full names."""
    chosen = {name for names in space.modules.values() for name in names}
    endings = sorted({name.rsplit(".", 1)[-1] for name in chosen})
    meant = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if meant == chosen else sorted(chosen)


class PreparedAdapter(NamedTuple):
    """A model to train, its padding token, the handle on its ranks, the examples.

    `start` holds the adapter's first tensors if they were moved out of the model's weights (init
    pissa), else nothing. `validation` are examples that are not trained on; none without a
    validation. `grids` are those of quantize_aware at the start, else nothing.
    """

    model: PeftModel
    pad_id: int
    elastic: ElasticAdapter
    rows: Sequence[Tokenized]
    start: dict[str, Tensor]
    validation: Sequence[Tokenized] = ()
    grids: Mapping[str, Grid] = MappingProxyType({})


class AdapterWeights:
    """An adapter as the trained weights of a training (`trainer.TrainedWeights`)."""

    file = ADAPTER_WEIGHTS

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    @property
    def narrow(self) -> int:
        """The largest rank."""
        return max(len(factors_of(layer, "default")[0]) for _, layer in lora_layers(self.model, "default"))

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by PEFT's names."""
        return dict(get_peft_model_state_dict(self.model))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Give the adapter tensors that `tensors` returned."""
        set_peft_model_state_dict(self.model, tensors)


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
    sources = [settings.data, *([] if settings.validation_source is None else [settings.validation_source])]
    read = [read_rows(source, settings.columns) for source in sources]
    examples = [_examples(each, source, settings, tokenizer) for each, source in zip(read, sources, strict=True)]
    longest = min(settings.max_length, positions_in(known_config(model.folder)) or settings.max_length)
    rows, *held_out = (tokenize_all(each, tokenizer, longest) for each in examples)
    if settings.validation_share is not None:
        rows, *held_out = split_off(rows, settings.validation_share, settings.seed)
    form = form_of_rows(read[0], settings.template)
    return Rows(rows, list(chain(*held_out)), padding(tokenizer), form)


def prepare(model: ModelRef, settings: TrainConfig, rows: Rows) -> PreparedAdapter:
    """Load the model and put an adapter on it; `settings` are those of `settings_for`.

    InputError for a model or settings that cannot be used.
    """
    device = "cpu" if settings.shard else settings.device  # sharding: no GPU may have room for the whole model
    if settings.quantize == "none":
        base = load_model(model, computing_dtype(settings.precision, pick_device(settings.device)), device)
    else:
        precision = resolved_precision(settings.precision, pick_device(settings.device))
        base = load_model(model, device=device, quantization=quantization_config(settings.quantize, DTYPES[precision]))
    refuse_unknown(max(max(row.input_ids) for row in chain(rows.train, rows.validation)), num_embeddings(base))
    keep_as_quantized(base)
    space = build_space(base, settings.groups, settings.ranks)
    if settings.masks and (pair := sharing_a_weight(base, chain(*space.modules.values()))) is not None:
        logger.warning("%s shares its weight with %s: export as format peft works, a merge does not", *pair)
    grids = {} if settings.quantize_aware == "none" else grids_of(base, model.folder)
    peft_model = add_lora(base, space, settings)
    start = _start(peft_model, model, settings)
    elastic = make_elastic(peft_model, space, nested=settings.sampling == "nested")
    if settings.init != "lora":
        elastic.unfold()  # the product of the start stays
    _mask(peft_model, grids, settings)
    logger.info("%d groups of ranks %s: %s sub-adapters", len(space.ranks), settings.ranks, f"{space.size:.3g}")
    return PreparedAdapter(peft_model, rows.pad_id, elastic, rows.train, start, rows.validation, grids)


def _mask(peft_model: PeftModel, grids: Mapping[str, Grid], settings: TrainConfig) -> None:
    """Mask the product by the zeros of the base, or put the weights on grids, if asked."""
    if settings.masks and settings.init == "recovery":
        logger.warning("sparse_adapter masks out what init recovery restores: init lora is as good")
    if grids:
        make_quantize_aware(peft_model, grids, learn_scales=True)
        logger.info("%d linears are trained as int4 holds them", len(grids))
    elif settings.sparse_adapter:
        make_sparse(peft_model)


def _start(peft_model: PeftModel, model: ModelRef, settings: TrainConfig) -> dict[str, Tensor]:
    """Give the adapter its initial values; return those moved out of the model's weights."""
    if settings.init == "recovery":
        start_from_recovery(peft_model, model)
    return start_from_principal(peft_model) if settings.init == "pissa" else {}


def _examples(
    rows: Sequence[Row], source: str, settings: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Example]:
    """Return the rows of a source as examples; InputError for rows that cannot be trained on."""
    examples = examples_of(rows, source, settings.template, tokenizer)
    check_completions(examples, source)
    return examples


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


def add_lora(model: PreTrainedModel, space: SearchSpace, settings: TrainConfig) -> PeftModel:
    """Return the frozen model with a new LoRA of the largest rank on the linears.

    InputError if PEFT adds none to one of them: it skips those whose weights Mamba's kernels read
    directly, and those with the names of a mixture's experts (up_proj of DeepSeek's first layers),
    which it reads as the experts' stacked weights.
    """
    config = _lora_config(model, space, settings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise InputError(_peft_refusal(first_line(error))) from None
    without = [name for name in chain(*space.modules.values()) if not isinstance(model.get_submodule(name), LoraLayer)]
    if without:
        raise InputError(
            f"groups must be of linears that PEFT puts LoRA on, it puts none on {without[0]} (in this architecture "
            "such a name means the experts); leave it out of groups"
        )
    return adapted


def _lora_config(model: PreTrainedModel, space: SearchSpace, settings: TrainConfig) -> LoraConfig:
    assert settings.alpha is not None, "settings_for decides it"
    chosen = [model.get_submodule(name) for name in chain(*space.modules.values())]
    kinds = [getattr(linear, "source_cls", type(linear)) for linear in chosen]  # before a quantization
    return LoraConfig(
        r=space.max_rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(model, space),
        fan_in_fan_out=any(issubclass(kind, Conv1D) for kind in kinds),
        task_type="CAUSAL_LM",
    )


def _peft_refusal(message: str) -> str:
    if "without also targeting" in message:  # the linears that PEFT names would get no LoRA either
        return (
            "groups must be of linears that PEFT puts LoRA on; in this architecture it reads their names as the "
            f"experts', leave them out of groups (PEFT's error: {message})"
        )
    return f"groups must be of linears that PEFT supports, got its error: {message}; leave them out of groups"
