"""The one place where transformers reads a folder, always without the code that it may bring along.

Else transformers asks on standard input whether to run it; a piped `y` is a yes.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from shears.checkpoints.tensor_files import read_index
from shears.errors import InputError, memory_error, reading
from shears.records.artifacts import read_object
from shears.records.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO_MAP = "auto_map"  # in a configuration: the Python classes that a folder brings along
TEMPLATE_NAME = re.compile(r"\w[\w.-]*")
KERNELS = re.compile(r'"\w*(?:attn|experts)_implementation\w*": (?:"[^"]*/|\{[^}]*/)')
"""In a config.json: attention or experts of a repository (owner/name), for the model or a part."""


def load_config(folder: Path, **options: Any) -> Any:
    """Return transformers' configuration of a folder; with `gguf_file`, of that file in it."""
    _refuse_kernels(folder)
    with _own_code(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)


def load_generation_config(folder: Path) -> GenerationConfig:
    return GenerationConfig.from_pretrained(folder)


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    if named := [key for key in ("vocab", "merges") if isinstance(settings.get(key), str)]:
        raise InputError(
            f"{path} must not name a file, whose lines would become tokens, as {named[0]}; remove that key"
        )
    with _own_code(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        templates = tokenizer.chat_template
        for name in templates if isinstance(templates, dict) else ():  # the names of saved files
            if not (isinstance(name, str) and TEMPLATE_NAME.fullmatch(name)):
                raise ValueError(f"it must name its chat templates by plain words, got {name!r:.100}")
    tokenizer.init_kwargs.pop(AUTO_MAP, None)  # else its copies ask for code that they lack
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_causal_model(folder: Path, **options: Any) -> Any:
    """Return the model of a folder's safetensors or, with `gguf_file`, of that file in it."""
    from transformers import AutoModelForCausalLM

    if "gguf_file" not in options:
        _refuse_kernels(folder)
        read_index(folder)  # refuses one that names files of other folders
        if (folder / ADAPTER_CONFIG).is_file():  # transformers loads it with the model
            refuse_pickled(folder)
        options |= {"use_safetensors": True}  # the other format is a pickle, which runs code
    with _own_code(folder):
        return cast("Any", AutoModelForCausalLM).from_pretrained(folder, trust_remote_code=False, **options)


def refuse_pickled(adapter: Path) -> None:
    """Raise InputError for an adapter without safetensors: PEFT reads a pickle, or asks the hub."""
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{adapter} must hold its weights in {ADAPTER_WEIGHTS}, it has none; save it as safetensors")


def build_causal_model(config: Any, **options: Any) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    build = cast("Any", AutoModelForCausalLM).from_config
    with _own_code(Path(getattr(config, "name_or_path", "") or "the configuration")):
        return cast("PreTrainedModel", build(config, trust_remote_code=False, **options))


@contextmanager
def _own_code(folder: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise InputError(
            f"{folder} needs code of its own, which shears never runs; use a model that transformers knows"
        ) from error


def _refuse_kernels(folder: Path) -> None:
    path = folder / "config.json"
    if path.is_file() and KERNELS.search(json.dumps(read_object(path))):
        raise InputError(
            f"{folder} asks for kernels of the repository that its config.json names as an "
            "implementation, which shears never runs; remove that key"
        )


LOADING_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    RuntimeError, ImportError, AssertionError, StrictDataclassError, SafetensorError,
)  # fmt: skip


class UnsupportedCheckpoint(InputError):  # noqa: N818  # InputError says that it is an error
    """The model cannot be read part by part; `load_model` may still load it whole."""


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Act as `reading`, and also for errors that elsewhere are ours, such as wrong shapes."""
    with reading(name):
        try:
            yield
        except (RuntimeError, ImportError, AssertionError, re.error) as error:
            if memory_error(error) is not None:
                raise
            raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error


def known_config(folder: Path) -> Any:
    """Return a model folder's configuration; InputError for unknown architectures."""
    with reading(folder / "config.json"):
        return load_config(folder)


def read_config(folder: Path) -> Any:
    """Return a folder's configuration; UnsupportedCheckpoint for adapters and quantized weights."""
    config = known_config(folder)
    if any(getattr(one, "quantization_config", None) for one in (config, config.get_text_config())):
        raise UnsupportedCheckpoint(f"a model read part by part must not be quantized, {folder} is")
    if (folder / ADAPTER_CONFIG).exists():
        raise UnsupportedCheckpoint(f"a model read part by part must be without an adapter, {folder} has one")
    return config


def empty_model(folder: Path, config: Any = None, dtype: torch.dtype = torch.float32) -> "PreTrainedModel":
    """Return a folder's model in evaluation mode on the meta device, as from_pretrained does."""
    from transformers import initialization as init

    config = known_config(folder) if config is None else config
    with loading(folder), torch.device("meta"), init.no_tie_weights(), init.meta_device_safe_creation_ops():
        model: PreTrainedModel = build_causal_model(config, dtype=dtype).eval()
    return model
