"""Load a causal language model, tokenizer and adapter by transformers and PEFT; describe a model.

T tokens, V words of the vocabulary.
"""

import inspect
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
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
from shears.models.ref import AnyModel, ModelRef, load_tokenizer, resolve, resolve_with
from shears.models.sparse_adapter import make_sparse
from shears.quantization.training import read_grids
from shears.records.artifacts import check_input, find_record, read_object, read_record, write_json
from shears.records.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS, own_file

logger = logging.getLogger(__name__)

BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")  # in the name of a tensor
CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # configuration keys
TRIED = 5  # tokens of a row, and of its padding
CLOSE = {torch.float32: 1e-3}  # of the largest logit; 5e-2 in dtypes that round more
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
)  # fmt: skip
"""Keys of transformers' generation settings that change the likeliest token, or choose another."""


def load_model(model: AnyModel, dtype: str = "auto", device: str = "auto", *, to_save: bool = False) -> PreTrainedModel:
    """Return the causal language model in evaluation mode; `auto` keeps the dtype of its files."""
    ref = resolve(model, dtype)
    with loading(ref.name):
        network, info = _from_pretrained(ref, {"dtype": DTYPES.get(dtype, "auto"), "output_loading_info": True})
    # transformers only warns of weights that the files lack, and fills them with random numbers
    refuse_missing(ref.name, set(map(str, [*info["missing_keys"], *info["mismatched_keys"]])))
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
        raise ValueError(f"its config.json must count all its decoder blocks, {beyond[0]} is beyond them")
    model.name_or_path = str(ref.folder)
    if (ref.folder / "generation_config.json").is_file():
        model.generation_config = without_code.load_generation_config(ref.folder)
    return model, info


def copy_configs(folder: Path, work: Path, config: Mapping[str, Any] | None = None) -> None:
    """Copy a model folder's configuration (or write `config`) and that for generation, if any."""
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
    """Make other tools generate greedily and without penalties, as answers are measured here."""
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
            f"token ids must be below {embeddings}, the model's number of embeddings, "
            f"got {largest}; resize the embeddings, or use the tokenizer of the model's training"
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
        with tempfile.TemporaryDirectory(prefix="shears-") as name:  # PEFT reads only folders
            save_file(ref.package.adapter(), Path(name) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            write_json(Path(name) / ADAPTER_CONFIG, ref.package.adapter_config())
            return put_adapter(base, Path(name), shown=ref.folder), tokenizer
    return base, tokenizer


def _checked_record(adapter: Path, ref: ModelRef) -> dict[str, Any]:
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise InputError(f"the adapter must hold {ADAPTER_CONFIG}, got {adapter}; check the path")
    path = find_record(adapter)
    record = read_record(adapter, path.name) if path is not None else {}
    if "base_fingerprint" in record:
        check_input(f"the base model of {adapter}, here {ref.name},", record["base_fingerprint"], ref.fingerprint)
    return record


def put_adapter(
    base: nn.Module, adapter: Path, *, record: Mapping[str, Any] = MappingProxyType({}), shown: Path | None = None
) -> PeftModel:
    """Return the model with a folder's adapter, in evaluation mode, computing as in training."""
    shown = shown or adapter
    without_code.refuse_pickled(adapter)
    with loading(shown), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base, str(adapter), torch_device=str(device_of(base)))
    for text in (str(warning.message) for warning in caught):
        if "missing adapter keys" in text:  # PEFT would compute with fresh weights in their place
            raise InputError(f"{shown} must hold every configured weight, got: {text[:200]}")
    if loaded.active_peft_config.is_prompt_learning:
        raise InputError(f"{shown} must change weights, got prompt learning; use LoRA or the like")
    refuse_non_finite(shown, (pair for pair in loaded.named_parameters() if str(loaded.base_model.prefix) in pair[0]))
    loaded.eval()
    if record.get("quantize_aware", "none") != "none":
        make_quantize_aware(loaded, read_grids(adapter))
    elif record.get("sparse_adapter", False):
        make_sparse(loaded)
    return loaded


def num_positions(model: nn.Module) -> int | None:
    """Return the number of positions in a model's configuration; None where it has none."""
    return positions_in(getattr(own_model(model), "config", None))


def positions_in(config: Any) -> int | None:
    config = config.get_text_config() if config is not None else None
    lengths = (getattr(config, name, None) for name in CONTEXT)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def refuse_longer(length: int, context: int | None) -> None:
    if context is not None and length > context:
        raise InputError(f"sequence_length must be at most this model's context of {context} tokens, got {length}")


def num_embeddings(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().get_parameter("weight").shape[0])


def check_calibration(model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]]) -> None:
    if not batches:
        raise InputError("calibration needs at least one batch of tokens, got none; give a text")
    vocabulary = num_embeddings(model)
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise InputError(f"calibration token ids must be below {vocabulary}, got {largest}; use this model's tokenizer")
    refuse_longer(max(batch.shape[1] for batch in batches), num_positions(model))


def own_model(model: nn.Module) -> nn.Module:
    """Return the model without the wrappers of PEFT, distributed training and compilation."""
    while isinstance(own := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = own
    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_parameters(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(own_model(model).forward).parameters)


def cache_bytes(model: nn.Module, item: int | None = None) -> int:
    """Return a token's cache bytes, `item` a number (None: as embeddings); 0 without attention."""
    network: Any = own_model(model)
    config = network.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or config.hidden_size // max(num_heads, 1)
    kept = getattr(config, "num_key_value_heads", None) or num_heads
    item = item or network.get_input_embeddings().weight.element_size()
    return int(2 * config.num_hidden_layers * kept * size * item)


@torch.no_grad()
def ignores_padding(model: nn.Module) -> bool:
    """Tell whether left padding, whatever its tokens, leaves a row's logits as they are."""
    weight = own_model(model).get_input_embeddings().weight  # type: ignore[operator]

    def logits(gap: int, pad_id: int = 0) -> Float[Tensor, "T V"]:
        mask = torch.tensor([[0] * gap + [1] * TRIED], device=weight.device)
        ids = torch.tensor([[pad_id] * gap + list(range(1, TRIED + 1))], device=weight.device)
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        inputs = {name: each for name, each in batch.items() if name in forward_parameters(model)}
        result: Tensor = model(**inputs, use_cache=False).logits[0, -TRIED:].float()
        return result

    try:
        with torch.autocast(weight.device.type, enabled=False):
            alone, padded, otherwise = logits(0), logits(TRIED), logits(TRIED, len(weight) - 1)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError):
        return False  # a model that does not take such a batch
    scale = alone.abs().max()
    close = CLOSE.get(weight.dtype, 5e-2) * scale
    return bool((padded - otherwise).abs().max() <= 1e-5 * scale and (padded - alone).abs().max() <= close)
