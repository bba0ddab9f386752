"""Save an adapter of the user's own loop, such as TRL's Trainer, as a super-adapter.

The folder has the form of those that `train` writes, so that search, export, evaluate and inspect
take it.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shears.adapt.space import SearchSpace
from shears.checkpoints.tensor_files import TensorFiles
from shears.config import TrainConfig
from shears.config.fields import StageConfig, TemplateName
from shears.data.example import messages_of
from shears.data.forms import form_of_rows
from shears.data.rows import read_rows, source_fingerprint
from shears.errors import InputError
from shears.models.grid_adapter import is_quantize_aware
from shears.models.ref import ModelRef, resolve
from shears.models.sparse_adapter import is_sparse
from shears.progress import is_first_process
from shears.records import artifacts
from shears.records.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded, is_path
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADDED, A, B, linear_of
from shears.records.version import __version__

logger = logging.getLogger(__name__)
OWN_LOOP = "own loop"  # value of the record's key `trained_by`, which the records of `train` lack
BASE_LAYER = ".base_layer."  # PEFT's part of the names of adapted linears
UNSCALED = ("rank_pattern", "alpha_pattern", "layer_replication")  # PEFT's settings that an export would overwrite


_TRAIN = TrainConfig.model_fields


class OwnLoopConfig(StageConfig):
    """What a model does not say of its training: the examples and how they became tokens."""

    data: str | None = None
    """Training examples, as `train --data` names them: they are recorded with their hash and, if
    they are rows of a file here in a known form, with that form, in which generate, chat and serve
    ask the model then. Questions of a validation or test file that stand in them are marked.
    Default: unknown; nothing is marked and no form recorded, because the model in memory does not
    say how its rows asked."""
    template: TemplateName = _TRAIN["template"].default
    """Prompt template of instruction/input/output rows in the training; other rows need none."""
    max_length: int = Field(_TRAIN["max_length"].default, gt=1)
    """Largest number of tokens in an example; search skips longer examples and counts them."""


def save_own_loop(
    output: Path, model: PeftModel, adapter: str, space: SearchSpace, base: str | None, settings: OwnLoopConfig
) -> Path:
    """Write the adapter of a model and its search space to the folder `output`; return that folder.

    Only the first process of a launcher writes. InputError if the output exists, if the adapter is
    not plain LoRA on the space's linears, or if the weights of `base` (default: the name in PEFT's
    configuration) are not the model's.
    """
    output = expanded(output)
    if not is_first_process():
        return output
    if is_quantize_aware(model):
        raise InputError("a loop of your own saves no grids of int4; train with shears train --quantize-aware int4")
    config: Any = model.peft_config[adapter]
    ref = _base(base or config.base_model_name_or_path)
    tensors = _plain_tensors(model, adapter, space)
    _check_base(model, ref)
    about = {
        "base_fingerprint": ref.fingerprint,
        "data_sha256": _data_sha256(settings.data),
    }
    with working_folder(output, {**about, **artifacts.as_data(settings)}, resume=None, kind=OwnLoopConfig) as work:
        save_file(tensors, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        _write_config(work, config, ref)
        alpha = float(config.lora_alpha)
        record = _record(space, tensors, settings) | {"base": ref.recorded_name, **about, "alpha": alpha}
        record |= _form(settings, about["data_sha256"])
        record |= {"sparse_adapter": is_sparse(model), "fingerprint": artifacts.weights_fingerprint(work)}
        artifacts.sync_tree(work)
        artifacts.write_json(work / artifacts.SEARCH_SPACE, record)
        write_card(work)
    return output


def _data_sha256(data: str | None) -> str | None:
    sha256 = None if data is None else source_fingerprint(data)
    if data is not None and sha256 is None and is_path(data):
        raise InputError(f"data must name the training examples, there is no {data}; check the path, or leave it out")
    return sha256


def _form(settings: OwnLoopConfig, data_sha256: str | None) -> dict[str, Any]:
    """Return the keys that name the rows' form; none for a source of the hub, or rows of other columns."""
    if settings.data is None or data_sha256 is None:
        return {}
    try:
        rows = read_rows(settings.data)
        is_known = all(messages_of(row) or isinstance(row.get("prompt", row.get("instruction")), str) for row in rows)
        return form_of_rows(rows, settings.template).as_record() if is_known else {}
    except InputError as error:
        logger.warning("the form of the rows is not recorded: %s", error)
        return {}


def _base(name: str | None) -> ModelRef:
    if not name:
        raise InputError("an adapter's base must be known, and the model has no name; set base to its folder or hub id")
    ref = resolve(name)
    ref.refuse_package("train")
    return ref


def _plain_tensors(model: PeftModel, adapter: str, space: SearchSpace) -> dict[str, Tensor]:
    """Return the tensors by the names in PEFT's files; InputError if no sub-adapter can be cut."""
    config = model.peft_config[adapter]
    _refuse_scalings(config, space)
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    if other := sorted(name for name in state if not name.endswith((A, B))):
        raise InputError(
            f"a super-adapter must be plain LoRA, A and B of every linear, got {other[0]} too; train without"
        )
    known = {name for names in space.modules.values() for name in names}
    if odd := sorted({linear_of(name) for name in state} ^ known):
        raise InputError(f"the adapter must be on the linears of its space and no others, {odd[0]} is on one side only")
    for name, tensor in state.items():
        if isinstance(tensor, DTensor) or tensor.is_meta:
            raise InputError(f"an adapter must be whole to be saved, {name} is sharded or offloaded; gather it first")
        if not tensor.isfinite().all():
            raise InputError(f"an adapter must be finite, {name} is not; train with a smaller learning rate")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _refuse_scalings(config: Any, space: SearchSpace) -> None:
    """Raise InputError where a linear is scaled by another number than alpha / max_rank."""
    for name in UNSCALED:
        if value := getattr(config, name, None):
            raise InputError(f"a super-adapter must scale all linears alike, got {name}={value!r}; leave it out")
    if config.r != space.max_rank:
        raise InputError(f"the adapter must have the largest rank of its space ({space.max_rank}), got {config.r}")


@torch.no_grad()
def _check_base(model: PeftModel, ref: ModelRef) -> None:
    """Raise InputError if a frozen weight in memory differs from that in the base's files.

    The files' numbers are compared in the number format that they have in memory. Tensors that are
    quantized, sharded or offloaded there, or that transformers renames while loading, are not
    compared.
    """
    files = TensorFiles(ref.folder)
    stored = set(files.names)
    for name, weight in _own_weights(model.get_base_model()):
        if name not in stored or isinstance(weight, DTensor) or weight.is_meta or not weight.is_floating_point():
            continue
        if files.shape(name) != weight.shape or not torch.equal(files.load(name).to(weight.dtype), weight.cpu()):
            raise InputError(
                f"the base must be the model that the adapter was trained on, {name} of {ref.name} has other numbers; "
                "name the right model, or save the changed one and train on its folder"
            )


def _own_weights(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's own weights by their names without PEFT."""
    for name, parameter in base.named_parameters():
        if ADDED not in name:
            yield name.replace(BASE_LAYER, "."), parameter.detach()


def _write_config(work: Path, config: LoraConfig, ref: ModelRef) -> None:
    """Write PEFT's configuration, ready for inference, target modules in a fixed order."""
    written = copy.copy(config)
    written.base_model_name_or_path = ref.recorded_name
    written.inference_mode = True
    written.save_pretrained(str(work))
    content = artifacts.read_object(work / ADAPTER_CONFIG)
    if isinstance(targets := content.get("target_modules"), list):
        content["target_modules"] = sorted(targets)  # PEFT writes the order of a set, which differs between processes
    artifacts.write_json(work / ADAPTER_CONFIG, content)


def _record(space: SearchSpace, tensors: Mapping[str, Tensor], settings: OwnLoopConfig) -> dict[str, Any]:
    """Return the keys of search_space.json that need no file."""
    per_rank = dict.fromkeys((name for names in space.modules.values() for name in names), 0)
    for name, tensor in tensors.items():
        per_rank[linear_of(name)] += tensor.numel() // space.max_rank
    sizes = {group: sum(per_rank[name] for name in names) for group, names in space.modules.items()}
    configs = {name: getattr(space, name)() for name in ("maximal", "heuristic", "minimal")}
    return {
        "shears_version": __version__,
        "trained_by": OWN_LOOP,
        "config": artifacts.as_data(settings),
        "template": settings.template,
        "max_rank": space.max_rank,
        "num_parameters": {
            name: sum(config[group] * size for group, size in sizes.items()) for name, config in configs.items()
        },
        "groups": space.as_data(),
    }
