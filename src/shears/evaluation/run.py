"""The evaluation stage: load a model, with or without an adapter, measure it and write the figures."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from shears.adapt.ranks import ranks_name
from shears.config import EvaluateConfig
from shears.config.evaluate import ANSWER_FORMS, TEMPLATE
from shears.config.resolve import build
from shears.data.prompts import DEFAULT_TEMPLATE, TEMPLATES
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import training_data
from shears.evaluation.curve import curve
from shears.evaluation.journal import Journal, journal_path, settings_fingerprint
from shears.evaluation.records import Evaluation
from shears.evaluation.subject import Subject, open_subject
from shears.evaluation.tasks.registry import check_data, evaluate_task
from shears.models.devices import autocast, device_of, keep_casts
from shears.models.ref import AnyModel, ModelRef, resolve_with
from shears.records.artifacts import as_data, find_record, read_json, weights_fingerprint, write_json
from shears.records.paths import expanded

logger = logging.getLogger(__name__)
TRANSFORMERS = "transformers"


def evaluate(
    model: AnyModel, output: str | Path | None = None, adapter: str | None = None, **config: Any
) -> Evaluation:
    """Measure a model, with or without an adapter, on a task; write the figures to `output` if it is given.

    Keywords are those of EvaluateConfig (`task`, `data`, ...). The file holds no times, so equal inputs give equal
    bytes. Until the file is complete, generated texts are kept in `OUTPUT.partial`; the same call after a kill
    continues from them. With `ranks`, the adapter is a super-adapter; ranks "all" gives the evaluation at its largest
    rank with the curve of all of them (`curve`).
    """
    given = build(EvaluateConfig, "evaluate", config)
    path = None if output is None else expanded(output)
    if path is not None:
        _check_output(path, given)
    if given.ranks is not None and adapter is None:
        raise InputError(f"ranks needs a super-adapter, got ranks {given.ranks} and no adapter; name it with --adapter")
    check_data(given)
    ref = resolve_with(model, adapter, given.weights)
    parts = parts_of(ref, adapter)
    settings = given.model_copy(update={"template": template_of(given, *parts)})
    subject = open_subject(ref, adapter, settings)
    identity = measured(ref, adapter, given) if path is not None else {}
    also = {"template": settings.template, "settings_sha256": settings_fingerprint(*parts)}
    keep_casts(subject.model)  # PEFT freezes the base model, whose weights autocast would cast at every forward
    evaluations: dict[int | None, Evaluation] = {}
    journals: list[Journal] = []
    for rank, ranks in subject.ranks.items():
        subject.activate(ranks)
        journal = None
        if path is not None and settings.generates:
            at = {} if ranks is None else {"ranks": dict(ranks)}
            journals.append(journal := Journal(_journal_path(path, rank), {**identity, **also, **at, **_by(subject)}))
        evaluations[rank] = _evaluated(subject, settings, journal, parts)
    evaluation = _joined(subject, evaluations)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**identity, **_ranks_of(subject), **_answered_by(subject, settings), **evaluation.as_data()})
        logger.info("wrote %s", path)
    for journal in journals:
        journal.close()
    return evaluation


def _evaluated(
    subject: Subject, settings: EvaluateConfig, journal: Journal | None, parts: Sequence[Path]
) -> Evaluation:
    own_autocast = settings.task == "harness"  # lm-eval opens it
    with nullcontext() if own_autocast else autocast(settings.precision, device_of(subject.model)):
        return evaluate_task(
            subject.model, subject.tokenizer, settings, journal, training_data(*parts), subject.backend
        )


def _joined(subject: Subject, evaluations: Mapping[int | None, Evaluation]) -> Evaluation:
    """Return the only evaluation, or those of all ranks as a curve."""
    if None in evaluations:
        return evaluations[None]
    assert subject.elastic is not None, "only an elastic adapter is measured at several ranks"
    parameters = {
        rank: subject.elastic.num_parameters(ranks)
        for rank, ranks in subject.ranks.items()
        if rank is not None and ranks is not None
    }
    return curve({rank: each for rank, each in evaluations.items() if rank is not None}, parameters)


def _journal_path(path: Path, rank: int | None) -> Path:
    return journal_path(path if rank is None else path.with_name(f"{path.name}.rank{rank}"))


def _by(subject: Subject) -> dict[str, Any]:
    """Return what a journal says of the backend: those of earlier versions, which name none, are of transformers."""
    return {} if subject.backend is None else {"backend": "native", **subject.values}


def _answered_by(subject: Subject, settings: EvaluateConfig) -> dict[str, Any]:
    """Return what a record says of the backend of generated answers, and of a package's number format."""
    if not settings.generates:
        return {}
    return {"backend": TRANSFORMERS if subject.backend is None else "native", **subject.values}


def _ranks_of(subject: Subject) -> dict[str, Any]:
    """Return the ranks of a single configuration."""
    ranks = subject.ranks.get(None)
    return {} if ranks is None else {"ranks": dict(ranks)}


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


def measured(model: ModelRef, adapter: str | Path | None, config: EvaluateConfig) -> dict[str, Any]:
    """Return what identifies a measurement: its settings and the fingerprints of data, model and adapter."""
    return {
        **settings_and_data(config),
        "model_fingerprint": model.fingerprint,
        "adapter_fingerprint": weights_fingerprint(Path(adapter)) if adapter else None,
    }


def settings_and_data(config: EvaluateConfig) -> dict[str, Any]:
    """Return what identifies a measurement beside the model: settings, with the resolved dtype, and the data."""
    return {
        "config": {**recorded(config), "dtype": config.weights},
        "data_sha256": source_fingerprint(config.data),
    }


def recorded(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings as a record holds them: no columns and ranks unless some are named.

    The record says at its top which backend answered, so the setting is left out.
    """
    data = {key: value for key, value in as_data(config).items() if key != "backend"}
    if config.ranks is not None:
        data["ranks"] = ranks_name(config.ranks)
    return {key: value for key, value in data.items() if value or key not in ("columns", "ranks")}


def answered_as_asked(record: Mapping[str, Any], config: EvaluateConfig) -> bool:
    """Return whether the backend that made a record is one that the settings allow; earlier ones were transformers."""
    return config.backend in ("auto", record.get("backend", TRANSFORMERS)) or not config.generates


def parts_of(model: ModelRef, adapter: str | Path | None) -> list[Path]:
    """Return the folders that are measured: the adapter, if there is one, then the model."""
    return [*([Path(adapter)] if adapter is not None else []), model.folder]


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
