"""Write a super-adapter: PEFT's files and the record that names its search space."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import save_file

from shears.checkpoints.tensor_files import TensorFiles
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.models.grid_adapter import LEARNT
from shears.models.ref import ModelRef, resolve
from shears.models.sparse_adapter import is_sparse
from shears.progress import is_first_process
from shears.records import artifacts
from shears.records.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded, is_path
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADDED, A, B, linear_of
from shears.records.version import __version__

if TYPE_CHECKING:
    from shears.adapt.elastic import ElasticAdapter


def write_super_adapter(work: Path, elastic: "ElasticAdapter", base: ModelRef, about: Mapping[str, Any]) -> None:
    """Write a plain PEFT adapter, and last the record that marks a whole super-adapter.

    `about` are the record's keys on the training. InputError if the adapter is not finite plain LoRA
    on the space's linears, all with one scaling.
    """
    space = elastic.space
    config: Any = copy.copy(elastic.model.peft_config[elastic.adapter])
    tensors = {name: tensor for name, tensor in elastic.tensors().items() if LEARNT not in name}
    odd = {name for name in tensors if not name.endswith((A, B))} | {linear_of(name) for name in tensors} ^ {
        *space.linears
    }
    if odd or config.r != space.max_rank or config.rank_pattern or config.alpha_pattern:
        raise InputError(
            f"a super-adapter must be plain LoRA of rank {space.max_rank} on the linears of its space and no others, "
            f"without patterns; got rank {config.r}" + "".join(f", {name}" for name in sorted(odd)[:1])
        )
    if infinite := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f"an adapter must be finite, {infinite[0]} is not; train with a smaller learning rate")
    save_file(tensors, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.base_model_name_or_path = base.recorded_name
    config.inference_mode = True
    data = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.to_dict().items())}
    artifacts.write_json(work / ADAPTER_CONFIG, data)
    sizes = {name: elastic.num_parameters(getattr(space, name)()) for name in ("maximal", "heuristic", "minimal")}
    record = {
        "shears_version": __version__,
        **about,
        "base": base.recorded_name,
        "base_fingerprint": base.fingerprint,
        "fingerprint": artifacts.weights_fingerprint(work),
        "alpha": float(config.lora_alpha),
        "sparse_adapter": is_sparse(elastic.model),
        "max_rank": space.max_rank,
        "num_parameters": sizes,
        "groups": space.as_data(),
    }
    artifacts.sync_tree(work)
    artifacts.write_json(work / artifacts.SEARCH_SPACE, record)


def save_own_loop(elastic: "ElasticAdapter", output: Path, base: str | Path | None, about: Mapping[str, Any]) -> Path:
    """Write the adapter of a user's own loop to the folder `output` (see `ElasticAdapter.save`)."""
    output = expanded(output)
    if not is_first_process():
        return output
    name = base or elastic.model.peft_config[elastic.adapter].base_model_name_or_path
    if not name:
        raise InputError("an adapter's base must be known, and the model has no name; set base to its folder or hub id")
    ref = resolve(str(name))
    ref.refuse_package("train")
    _refuse_other_weights(elastic.model, ref)
    data: str | None = about["data"]
    sha256 = None if data is None else source_fingerprint(data)
    if data is not None and sha256 is None and is_path(data):
        raise InputError(f"data must name the training examples, there is no {data}; check the path, or leave it out")
    record = {"config": about, "template": about["template"], "data_sha256": sha256}
    with working_folder(output, about, resumes=False) as work:
        write_super_adapter(work, elastic, ref, record)
        write_card(work)
    return output


@torch.no_grad()
def _refuse_other_weights(model: PeftModel, ref: ModelRef) -> None:
    """Raise InputError if a frozen weight in memory differs from that in the files of the base.

    Weights that are quantized in memory, or that transformers renames while loading, are not compared.
    """
    files = TensorFiles(ref.folder)
    stored = set(files.names)
    for name, weight in model.get_base_model().named_parameters():
        plain = name.replace(".base_layer.", ".")
        if ADDED in name or plain not in stored or not weight.is_floating_point():
            continue
        if not torch.equal(files.load(plain).to(weight.dtype), weight.cpu()):
            raise InputError(
                f"the base must be the model that the adapter was trained on, {plain} of {ref.name} has other numbers; "
                "name the right model, or save the changed one and train on its folder"
            )
