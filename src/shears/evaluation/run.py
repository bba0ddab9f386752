"""The evaluation stage: load a model, with or without an adapter, measure it and write the figures."""

import logging
import re
import shutil
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.adapt.sparse_adapter import make_sparse
from shears.checkpoints.loading_errors import LOADING_ERRORS
from shears.checkpoints.packed.file import read_package
from shears.config import EvaluateConfig
from shears.config.paper import ANSWER_FORMS, TEMPLATE
from shears.config.resolve import build
from shears.data.prompts import DEFAULT_TEMPLATE, TEMPLATES
from shears.data.rows import source_fingerprint
from shears.errors import InputError, first_line
from shears.evaluation.contamination import training_data
from shears.evaluation.journal import Journal, journal_path, settings_fingerprint
from shears.evaluation.records import Evaluation
from shears.evaluation.scoring.score import device_of
from shears.evaluation.tasks.registry import evaluate_task
from shears.models.files import is_package
from shears.models.load import autocast, keep_casts, model_folder
from shears.models.vocabulary import load_both
from shears.records.artifacts import (
    PACKAGE,
    as_data,
    check_input,
    find_record,
    read_json,
    read_record,
    weights_fingerprint,
    whole_record,
    write_json,
)
from shears.records.paths import expanded
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

logger = logging.getLogger(__name__)

ADAPTER_ERRORS = (*LOADING_ERRORS, re.error)  # of its patterns


def evaluate(model: str, output: str | Path | None = None, adapter: str | None = None, **config: Any) -> Evaluation:
    """Measure a model, with or without an adapter, on a task; write the figures to `output` if it is given.

    Keywords are those of EvaluateConfig (`task`, `data`, ...). The file holds no times, so equal inputs give equal
    bytes. Until the file is complete, generated texts are kept in `OUTPUT.partial`; the same call after a kill
    continues from them.
    """
    given = build(EvaluateConfig, "evaluate", config)
    path = None if output is None else expanded(output)
    if path is not None:
        _check_output(path, given)
    parts = parts_of(model, adapter)
    settings = given.model_copy(update={"template": template_of(given, *parts)})
    loaded, tokenizer = load_with_adapter(model, adapter, settings.weights, settings.device)
    identity = measured(model, adapter, given) if path is not None else {}
    journal = None
    if path is not None and settings.generates:
        also = {"template": settings.template, "settings_sha256": settings_fingerprint(*parts)}
        journal = Journal(journal_path(path), {**identity, **also})
    keep_casts(loaded)  # PEFT freezes the base model, whose weights autocast would cast at every forward
    own_autocast = settings.task == "harness"  # lm-eval opens it
    with nullcontext() if own_autocast else autocast(settings.precision, device_of(loaded)):
        evaluation = evaluate_task(loaded, tokenizer, settings, journal, training_data(*parts))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**identity, **evaluation.as_data()})
        logger.info("wrote %s", path)
    if journal is not None:
        journal.close()
    return evaluation


def _check_output(output: Path, config: EvaluateConfig) -> None:
    """Raise InputError if the figures could not be written to `output`, or would replace the data."""
    if output.is_dir() or journal_path(output).is_dir():
        raise InputError(f"the output must be a file, got the folder {output}; name such as {output}/figures.json")
    if output.exists() and not output.is_file():  # /dev/null: a rename would put a file in its place
        raise InputError(f"the output must be a regular file, got {output}; name such as figures.json")
    if output.resolve() == expanded(config.data).resolve():
        raise InputError(f"the output must be another file than the data, got {output} for both")
    try:
        existing = next(folder for folder in output.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"the output must be a file that can be written, got {output}: {error.strerror}") from None


def measured(model: str | Path, adapter: str | Path | None, config: EvaluateConfig) -> dict[str, Any]:
    """Return what identifies a measurement: its settings and the fingerprints of data, model and adapter."""
    return {
        **settings_and_data(config),
        "model_fingerprint": weights_fingerprint(model_folder(model)),
        "adapter_fingerprint": weights_fingerprint(Path(adapter)) if adapter else None,
    }


def settings_and_data(config: EvaluateConfig) -> dict[str, Any]:
    """Return what identifies a measurement beside the model: settings, with the resolved dtype, and the data."""
    return {
        "config": {**as_data(config), "dtype": config.weights},
        "data_sha256": source_fingerprint(config.data),
    }


def parts_of(model: str | Path, adapter: str | Path | None) -> list[Path]:
    """Return the folders that are measured: the adapter, if there is one, then the model."""
    return [*([Path(adapter)] if adapter is not None else []), model_folder(model)]


def template_of(config: EvaluateConfig, *parts: Path) -> str:
    """Return the prompt template: the configured one, else that of the first record with one, else the task's."""
    template = TEMPLATE if config.task in (*ANSWER_FORMS, "harness") else DEFAULT_TEMPLATE
    for part in reversed(parts):
        template = adapter_template(part, template)
    return config.template or template


def adapter_template(adapter: str | Path | None, default: str = DEFAULT_TEMPLATE) -> str:
    """Return the template that an adapter, or a merged model, was trained with; `default` without such a record."""
    record = find_record(Path(adapter)) if adapter is not None else None
    content = read_json(record) if record is not None else {}
    if not isinstance(content, dict):
        raise InputError(f"{record} must be the record that shears wrote, it is {str(content)[:40]}")
    config = content.get("config")
    template = content.get("template") or (config.get("template") if isinstance(config, dict) else None)
    return template if isinstance(template, str) and template in TEMPLATES else default


def load_with_adapter(
    model: str | Path, adapter: str | Path | None = None, dtype: str = "auto", device: str = "auto"
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return a model, ready to evaluate, and its tokenizer; the adapter on it loads through stock PEFT.

    One that was trained with sparse_adapter is masked by the model's zeros, as in its training. InputError where the
    adapter does not load, lacks weights, or was trained on another base than this model. A package brings its own.
    """
    if is_package(folder := model_folder(model)):
        return _packaged(folder, adapter, dtype, device)
    record = {} if adapter is None else _checked_record(Path(adapter), model)
    base, tokenizer = load_both(model, dtype, device)
    if adapter is None:
        return base, tokenizer
    adapted = _with_adapter(base, Path(adapter))
    if record.get("sparse_adapter", False):
        make_sparse(adapted)
    return adapted, tokenizer


def _packaged(
    folder: Path, adapter: str | Path | None, dtype: str, device: str
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return the model of a package with the adapter in it, both as PEFT and transformers know them."""
    if adapter is not None:
        raise InputError(
            f"a package comes with its adapter, got adapter={adapter} beside {folder}; unpack it to change it"
        )
    read_record(folder, PACKAGE)
    base, tokenizer = load_both(folder, dtype, device)
    tensors = read_package(folder, verify=False).adapter()
    return (_with_tensors(base, folder, tensors) if tensors else base), tokenizer


def _with_tensors(base: nn.Module, folder: Path, tensors: dict[str, Tensor]) -> nn.Module:
    """Put an adapter whose tensors are in memory on the model, as PEFT does a file; InputError where it does not."""
    with tempfile.TemporaryDirectory(prefix="shears-") as place:
        save_file(tensors, Path(place) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        shutil.copyfile(folder / ADAPTER_CONFIG, Path(place) / ADAPTER_CONFIG)
        adapted: nn.Module = _with_adapter(base, Path(place), folder)
        return adapted


def _checked_record(adapter: Path, model: str | Path) -> dict[str, Any]:
    """Return an adapter's record, empty for one that is not ours; InputError where the model is not its base."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise InputError(f"the adapter must be a folder with {ADAPTER_CONFIG}, got {adapter}; check the path")
    path = find_record(adapter)
    record = whole_record(adapter, path.name) if path is not None else {}
    if "base_fingerprint" in record:
        found = weights_fingerprint(model_folder(model))
        check_input(f"the base model of {adapter}, here {model},", record["base_fingerprint"], found)
    return record


def _with_adapter(base: nn.Module, adapter: Path, called: Path | None = None) -> PeftModel:
    """Return the model with an adapter; messages name the folder that it is `called`."""
    called = called or adapter
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(base, str(adapter), torch_device=str(device_of(base)))
    except ADAPTER_ERRORS as error:
        words = _words(error)
        raise InputError(f"{called} must be an adapter that PEFT loads onto this model, got: {words}") from error
    for warning in (warning for warning in caught if not issubclass(warning.category, FutureWarning)):
        _refuse_or_log(called, str(warning.message))
    _refuse_wrong_tokens(called, loaded)
    if loaded.active_peft_config.is_prompt_learning:
        raise InputError(f"{called} must change weights, it puts tokens before the text; take LoRA or its like")
    loaded.eval()
    return loaded


def _words(error: BaseException) -> str:
    """Return what an error says in one line; torch names what does not fit in the second."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) or first_line(error)


def _refuse_wrong_tokens(adapter: Path, loaded: PeftModel) -> None:
    """PEFT looks at the tokens that switch an adapter on (aLoRA) only when it computes."""
    tokens = getattr(loaded.active_peft_config, "alora_invocation_tokens", None)
    if tokens is not None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise InputError(
            f"{adapter / ADAPTER_CONFIG} must have alora_invocation_tokens that are a list of whole numbers, got "
            f"{tokens!r:.40}; make it again"
        )


def _refuse_or_log(adapter: Path, message: str) -> None:
    """PEFT only warns of missing weights, and then computes with fresh ones."""
    if "missing adapter keys" in message:
        raise InputError(f"{adapter} must hold every weight of its configuration, got: {message.splitlines()[0][:200]}")
    logger.warning("loading %s: %s", adapter, message.splitlines()[0])
