"""All that training needs, loaded: the frozen model with its adapter, the examples."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
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
from shears.adapt.sparse_adapter import make_sparse
from shears.config import TrainConfig
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.errors import InputError, first_line
from shears.models.blocks import sharing_a_weight
from shears.models.load import DTYPES, load_model, load_tokenizer, model_folder, pick_device, resolved_precision
from shears.models.losses import within_context
from shears.models.quantization import keep_as_quantized, quantization_config
from shears.models.vocabulary import num_embeddings, refuse_unknown

logger = logging.getLogger(__name__)


class Ready(NamedTuple):
    """A model to train, its tokenizer, the switch of its ranks, the examples.

    `start` holds the adapter's first tensors where they were taken out of the model itself (init pissa), else nothing.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    elastic: ElasticAdapter
    rows: Sequence[Tokenized]
    start: dict[str, Tensor]


def prepare(model: str | Path, settings: TrainConfig) -> Ready:
    """Load what `settings` ask for. InputError for what cannot be used."""
    tokenizer = load_tokenizer(model)
    examples = load_examples(settings.data, settings.template, tokenizer)
    device = "cpu" if settings.shard else settings.device  # no GPU need hold the whole model
    base = load_model(model, device=device, quantization=_quantization(settings))
    rows = tokenize_all(examples, tokenizer, within_context(base, settings.max_length), settings.train_on)
    refuse_unknown(max(max(row.input_ids) for row in rows), num_embeddings(base))
    keep_as_quantized(base)
    space = build_space(base, settings.groups, settings.ranks)
    if settings.sparse_adapter and (pair := sharing_a_weight(base, chain(*space.modules.values()))) is not None:
        logger.warning("%s shares its weight with %s: export format peft will do, a merge will not", *pair)
    peft_model = add_lora(base, space, settings)
    start: dict[str, Tensor] = {}
    if settings.init == "recovery":
        start_from_recovery(peft_model, model_folder(model))
    elif settings.init == "pissa":
        start = start_from_principal(peft_model)
    elastic = make_elastic(peft_model, space)
    if settings.sparse_adapter:
        if settings.init == "recovery":
            logger.warning("the mask of sparse_adapter removes what the recovery gives back: init lora is as good")
        make_sparse(peft_model)
    logger.info("%d groups of ranks %s: %s sub-adapters", len(space.ranks), settings.ranks, f"{space.size:.3g}")
    return Ready(peft_model, tokenizer, elastic, rows, start)


def _quantization(settings: TrainConfig) -> BitsAndBytesConfig | None:
    if settings.quantize == "none":
        return None
    precision = resolved_precision(settings.precision, pick_device(settings.device))
    return quantization_config(settings.quantize, DTYPES[precision])


def add_lora(model: PreTrainedModel, space: SearchSpace, settings: TrainConfig) -> PeftModel:
    """Return the model with a fresh LoRA adapter of the largest rank on the space's linears, the base frozen.

    InputError where PEFT puts none: on what the kernels of Mamba read past its module, and on linears called as the
    experts of a mixture once were (up_proj of DeepSeek's first layers), for which it takes their stacks.
    """
    targets = target_modules(model, space)
    conv = any(_is_conv1d(model.get_submodule(name)) for names in space.modules.values() for name in names)
    lora = LoraConfig(
        r=space.max_rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=conv,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            said = first_line(error)
            if "without also targeting" in said:  # with those it puts none on either
                raise InputError(
                    f"groups must be of linears that PEFT puts LoRA on; in this architecture it takes their names for "
                    f"the experts, leave them out of groups (it says: {said})"
                ) from None
            raise InputError(f"groups must be of linears that PEFT takes, it says: {said}") from None
    without = [name for name in chain(*space.modules.values()) if not isinstance(model.get_submodule(name), LoraLayer)]
    if without:
        raise InputError(
            f"groups must be of linears that PEFT puts LoRA on, it puts none on {without[0]} (in this architecture "
            "such a name means the experts); leave it out of groups"
        )
    return adapted


def _is_conv1d(linear: nn.Module) -> bool:
    """Tell whether a linear is a Conv1D, or was one before it was quantized."""
    return issubclass(getattr(linear, "source_cls", type(linear)), Conv1D)
