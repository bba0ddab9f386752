"""The evaluation as a stage: load a model and perhaps an adapter, measure, write the figures."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.config.paper import ANSWER_FORMS, TEMPLATE
from shears.config.resolve import build
from shears.data.prompts import DEFAULT_TEMPLATE, TEMPLATES
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import ids_of, mark_seen, training_data
from shears.evaluation.harness.run import ASKED, run_harness
from shears.evaluation.journal import Journal, journal_path, settings_fingerprint
from shears.evaluation.records import Evaluation
from shears.evaluation.tasks.registry import ACCURACY_TASKS, evaluate_examples, evaluate_task, load_task_examples
from shears.models.devices import autocast, device_of, keep_casts
from shears.models.load import load_with_adapter
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.records.artifacts import (
    as_data,
    find_record,
    read_json,
    weights_fingerprint,
    write_json,
)
from shears.records.paths import expanded

logger = logging.getLogger(__name__)


def evaluate(
    model: AnyModel, output: str | Path | None = None, adapter: str | None = None, **config: Any
) -> Evaluation:
    """Measure a model, with or without an adapter, on a task; write the figures to `output` where one is named.

    Keywords are those of EvaluateConfig (`task`, `data`, ...). The file holds no times: the same inputs give the same
    bytes. With an output, generated texts are kept beside it (`OUTPUT.partial`) until it is whole: started again after
    a kill, the evaluation goes on from there.
    """
    given = build(EvaluateConfig, "evaluate", config)
    if output is not None:
        _check_output(expanded(output), given)
    ref = resolve(model)
    parts = parts_of(ref, adapter)
    wanted = given.model_copy(update={"template": template_of(given, *parts)})
    loaded, tokenizer = load_with_adapter(ref, adapter, wanted.weights, wanted.device)
    if output is None:
        return _evaluate(loaded, tokenizer, wanted, parts, None)
    path = expanded(output)
    asked = measured(ref, adapter, given)
    beside = {"template": wanted.template, "settings_sha256": settings_fingerprint(*parts)}
    journal = Journal(journal_path(path), {**asked, **beside}) if wanted.generates else None
    evaluation = _evaluate(loaded, tokenizer, wanted, parts, journal)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**asked, **evaluation.as_data()})
    if journal is not None:
        journal.close()
    logger.info("wrote %s", path)
    return evaluation


def _check_output(output: Path, config: EvaluateConfig) -> None:
    """Raise InputError where figures could not be written at the end, or would replace the data."""
    if output.is_dir() or journal_path(output).is_dir():
        raise InputError(f"the output must be a file, got the folder {output}; name such as {output}/figures.json")
    if output.exists() and not output.is_file():  # /dev/null: a rename would put a file in its place
        raise InputError(f"the output must be a file, got {output}, which is none; name such as figures.json")
    if output.resolve() == expanded(config.data).resolve():
        raise InputError(f"the output must be another file than the data, got {output} for both")
    try:
        place = next(folder for folder in output.absolute().parents if folder.exists())  # the others are made
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"the output must be a file that can be written, got {output}: {error.strerror}") from None


def measured(model: ModelRef, adapter: str | Path | None, config: EvaluateConfig) -> dict[str, Any]:
    """Return what names a measurement: its configuration and the fingerprints of what is measured, on what."""
    return {
        **settings_and_data(config),
        "model_fingerprint": model.fingerprint,
        "adapter_fingerprint": weights_fingerprint(Path(adapter)) if adapter else None,
    }


def settings_and_data(config: EvaluateConfig) -> dict[str, Any]:
    """Return what a measurement is of but for the model: settings, with the number format it is held in, and data."""
    return {
        "config": {**as_data(config), "dtype": config.weights},
        "data_sha256": source_fingerprint(config.data),
    }


def _evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateConfig,
    parts: Sequence[Path],
    journal: Journal | None,
) -> Evaluation:
    """Measure a loaded model; `parts` are the folders whose records name its training data."""
    keep_casts(model)  # PEFT freezes what an adapter is put on
    if config.task == "harness":
        evaluation = run_harness(model, tokenizer, config)
        return mark_seen(evaluation, [record[ASKED] for record in evaluation.records], training_data(*parts))
    with autocast(config.precision, device_of(model)):
        if config.task not in ACCURACY_TASKS:
            return evaluate_task(model, tokenizer, config)
        examples = load_task_examples(tokenizer, config)
        evaluation = evaluate_examples(model, tokenizer, examples, config, journal)
    return mark_seen(evaluation, ids_of(examples), training_data(*parts))


def parts_of(model: ModelRef, adapter: str | Path | None) -> list[Path]:
    """Return the folders of what is measured: the adapter where there is one, then the model."""
    return [*([Path(adapter)] if adapter is not None else []), model.folder]


def template_of(config: EvaluateConfig, *parts: Path) -> str:
    """Return the template to ask in: the one named, else that of the first record that has one, else the task's."""
    found = TEMPLATE if config.task in (*ANSWER_FORMS, "harness") else DEFAULT_TEMPLATE
    for part in reversed(parts):
        found = adapter_template(part, found)
    return config.template or found


def adapter_template(adapter: str | Path | None, default: str = DEFAULT_TEMPLATE) -> str:
    """Return the template an adapter, or a model it was merged into, was trained with; the default without a record."""
    record = find_record(Path(adapter)) if adapter is not None else None
    content = read_json(record) if record is not None else {}
    if not isinstance(content, dict):
        raise InputError(f"{record} must be the record that shears wrote, it is {str(content)[:40]}")
    config = content.get("config")
    template = content.get("template") or (config.get("template") if isinstance(config, dict) else None)
    return template if isinstance(template, str) and template in TEMPLATES else default
