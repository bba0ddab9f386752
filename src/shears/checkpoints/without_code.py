"""The one place where transformers reads a folder, always without the code that it may bring along.

Unless told not to, transformers asks on standard input whether to run such code; a piped `y` is a yes. Its models are
imported where one is built: that takes seconds, which a package in the native decoder is spared.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from shears.checkpoints.claims import refuse_claims
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ASKING = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
AUTO_MAP = "auto_map"  # in these files: the Python classes that a folder brings along
REFUSED = "trust_remote_code"  # in transformers' message for a folder that needs its own code
TEMPLATE_NAME = re.compile(r"\w[\w.-]*")
PICKLED_ADAPTER = "adapter_model.bin"
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")  # a function, or a repository


class NeedsOwnCode(InputError):  # noqa: N818  # InputError says that it is an error
    """The folder can only be loaded by code that came with it, which shears never runs."""


def load_config(folder: Path, **options: Any) -> Any:
    """Return transformers' configuration of a model folder; with `gguf_file`, of that file in it.

    InputError if it asks for code that transformers lacks.
    """
    _refuse_kernels(folder)
    if "gguf_file" not in options:
        refuse_claims(folder, "config.json", _json(folder / "config.json"))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except ValueError as error:
        _refuse_own_code(error, folder)
        raise


def refuse_hostile(config: Any, folder: Path) -> None:
    """Raise InputError for a package's configuration that asks for code, or claims more than its folder holds.

    Where there is no such folder yet, only claims that no model makes are refused.
    """
    named = [getattr(config, f"_{name}", None) for name in IMPLEMENTATIONS]
    if asked := next((str(name) for name in named if "/" in str(name)), None):
        rule = "a package is computed by transformers' own attention and shears' kernels"
        raise NeedsOwnCode(f"{rule}, got the repository {asked[:100]}; leave {' and '.join(IMPLEMENTATIONS)} out")
    if getattr(config, AUTO_MAP, None):
        raise NeedsOwnCode(f"a package holds no code, {config.name_or_path} names some as {AUTO_MAP}; remove that key")
    refuse_claims(folder, "config.json", config.to_diff_dict())


def load_generation_config(folder: Path) -> GenerationConfig:
    """Return the generation settings in a folder; they name no code."""
    settings: GenerationConfig = GenerationConfig.from_pretrained(folder)
    return settings


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder; InputError if it asks for code that transformers lacks.

    ValueError for files that the tokenizers library cannot read.
    """
    _refuse_named_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except ValueError as error:
        _refuse_own_code(error, folder)
        raise
    except Exception as error:
        if type(error) is Exception:  # the only class that the tokenizers library raises
            raise ValueError(str(error)) from error
        raise
    templates = tokenizer.chat_template
    for name in templates if isinstance(templates, dict) else ():  # each is saved as a file of its name
        if not (isinstance(name, str) and TEMPLATE_NAME.fullmatch(name)):
            rule = f"{folder} must name its chat templates by plain words"
            raise InputError(f"{rule}, got {name!r:.100}; rename it")
    tokenizer.init_kwargs.pop(AUTO_MAP, None)  # else its copies ask for code that they lack
    return cast("PreTrainedTokenizerBase", tokenizer)


def _refuse_named_files(folder: Path) -> None:
    """Raise InputError where tokenizer_config.json names a file, whose lines would become its tokens."""
    path = folder / "tokenizer_config.json"
    content = _json(path)
    for named in (content.get(key) for key in ("vocab", "merges")):
        if isinstance(named, str):
            rule = f"{path} must hold its vocabulary or leave it to files of its folder"
            raise InputError(f"{rule}, it names the file {named!r:.100}; remove that key")


def load_causal_model(folder: Path, **options: Any) -> Any:
    """Return what `from_pretrained` returns, read from safetensors or, with `gguf_file`, from that.

    InputError if the folder asks for code that transformers lacks, or if its index names files of
    other folders.
    """
    from transformers import AutoModelForCausalLM

    if "gguf_file" not in options:
        _refuse_kernels(folder)
        TensorFiles.refuse_foreign_index(folder)
        refuse_claims(folder, "config.json", _json(folder / "config.json"))
        if (folder / ADAPTER_CONFIG).is_file():  # transformers loads it with the model
            refuse_pickled(folder)
        options |= {"use_safetensors": True}  # the other format is a pickle, which runs code
    try:
        return cast("Any", AutoModelForCausalLM).from_pretrained(folder, trust_remote_code=False, **options)
    except ValueError as error:
        _refuse_own_code(error, folder)
        raise


def refuse_pickled(adapter: Path) -> None:
    """Raise InputError for an adapter without safetensors: PEFT would read a pickle, or ask the hub.

    Also for one that claims larger ranks than its weights have.
    """
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        pickled = (adapter / PICKLED_ADAPTER).is_file()
        came = f"only {PICKLED_ADAPTER}, a pickle, which can hold code" if pickled else "none"
        rule = f"{adapter} must hold its weights in {ADAPTER_WEIGHTS}"
        raise InputError(f"{rule}, got {came}; save it as safetensors")
    refuse_claims(adapter, ADAPTER_CONFIG, _json(adapter / ADAPTER_CONFIG))


def build_causal_model(config: Any, **options: Any) -> "PreTrainedModel":
    """Return a model with new weights; InputError if it asks for code that transformers lacks."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel
    try:
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except ValueError as error:
        name = getattr(config, "name_or_path", "") or "the configuration"
        _refuse_own_code(error, Path(str(name)))
        raise
    return model


def without_auto_map(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that asks for no code: what shears writes was loaded without it."""
    return {key: value for key, value in config.items() if key != AUTO_MAP}


def _refuse_own_code(error: ValueError, folder: Path) -> None:
    """Raise NeedsOwnCode if transformers refused a folder for the code that it asks for."""
    if REFUSED in str(error):
        asked = ", ".join(sorted({str(name) for name in _classes(folder)}))[:200]
        needs = f"{folder} needs code of its own ({AUTO_MAP}: {asked or 'unknown'})"
        raise NeedsOwnCode(f"{needs}, which shears never runs; use a model that transformers knows") from error


def _classes(folder: Path) -> Iterator[object]:
    """Yield the classes that the files of a folder ask for."""
    for name in ASKING:
        asked = _json(folder / name).get(AUTO_MAP)
        for value in asked.values() if isinstance(asked, dict) else filter(None, [asked]):
            yield from value if isinstance(value, list) else [value]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _refuse_kernels(folder: Path) -> None:
    """Raise NeedsOwnCode for a config.json that names a repository of kernels, which holds code."""
    for value in _implementations(_json(folder / "config.json")):
        for name in value.values() if isinstance(value, dict) else [value]:
            if "/" in str(name):
                asks = f"{folder} asks for kernels of the repository {str(name)[:100]}"
                todo = f"remove {' and '.join(IMPLEMENTATIONS)} from its config.json"
                raise NeedsOwnCode(f"{asks}, which shears never runs; {todo}")


def _implementations(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        for key, value in content.items():
            if any(name in key for name in IMPLEMENTATIONS):
                yield value
            yield from _implementations(value)
