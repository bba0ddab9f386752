"""What a training needs, loaded: the frozen model with its adapter, the tokenizer, the tokenized examples."""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.groups import build_space, target_modules
from shears.adapt.initial import start_from_principal, start_from_recovery
from shears.adapt.space import SearchSpace
from shears.config import TrainConfig
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.errors import InputError, first_line
from shears.models.blocks import sharing_a_weight
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.load import keep_as_quantized, load_model, load_tokenizer, quantization_config, refuse_unknown
from shears.models.losses import within_context
from shears.models.ref import ModelRef
from shears.models.sparse_adapter import make_sparse

logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A model to train, its tokenizer, the handle on its ranks, the examples.

    `start` holds the adapter's first tensors if they were moved out of the model's weights (init pissa), else nothing.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    elastic: ElasticAdapter
    rows: Sequence[Tokenized]
    start: dict[str, Tensor]


def prepare(model: ModelRef, settings: TrainConfig) -> Prepared:
    """Load the model, adapter and examples of `settings`. InputError for anything unusable."""
    tokenizer = load_tokenizer(model)
    examples = load_examples(settings.data, settings.template, tokenizer)
    device = "cpu" if settings.shard else settings.device  # sharding: no GPU may have room for the whole model
    base = load_model(model, device=device, quantization=_quantization(settings))
    rows = tokenize_all(examples, tokenizer, within_context(base, settings.max_length), settings.train_on)
    refuse_unknown(max(max(row.input_ids) for row in rows), base.get_input_embeddings())
    keep_as_quantized(base)
    space = build_space(base, settings.groups, settings.ranks)
    if settings.sparse_adapter and (pair := sharing_a_weight(base, chain(*space.modules.values()))) is not None:
        logger.warning("%s shares its weight with %s: export as format peft works, a merge does not", *pair)
    peft_model = add_lora(base, space, settings)
    start: dict[str, Tensor] = {}
    if settings.init == "recovery":
        start_from_recovery(peft_model, model)
    elif settings.init == "pissa":
        start = start_from_principal(peft_model)
    elastic = make_elastic(peft_model, space)
    if settings.sparse_adapter:
        if settings.init == "recovery":
            logger.warning("sparse_adapter masks out what init recovery restores: init lora is as good")
        make_sparse(peft_model)
    logger.info("%d groups of ranks %s: %s sub-adapters", len(space.ranks), settings.ranks, f"{space.size:.3g}")
    return Prepared(peft_model, tokenizer, elastic, rows, start)


def _quantization(settings: TrainConfig) -> BitsAndBytesConfig | None:
    if settings.quantize == "none":
        return None
    precision = resolved_precision(settings.precision, pick_device(settings.device))
    return quantization_config(settings.quantize, DTYPES[precision])


def add_lora(model: PreTrainedModel, space: SearchSpace, settings: TrainConfig) -> PeftModel:
    """Return the model with a new LoRA adapter of the largest rank on the space's linears, the base frozen.

    InputError if PEFT adds none to one of them: it skips linears whose weights Mamba's kernels read directly, and
    linears with the names of a mixture's experts (up_proj of DeepSeek's first layers), which it reads as the experts'
    stacked weights.
    """
    lora = LoraConfig(
        r=space.max_rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(model, space),
        fan_in_fan_out=any(_is_conv1d(model.get_submodule(name)) for name in chain(*space.modules.values())),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise InputError(_peft_refusal(first_line(error))) from None
    without = [name for name in chain(*space.modules.values()) if not isinstance(model.get_submodule(name), LoraLayer)]
    if without:
        raise InputError(
            f"groups must be of linears that PEFT puts LoRA on, it puts none on {without[0]} (in this architecture "
            "such a name means the experts); leave it out of groups"
        )
    return adapted


def _peft_refusal(message: str) -> str:
    if "without also targeting" in message:  # the linears that PEFT names would get no LoRA either
        return (
            "groups must be of linears that PEFT puts LoRA on; in this architecture it reads their names as the "
            f"experts', leave them out of groups (PEFT's error: {message})"
        )
    return f"groups must be of linears that PEFT supports, got its error: {message}; leave them out of groups"


def _is_conv1d(linear: nn.Module) -> bool:
    """Tell whether a linear is a Conv1D, or was one before it was quantized."""
    return issubclass(getattr(linear, "source_cls", type(linear)), Conv1D)
