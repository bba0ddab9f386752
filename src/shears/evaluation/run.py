"""The verb `evaluate`: load a model, with or without an adapter, measure it, write figures."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shears.checkpoints.without_code import build_causal_model, known_config
from shears.config import EvaluateConfig
from shears.config.evaluate_options import ANSWER_FORMS, NEVER_CHAT, TEMPLATE
from shears.config.fields import CHAT
from shears.config.resolve import build
from shears.data.forms import trained_template
from shears.data.rows import source_fingerprint
from shears.data.templates import DEFAULT_TEMPLATE
from shears.errors import InputError
from shears.evaluation.decode import wanted_for
from shears.evaluation.evaluated import Evaluation, TextJournal, journal_path, mark_seen
from shears.evaluation.tasks import Subject, check_data, evaluate_task
from shears.models.devices import autocast, computing_dtype, device_of, pick_device
from shears.models.load import load_with_adapter
from shears.models.ref import AnyModel, ModelRef, load_tokenizer, resolve_with
from shears.records.artifacts import as_data, weights_fingerprint, write_json
from shears.records.folders import check_writable
from shears.records.paths import expanded, file_fingerprint
from shears.runtime.loading import generation_settings, native_backend

SETTINGS = frozenset({".json", ".jinja", ".txt", ".model"})
"""Endings of files beside the weights that change generated texts."""


def evaluate(
    model: AnyModel, output: str | Path | None = None, adapter: str | None = None, **config: Any
) -> Evaluation:
    """Measure a model, with or without an adapter, on a task; write the figures to `output`.

    Keywords are those of EvaluateConfig (`task`, `data`, ...). Equal inputs give equal bytes. Until
    the file is complete, `OUTPUT.partial` keeps generated texts, from which the same call resumes.
    """
    given = build(EvaluateConfig, "evaluate", config)
    path = None if output is None else expanded(output)
    if path is not None:
        _check_output(path, given)
    check_data(given)
    ref = resolve_with(model, adapter, given.weights)
    settings = with_template(given, ref, adapter)
    subject = open_model(ref, adapter, settings)
    for parameter in subject.model.parameters():  # autocast caches no casts of what PEFT froze
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    if path is None:
        return _evaluated(subject, settings, ref, adapter)
    answered: dict[str, Any] = {}
    if settings.generates:
        answered = {"backend": "transformers"}
    if subject.backend is not None:
        answered = {"backend": "native", "values": subject.backend.describe()["values"]}
    identity = identity_of(ref, adapter, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings.generates:
        files = (
            file for folder in _parts(ref, adapter) for file in sorted(folder.iterdir()) if file.suffix in SETTINGS
        )
        also = {"settings_sha256": file_fingerprint(*files), **answered}
        subject = replace(subject, journal=TextJournal(journal_path(path), {**identity, **also}))
    evaluation = _evaluated(subject, settings, ref, adapter)
    write_json(path, {**identity, **answered, **evaluation.as_data()})
    journal_path(path).unlink(missing_ok=True)
    return evaluation


def _check_output(output: Path, config: EvaluateConfig) -> None:
    if output.is_dir() or (output.exists() and not output.is_file()):  # else /dev/null is replaced
        raise InputError(f"the output must be a regular file, got {output}; name a file such as metrics.json")
    if os.path.realpath(output) == os.path.realpath(expanded(config.data)):
        raise InputError(f"the output must be another file than the data, got {output} for both")
    check_writable(output)


def with_template(config: EvaluateConfig, model: ModelRef, adapter: str | Path | None) -> EvaluateConfig:
    """Return the settings with the prompt template of a model, and what follows from it."""
    is_text = config.task == "perplexity" and config.data.lower().endswith(".txt")
    if config.template is not None or is_text or config.task == "harness":
        return config.in_template(config.template)
    template = next((found for part in _parts(model, adapter) if (found := trained_template(part))), None)
    if template is None:
        has_chat = ANSWER_FORMS.get(config.task) != "label" and load_tokenizer(model).chat_template is not None
        template = CHAT if has_chat else TEMPLATE if config.task in ANSWER_FORMS else DEFAULT_TEMPLATE
    if template == CHAT and config.task in NEVER_CHAT:
        template = DEFAULT_TEMPLATE
    return config.in_template(template)


def _parts(model: ModelRef, adapter: str | Path | None) -> list[Path]:
    return [*([Path(adapter)] if adapter is not None else []), model.folder]


def open_model(ref: ModelRef, adapter: str | None, settings: EvaluateConfig) -> Subject:
    """Load what is measured; InputError for an adapter that does not fit."""
    wanted = wanted_for(settings, settings.beams)
    as_packed = (settings.precision, settings.dtype) == ("auto", "auto")  # else it is unpacked
    if settings.generates and ref.is_package and as_packed:
        if (device := pick_device(settings.device)).type != "cpu" and not wanted.obstacle:
            wanted = replace(
                wanted, obstacle=f"the native decoder runs on the CPU only, the model would be on {device}"
            )
        if (backend := native_backend(ref.package, wanted)) is not None:
            with torch.device("meta"):
                empty: Any = build_causal_model(known_config(ref.folder))
            empty.generation_config = generation_settings(ref.folder)
            return Subject(empty, load_tokenizer(ref), backend)
    dtype = settings.weights
    device = pick_device(settings.device)
    scores = not settings.generates or device.type != "cpu"
    if dtype == "auto" and scores and settings.task != "harness":  # lm-eval takes the model's own
        dtype = computing_dtype(settings.precision, device)
    model, tokenizer = load_with_adapter(ref, adapter, dtype, settings.device)
    backend = native_backend(model, wanted, consume=True) if settings.generates else None
    return Subject(model, tokenizer, backend)


def _evaluated(subject: Subject, settings: EvaluateConfig, ref: ModelRef, adapter: str | Path | None) -> Evaluation:
    own_autocast = settings.task == "harness"  # lm-eval opens it
    with nullcontext() if own_autocast else autocast(settings.precision, device_of(subject.model)):
        return mark_seen(evaluate_task(subject, settings), *_parts(ref, adapter))


def identity_of(model: ModelRef, adapter: str | Path | None, config: EvaluateConfig) -> dict[str, Any]:
    settings = {key: value for key, value in as_data(config).items() if key != "backend"}
    return {
        "config": {**settings, "dtype": config.weights},
        "data_sha256": source_fingerprint(config.data),
        "model_fingerprint": model.fingerprint,
        "adapter_fingerprint": weights_fingerprint(Path(adapter)) if adapter else None,
    }
