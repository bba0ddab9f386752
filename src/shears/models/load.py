"""Load a causal language model, its tokenizer and an adapter through transformers and PEFT."""

import importlib.util
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from shears.checkpoints import without_code
from shears.checkpoints.configuration import LOADING_ERRORS, known_config
from shears.checkpoints.packed.marks import plain_config
from shears.checkpoints.tensor_files import quantized_by, refuse_missing, refuse_non_finite
from shears.errors import InputError, first_line, install_hint
from shears.models.devices import DTYPES, device_of, pick_device, widen_norms
from shears.models.grid_adapter import make_quantize_aware
from shears.models.properties import num_embeddings
from shears.models.ref import AnyModel, ModelRef, resolve, resolve_with
from shears.models.sparse_adapter import make_sparse
from shears.models.tokenizers import load_tokenizer
from shears.quantization.training import read_grids
from shears.records.artifacts import check_input, find_record, read_object, read_record, write_json
from shears.records.paths import own_file
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

logger = logging.getLogger(__name__)

BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")  # in the name of a tensor
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
)  # fmt: skip
"""Keys of transformers' generation settings that change which token is the likeliest, or choose another."""
Quantized = Literal["nf4", "int8"]
BITS = MappingProxyType({"nf4": 4.5, "int8": 8.0})
"""Bits of a quantized weight; nf4 has an fp32 scale for every 64 weights."""


def load_model(
    model: AnyModel,
    dtype: str = "auto",
    device: str = "auto",
    quantization: BitsAndBytesConfig | None = None,
    *,
    to_save: bool = False,
    config: Any = None,
) -> PreTrainedModel:
    """Return the causal language model in evaluation mode; `auto` keeps the dtype it was saved in.

    A package is loaded without its adapter, its packed weights made dense, with transformers'
    `config` in place of its folder's if that is given; `quantization` quantizes the linears.
    On a CPU fp16 LayerNorms are widened (`widen_norms`), unless the model is loaded to
    be saved again. InputError, in one line, for any failure to load, and for weights that are missing or not finite.
    """
    ref = resolve(model, dtype)
    torch_device = pick_device(device)
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, "auto")}
    if quantization is not None:
        options |= _quantizing_options(ref, quantization, torch_device)
    try:
        network, info = _from_pretrained(ref, options, config)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise InputError(
            f"{ref.name} must be a causal language model that transformers loads: {first_line(error)}"
        ) from error
    # transformers only warns of weights that the files lack, and fills them with random numbers
    refuse_missing(ref.name, {str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]})
    refuse_non_finite(ref.name, network.named_parameters())
    loaded: PreTrainedModel = network.eval() if quantization is not None else network.eval().to(torch_device)
    if not to_save:
        widen_norms(loaded)
    size = loaded.num_parameters() / 1e6
    logger.info("loaded %s: %.4g M parameters, %s, %s", ref.name, size, loaded.dtype, torch_device)
    return loaded


def _from_pretrained(ref: ModelRef, options: dict[str, Any], config: Any) -> Any:
    """Return the model and transformers' loading info, of a package too."""
    options |= {"output_loading_info": True}
    if not ref.is_package:
        return without_code.load_causal_model(ref.folder, **options)
    folder = ref.folder
    package = ref.package
    if package.index.adapter:
        package.adapter_config()  # raises where it is missing
    config = plain_config(known_config(folder) if config is None else config)
    with torch.device("meta"):
        kind = type(without_code.build_causal_model(config))
    tensors = dict(package.model_tensors())
    model, info = cast("Any", kind).from_pretrained(
        None, config=config, state_dict=tensors, trust_remote_code=False, **options
    )
    _refuse_more_blocks(folder, model.state_dict().keys(), info["unexpected_keys"])
    model.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = without_code.load_generation_config(folder)
    return model, info


def _refuse_more_blocks(folder: Path, names: Collection[str], unexpected: Collection[str]) -> None:
    """Raise InputError if the package holds more blocks than its config: they would be ignored."""
    known = {BLOCK_NUMBER.sub("#", name) for name in names}
    if beyond := sorted(name for name in unexpected if BLOCK_NUMBER.sub("#", name) in known):
        raise InputError(
            f"{folder} must have all its blocks in config.json, {beyond[0]} is beyond them; restore that file"
        )


def quantization_config(form: Quantized, compute: torch.dtype) -> BitsAndBytesConfig:
    """Return the configuration for quantizing a model while loading; nf4 multiplies in `compute`.

    Zeros stay zeros, which both formats hold exactly. InputError without bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"quantize {form} needs the package bitsandbytes, which is not installed; {install_hint('quantize')}"
        )
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _quantizing_options(ref: ModelRef, quantization: BitsAndBytesConfig, device: torch.device) -> dict[str, Any]:
    """Return the options that quantize a model onto a device (of several GPUs: this process's).

    InputError for a package and for a model that is already quantized.
    """
    method = quantized_by(ref.folder)
    kind = "a package" if ref.is_package else f"quantized by {method}" if method else ""
    if kind:
        raise InputError(
            f"a model to quantize must be a folder of plain weights, {ref.name} is {kind}; leave quantize out"
        )
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return {"quantization_config": quantization, "device_map": {"": device}}


def keep_as_quantized(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at a first use without gradients.

    Repacking, on some CPUs, rounds the scales to bf16 for good, before training begins.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def copy_configs(folder: Path, work: Path, config: Mapping[str, Any] | None = None) -> None:
    """Copy a model folder's configuration (or write `config`) and the one for generation, if any.

    The copy asks for no code (`auto_map`). InputError for a link to a file outside of the folder.
    """
    if config is None:
        _copy_without_code(folder / "config.json", work)
    else:
        write_json(work / "config.json", without_code.without_auto_map(config))
    if (folder / "generation_config.json").is_file():
        _copy_without_code(folder / "generation_config.json", work)


def answer_greedily(folder: Path) -> None:
    """Let other tools generate from a model folder as its answers are measured: greedily, without penalties.

    Without settings of its own, a model is already asked so.
    """
    path = folder / "generation_config.json"
    if path.is_file():
        content = {key: value for key, value in read_object(path).items() if key not in SAMPLING}
        write_json(path, {**content, "do_sample": False})


def _copy_without_code(path: Path, work: Path) -> None:
    checked = own_file(path)
    content = read_object(checked)
    if without_code.AUTO_MAP in content:
        write_json(work / path.name, without_code.without_auto_map(content))
    else:
        shutil.copyfile(path, work / path.name)


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
    """Raise InputError if the largest token id has none of the model's `embeddings`."""
    if largest >= embeddings:
        raise InputError(
            f"token ids must be below {embeddings}, the model's embeddings, got {largest}; resize the model's "
            "embeddings, or take the tokenizer that it was trained with"
        )


def load_with_adapter(
    model: AnyModel, adapter: str | Path | None = None, dtype: str = "auto", device: str = "auto"
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return a model, ready to evaluate, and its tokenizer; PEFT loads the adapter on it.

    An adapter trained with sparse_adapter or quantize_aware computes as in its training. A package
    comes with its own adapter. InputError if the adapter cannot be loaded, lacks weights, or was
    trained on another base.
    """
    ref = resolve_with(model, adapter, dtype)
    if ref.is_package:
        return _load_package(ref, dtype, device)
    record = {} if adapter is None else _checked_record(Path(adapter), ref)
    base, tokenizer = load_both(ref, dtype, device)
    if adapter is None:
        return base, tokenizer
    return put_adapter(base, Path(adapter), record=record), tokenizer


def _load_package(ref: ModelRef, dtype: str, device: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return a package's model with its adapter, in the classes of transformers and PEFT."""
    base, tokenizer = load_both(ref, dtype, device)
    return with_own_adapter(base, ref), tokenizer


def with_own_adapter(base: nn.Module, ref: ModelRef) -> nn.Module:
    """Return the model of a package in PEFT's class with the package's adapter, if it has one."""
    tensors = ref.package.adapter()
    if not tensors:
        return base
    with tempfile.TemporaryDirectory(prefix="shears-") as name:  # PEFT reads adapters from folders only
        folder = Path(name)
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(folder / ADAPTER_CONFIG, ref.package.adapter_config())
        adapted: nn.Module = put_adapter(base, folder, shown=ref.folder)
    return adapted


def _checked_record(adapter: Path, ref: ModelRef) -> dict[str, Any]:
    """Return an adapter's record, empty for another tool's; InputError for another base."""
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
    """Return the model with a folder's adapter, in evaluation mode, computing as in its training.

    Its `record` says whether its product is masked and its weights are rounded. Messages name the
    folder `shown`, by default the adapter's. InputError for what PEFT cannot load, for missing or
    pickled weights, and for adapters that put tokens before the text.
    """
    shown = shown or adapter
    without_code.refuse_pickled(adapter)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(base, str(adapter), torch_device=str(device_of(base)))
    except (*LOADING_ERRORS, re.error) as error:  # the latter for patterns of PEFT's configuration
        # torch names the tensor that does not fit in the second line
        words = " ".join(line.strip() for line in str(error).splitlines()[:2]) or first_line(error)
        raise InputError(f"{shown} must be an adapter that PEFT loads onto this model, got: {words}") from error
    for warning in (warning for warning in caught if not issubclass(warning.category, FutureWarning)):
        message = str(warning.message)
        line = message.splitlines()[0]
        if "missing adapter keys" in message:  # PEFT would compute with fresh weights in their place
            raise InputError(f"{shown} must hold every weight of its configuration, got: {line[:200]}")
        logger.warning("loading %s: %s", shown, line)
    _refuse_wrong_tokens(shown, loaded)
    if loaded.active_peft_config.is_prompt_learning:
        raise InputError(f"{shown} must change weights, it puts tokens before the text; take LoRA or its like")
    own = (pair for pair in loaded.named_parameters() if str(loaded.base_model.prefix) in pair[0])
    refuse_non_finite(shown, own)
    loaded.eval()
    if record.get("quantize_aware", "none") != "none":
        make_quantize_aware(loaded, read_grids(adapter))
    elif record.get("sparse_adapter", False):
        make_sparse(loaded)
    return loaded


def _refuse_wrong_tokens(adapter: Path, loaded: PeftModel) -> None:
    """Raise InputError for wrong invocation tokens of aLoRA, which PEFT checks in the forward."""
    tokens = getattr(loaded.active_peft_config, "alora_invocation_tokens", None)
    if tokens is not None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise InputError(
            f"{adapter / ADAPTER_CONFIG} must have alora_invocation_tokens that are a list of whole numbers, got "
            f"{tokens!r:.40}; make it again"
        )
