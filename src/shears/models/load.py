"""Load a causal language model, its tokenizer and an adapter through transformers and PEFT."""

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.checkpoints import without_code
from shears.checkpoints.package_file import QUANTIZATION, WEIGHTS
from shears.checkpoints.tensor_files import refuse_missing, refuse_non_finite
from shears.checkpoints.without_code import known_config, loading
from shears.errors import InputError
from shears.models.devices import DTYPES, device_of, pick_device, widen_norms
from shears.models.grid_adapter import make_quantize_aware
from shears.models.properties import num_embeddings
from shears.models.ref import AnyModel, ModelRef, load_tokenizer, resolve, resolve_with
from shears.models.sparse_adapter import make_sparse
from shears.quantization.training import read_grids
from shears.records.artifacts import check_input, find_record, read_object, read_record, write_json
from shears.records.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS, own_file

logger = logging.getLogger(__name__)

BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")  # in the name of a tensor
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
)  # fmt: skip
"""Keys of transformers' generation settings that change which token is the likeliest, or choose another."""


def load_model(model: AnyModel, dtype: str = "auto", device: str = "auto", *, to_save: bool = False) -> PreTrainedModel:
    """Return the causal language model in evaluation mode; `auto` keeps the dtype it was saved in."""
    ref = resolve(model, dtype)
    with loading(ref.name):
        network, info = _from_pretrained(ref, {"dtype": DTYPES.get(dtype, "auto"), "output_loading_info": True})
    # transformers only warns of weights that the files lack, and fills them with random numbers
    refuse_missing(ref.name, {str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]})
    refuse_non_finite(ref.name, network.named_parameters())
    loaded: PreTrainedModel = network.eval().to(pick_device(device))
    if not to_save:
        widen_norms(loaded)
    logger.info("loaded %s: %.4g M parameters, %s", ref.name, loaded.num_parameters() / 1e6, loaded.dtype)
    return loaded


def _from_pretrained(ref: ModelRef, options: dict[str, Any]) -> Any:
    if not ref.is_package:
        return without_code.load_causal_model(ref.folder, **options)
    config = known_config(ref.folder)
    for key in (QUANTIZATION, WEIGHTS):  # of a package; the model in memory has neither
        vars(config).pop(key, None)
    with torch.device("meta"):
        kind: Any = type(without_code.build_causal_model(config))
    tensors = dict(ref.package.model_tensors())
    model, info = kind.from_pretrained(None, config=config, state_dict=tensors, trust_remote_code=False, **options)
    known = {BLOCK_NUMBER.sub("#", name) for name in model.state_dict()}
    if beyond := sorted(name for name in info["unexpected_keys"] if BLOCK_NUMBER.sub("#", name) in known):
        raise ValueError(f"its config.json must name all its blocks, {beyond[0]} is beyond them")
    model.name_or_path = str(ref.folder)
    if (ref.folder / "generation_config.json").is_file():
        model.generation_config = without_code.load_generation_config(ref.folder)
    return model, info


def copy_configs(folder: Path, work: Path, config: Mapping[str, Any] | None = None) -> None:
    """Copy a model folder's configuration (or write `config`) and the one for generation, if any."""
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        content = config if name == "config.json" and config is not None else read_object(own_file(path))
        if content is config or without_code.AUTO_MAP in content:
            write_json(work / name, {key: value for key, value in content.items() if key != without_code.AUTO_MAP})
        else:
            shutil.copyfile(path, work / name)


def answer_greedily(folder: Path) -> None:
    """Let other tools generate from a model folder as its answers are measured: greedily, without penalties."""
    path = folder / "generation_config.json"
    if path.is_file():
        content = {key: value for key, value in read_object(path).items() if key not in SAMPLING}
        write_json(path, {**content, "do_sample": False})


def load_both(
    model: AnyModel, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer; a forward raises InputError for unknown token ids."""
    ref = resolve(model, dtype)
    network = load_model(ref, dtype, device)
    tokenizer = load_tokenizer(ref)
    known = num_embeddings(network)

    def check(_: nn.Module, inputs: tuple[Int[Tensor, "..."], ...]) -> None:
        if inputs:
            refuse_unknown(int(inputs[0].max()), known)

    if max(tokenizer.get_vocab().values(), default=0) >= known:
        network.get_input_embeddings().register_forward_pre_hook(check)
    return network, tokenizer


def refuse_unknown(largest: int, embeddings: int) -> None:
    if largest >= embeddings:
        raise InputError(
            f"token ids must be below {embeddings}, the model's embeddings, got {largest}; resize the model's "
            "embeddings, or take the tokenizer that it was trained with"
        )


def load_with_adapter(
    model: AnyModel, adapter: str | Path | None = None, dtype: str = "auto", device: str = "auto"
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return a model, ready to evaluate, and its tokenizer; PEFT loads the adapter on it."""
    ref = resolve_with(model, adapter, dtype)
    record = {} if adapter is None else _checked_record(Path(adapter), ref)
    base, tokenizer = load_both(ref, dtype, device)
    if adapter is not None:
        return put_adapter(base, Path(adapter), record=record), tokenizer
    if ref.is_package and ref.package.index.adapter:
        with tempfile.TemporaryDirectory(prefix="shears-") as name:  # PEFT reads adapters from folders only
            save_file(ref.package.adapter(), Path(name) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            write_json(Path(name) / ADAPTER_CONFIG, ref.package.adapter_config())
            return put_adapter(base, Path(name), shown=ref.folder), tokenizer
    return base, tokenizer


def _checked_record(adapter: Path, ref: ModelRef) -> dict[str, Any]:
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise InputError(f"the adapter must be a folder with {ADAPTER_CONFIG}, got {adapter}; check the path")
    path = find_record(adapter)
    record = read_record(adapter, path.name) if path is not None else {}
    if "base_fingerprint" in record:
        check_input(f"the base model of {adapter}, here {ref.name},", record["base_fingerprint"], ref.fingerprint)
    return record


def put_adapter(
    base: nn.Module, adapter: Path, *, record: Mapping[str, Any] = MappingProxyType({}), shown: Path | None = None
) -> PeftModel:
    """Return the model with a folder's adapter, in evaluation mode, computing as in its training."""
    shown = shown or adapter
    without_code.refuse_pickled(adapter)
    with loading(shown), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base, str(adapter), torch_device=str(device_of(base)))
    for text in (str(warning.message) for warning in caught):
        if "missing adapter keys" in text:  # PEFT would compute with fresh weights in their place
            raise InputError(f"{shown} must hold every weight of its configuration, got: {text[:200]}")
    if loaded.active_peft_config.is_prompt_learning:
        raise InputError(f"{shown} must change weights, it puts tokens before the text; take LoRA or its like")
    refuse_non_finite(shown, (pair for pair in loaded.named_parameters() if str(loaded.base_model.prefix) in pair[0]))
    loaded.eval()
    if record.get("quantize_aware", "none") != "none":
        make_quantize_aware(loaded, read_grids(adapter))
    elif record.get("sparse_adapter", False):
        make_sparse(loaded)
    return loaded
