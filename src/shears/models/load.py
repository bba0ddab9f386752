"""A causal language model and its tokenizer from any name; its linears and their weights.

Shapes: O output features, I input features of a linear.
"""

import logging
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.loading_errors import LOADING_ERRORS
from shears.checkpoints.tensor_files import refuse_missing
from shears.config.embedded import EMBEDDED
from shears.errors import InputError, first_line
from shears.models.fetching import convert_gguf, fetch
from shears.models.files import is_package
from shears.models.packages import load_packaged
from shears.models.quantization import loading_options
from shears.records.paths import expanded
from shears.records.peft_files import ADAPTER_CONFIG

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # of a hub repository; nothing executable
FOREIGN_FILES = ["consolidated*", "original/*", "onnx/*"]  # second copies of the weights for other tools
MOST_THREADS = 1024


def resolve_model(name: str) -> Path | str:
    """Return the folder a model name stands for, or the name itself where it is a hub id.

    `smollm2-135m` and .gguf files are converted once into the cache. InputError for a path that is not there.
    """
    path = expanded(name)
    if path.is_dir():
        return _checked_folder(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"a model must be a folder, a .gguf file, a hub id or an embedded name, got the file {path}"
            )
        return convert_gguf(path)
    if name in EMBEDDED:
        return fetch(name)
    if not _looks_like_hub_id(name):
        raise InputError(f"the model must exist, and there is no {name}; give a folder, a .gguf file or a hub id")
    return name


def _looks_like_hub_id(name: str) -> bool:
    """Tell `org/name` from a path: a first part that is a folder here makes it a path."""
    in_local_folder = "/" in name and Path(name.split("/", 1)[0]).is_dir()
    return bool(HUB_ID.fullmatch(name)) and not name.endswith(".gguf") and not in_local_folder


def _checked_folder(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"the model must be a base model, got the adapter {folder}; give it as --adapter")
    raise InputError(f"a model folder must hold config.json; {folder} does not")


def model_folder(name: str | Path) -> Path:
    """Return the local folder of a model; a hub id is downloaded into the hub's cache (unless HF_HUB_OFFLINE)."""
    resolved = resolve_model(str(name))
    if isinstance(resolved, Path):
        return resolved
    try:
        return Path(snapshot_download(resolved, allow_patterns=MODEL_FILES, ignore_patterns=FOREIGN_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise InputError(
            f"the model must be a folder, a .gguf file or a reachable hub id, got {resolved!r}: {first_line(error)}"
        ) from error


def plain_folder(name: str | Path, use: str) -> Path:
    """Return the model's folder; InputError for a package, whose adapter would be left out of what `use` says."""
    folder = model_folder(name)
    if is_package(folder):
        raise InputError(f"a model to {use} must be a model folder, got the package {name}; shears unpack it first")
    return folder


def load_model(
    name: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    quantization: BitsAndBytesConfig | None = None,
    *,
    to_save: bool = False,
) -> PreTrainedModel:
    """Return the causal language model in evaluation mode; `auto` keeps the dtype it was saved in.

    Of a package it is the model without the adapter, its packed weights dense; `quantization` quantizes the linears.
    On a CPU fp16 LayerNorms are widened (`widen_norms`), unless the model is loaded to be saved again.
    InputError, in one line, for whatever keeps it from loading, missing weights included.
    """
    folder, place = model_folder(name), pick_device(device)
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, "auto")}
    if quantization is not None:
        options |= loading_options(name, folder, quantization, place)
    try:
        model, info = _loaded(folder, options)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise InputError(
            f"{name} must be a causal language model that transformers loads: {first_line(error)}"
        ) from error
    _refuse_random_weights(name, info)
    loaded: PreTrainedModel = model.eval() if quantization is not None else model.eval().to(place)
    if not to_save:
        widen_norms(loaded)
    logger.info("loaded %s: %.4g M parameters, %s, %s", name, loaded.num_parameters() / 1e6, loaded.dtype, place)
    return loaded


def _loaded(folder: Path, options: dict[str, Any]) -> Any:
    if is_package(folder):
        return load_packaged(folder, options["dtype"])
    options |= {"use_safetensors": True, "output_loading_info": True}
    return cast("Any", AutoModelForCausalLM).from_pretrained(folder, **options)


def _refuse_random_weights(name: str | Path, info: dict[str, Any]) -> None:
    """Refuse what transformers only warns of: weights the files lack come out random."""
    refuse_missing(name, {str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]})


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, with a padding token (the end of sequence where it has none of its own)."""
    tokenizer = _own_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_tokenizer(name: str | Path, folder: Path) -> None:
    """Write the model's tokenizer as it is: who pads with the end of sequence may mask that in training."""
    _own_tokenizer(name).save_pretrained(folder)


def _own_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    folder = model_folder(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except LOADING_ERRORS as error:
        words = " ".join(str(error).split())[:200] or first_line(error)
        raise InputError(f"{name} must come with a tokenizer that transformers loads, got: {words}") from error
    return tokenizer


def pick_device(device: str) -> torch.device:
    """Return the device meant: auto is cuda, else mps, else cpu; InputError where it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    place = torch.device(device)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cpu": True, "cuda": (place.index or 0) < cards, "mps": torch.backends.mps.is_available()}
    if not there.get(place.type, False):
        raise InputError(f"device must be one that this machine has, got {device!r}; use auto or cpu")
    return place


def resolved_precision(precision: str, device: torch.device | str) -> Literal["fp32", "bf16", "fp16"]:
    """Return the arithmetic meant: auto is bf16 where the processor has it in hardware, else fp32."""
    kind = torch.device(device).type
    if precision == "fp16" and kind != "cuda":
        raise InputError(f"precision fp16 needs a CUDA device, got {kind}; use auto, bf16 or fp32")
    if precision == "auto":
        return "bf16" if _has_bf16(kind) else "fp32"
    return "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"


def _has_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context in which forwards run in the given precision over weights of any other."""
    chosen = resolved_precision(precision, device)
    return nullcontext() if chosen == "fp32" else torch.autocast(torch.device(device).type, DTYPES[chosen])


def keep_casts(model: nn.Module) -> None:
    """Have autocast cast frozen weights once, not at every forward (it keeps casts of trained ones); no gradients."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)


def widen_norms(model: nn.Module) -> list[nn.Module]:
    """Hold the fp16 LayerNorms of a model on a CPU in fp32, and return them; their values stay as they are.

    The CPU's kernel takes fp16 weights beside fp16 inputs only, and under bf16 autocast its inputs are of others.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine]
    half = [norm for norm in norms if (norm.weight.dtype, norm.weight.device.type) == (torch.float16, "cpu")]
    return [norm.float() for norm in half]


def set_threads(count: int | None) -> None:
    """Use that many CPU threads; None leaves torch's choice, one a core. InputError for more than MOST_THREADS."""
    if count is not None and not 1 <= count <= MOST_THREADS:
        raise InputError(f"threads must be 1 to {MOST_THREADS}, got {count}; leave them out for one a core")
    if count is not None:
        torch.set_num_threads(count)


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linears below a module by qualified name, in the order of definition."""
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)}


def weight_oi(linear: nn.Module) -> Float[Tensor, "O I"]:
    """Return a linear's weight as outputs x inputs: the same storage, transposed for Conv1D."""
    weight: Tensor = linear.get_parameter("weight")
    return weight.T if isinstance(linear, Conv1D) else weight
