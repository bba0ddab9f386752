"""The verb `evaluate`: load a model, with or without an adapter, measure it, write figures."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.load import load_super_adapter
from shears.adapt.ranks import choose_ranks, ranks_name
from shears.adapt.space import RankConfig, SearchSpace
from shears.checkpoints.configuration import known_config
from shears.checkpoints.without_code import build_causal_model
from shears.config import EvaluateConfig
from shears.config.evaluate import ALL_RANKS, ANSWER_FORMS, NEVER_CHAT, TEMPLATE
from shears.config.fields import CHAT
from shears.config.resolve import build
from shears.data.calibration import has_instructions
from shears.data.prompts import DEFAULT_TEMPLATE
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import training_data
from shears.evaluation.continuous import NativeRanks, open_native_ranks, wanted_for
from shears.evaluation.curve import allowed_ranks, curve, tied
from shears.evaluation.records import (
    Evaluation,
    TextJournal,
    journal_path,
    kept_at_a_signal,
    settings_fingerprint,
)
from shears.evaluation.tasks.registry import check_data, evaluate_task
from shears.models.devices import autocast, computing_dtype, device_of, keep_casts, pick_device
from shears.models.load import load_with_adapter
from shears.models.ref import AnyModel, ModelRef, resolve_with
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import as_data, weights_fingerprint, write_json
from shears.records.folders import check_writable
from shears.records.paths import expanded
from shears.records.trained_form import trained_template
from shears.runtime.choice import native_backend
from shears.runtime.loading import generation_settings

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

logger = logging.getLogger(__name__)


@dataclass
class Subject:
    """A loaded model and its tokenizer; `backend` generates answers in place of transformers.

    With a backend, the model may be without weights. `ranks` to measure are named by the rank of
    all groups, or by None for a single configuration or none.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    backend: "NativeBackend | None" = None
    ranks: dict[int | None, RankConfig | None] = field(default_factory=lambda: {None: None})
    elastic: ElasticAdapter | None = None
    native_ranks: NativeRanks | None = None

    values: dict[str, object] = field(default_factory=dict)
    """The number format in which a package answers, as recorded; empty for other models."""

    def activate(self, ranks: RankConfig | None) -> None:
        """Measure these ranks from now on; None changes nothing."""
        if ranks is None or self.elastic is None:
            return
        self.elastic.activate(ranks)
        if self.native_ranks is not None:
            self.backend = self.native_ranks.at(ranks)


def evaluate(
    model: AnyModel, output: str | Path | None = None, adapter: str | None = None, **config: Any
) -> Evaluation:
    """Measure a model, with or without an adapter, on a task; write the figures to `output`.

    Keywords are those of EvaluateConfig (`task`, `data`, ...). Equal inputs give equal bytes. Until
    the file is complete, `OUTPUT.partial` keeps generated texts, from which the same call resumes.
    `ranks` need a super-adapter; "all" gives the evaluation at the largest with the `curve` of all.
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
    settings = asked(given, ref, adapter)
    subject = open_subject(ref, adapter, settings)
    identity = measured(ref, adapter, settings) if path is not None else {}
    also = {"template": settings.template, "settings_sha256": settings_fingerprint(*parts)}
    keep_casts(subject.model)  # PEFT freezes the base model, whose weights autocast would cast at every forward
    evaluations: dict[int | None, Evaluation] = {}
    with kept_at_a_signal() as journals:
        for rank, ranks in subject.ranks.items():
            subject.activate(ranks)
            journal = None
            if path is not None and settings.generates:
                at = {} if ranks is None else {"ranks": dict(ranks)}
                journal = TextJournal(journal_path(path, rank), {**identity, **also, **at, **_by(subject)})
                journals.append(journal)
            evaluations[rank] = _evaluated(subject, settings, journal, parts)
    evaluation = _joined(subject, evaluations)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**identity, **_about(subject, settings), **evaluation.as_data()})
        logger.info("wrote %s", path)
    for journal in journals:
        journal.close()
    return evaluation


def _evaluated(
    subject: Subject, settings: EvaluateConfig, journal: TextJournal | None, parts: Sequence[Path]
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


def _by(subject: Subject) -> dict[str, Any]:
    """Return what a journal says of the backend; it names transformers by leaving it out."""
    return {} if subject.backend is None else {"backend": "native", **subject.values}


def _about(subject: Subject, settings: EvaluateConfig) -> dict[str, Any]:
    """Return what a record says of a single configuration's ranks and of the backend."""
    ranks = subject.ranks.get(None)
    answered = {"backend": "transformers", **_by(subject)} if settings.generates else {}
    return {**({} if ranks is None else {"ranks": dict(ranks)}), **answered}


def _check_output(output: Path, config: EvaluateConfig) -> None:
    """Raise InputError if `output` cannot be written, or is the data."""
    if output.is_dir() or journal_path(output).is_dir():
        raise InputError(f"the output must be a file, got the folder {output}; name such as {output}/figures.json")
    if output.exists() and not output.is_file():  # /dev/null: a rename would put a file in its place
        raise InputError(f"the output must be a regular file, got {output}; name such as figures.json")
    if os.path.realpath(output) == os.path.realpath(expanded(config.data)):
        raise InputError(f"the output must be another file than the data, got {output} for both")
    check_writable(output)


def measured(model: ModelRef, adapter: str | Path | None, config: EvaluateConfig) -> dict[str, Any]:
    """Return what identifies a measurement: settings, and fingerprints of what is read."""
    return {
        **settings_and_data(config),
        "model_fingerprint": model.fingerprint,
        "adapter_fingerprint": weights_fingerprint(Path(adapter)) if adapter else None,
    }


def settings_and_data(config: EvaluateConfig) -> dict[str, Any]:
    """Return settings, with the resolved dtype, and the hash of the data."""
    return {
        "config": {**recorded(config), "dtype": config.weights},
        "data_sha256": source_fingerprint(config.data),
        **({} if config.shots is None else {"shots_sha256": source_fingerprint(config.shots_source[0])}),
    }


def recorded(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings of a record: without `backend`, which stands at its top, and without
    columns, ranks and shots unless some are named."""
    data = {key: value for key, value in as_data(config).items() if key != "backend"}
    if config.ranks is not None:
        data["ranks"] = ranks_name(config.ranks)
    return {key: value for key, value in data.items() if value or key not in ("columns", "ranks", "shots")}


def answered_as_asked(record: Mapping[str, Any], config: EvaluateConfig) -> bool:
    """Return whether the settings allow the backend that made a record."""
    return config.backend in ("auto", record.get("backend", "transformers")) or not config.generates


def parts_of(model: ModelRef, adapter: str | Path | None) -> list[Path]:
    """Return the folders that are measured: the adapter, if there is one, then the model."""
    return [*([Path(adapter)] if adapter is not None else []), model.folder]


def asked(config: EvaluateConfig, model: ModelRef, adapter: str | Path | None) -> EvaluateConfig:
    """Return the settings with the template in which a model is asked, and what follows from it.

    The perplexity of a text has a template only if rows of the text are instructions.
    """
    if config.task == "perplexity" and not has_instructions(config.data, config.columns):
        return config
    may_chat = config.template is None and config.shots is None
    has_chat = may_chat and load_tokenizer(model).chat_template is not None
    template = template_of(config, *parts_of(model, adapter), has_chat=has_chat)
    return config.asked_in(template)


def template_of(config: EvaluateConfig, *parts: Path, has_chat: bool = False) -> str:
    """Return the prompt template: the configured one, else a record's, else the task's.

    A task is asked as a chat if the model has a chat template (`has_chat`) and no solved examples
    are shown (`shots`), else in the prompt of its kind: the paper's for the paper's tasks. Tasks of
    labels and those of lm-eval keep the paper's prompt; equations have no form of a chat.
    """
    if config.template is not None:
        return config.template
    asks_label = ANSWER_FORMS.get(config.task) == "label" or config.task == "harness"
    other = TEMPLATE if config.task in ANSWER_FORMS else DEFAULT_TEMPLATE
    default = TEMPLATE if asks_label else CHAT if has_chat else other
    template: str = next((found for part in parts if (found := trained_template(part))), default)
    if template == CHAT and config.task in NEVER_CHAT:
        return TEMPLATE if config.task == "harness" else DEFAULT_TEMPLATE
    return template


def open_subject(ref: ModelRef, adapter: str | None, settings: EvaluateConfig) -> Subject:
    """Load what is measured; InputError for an adapter that does not fit or has no such ranks.

    The native decoder reads a package itself; of other models it takes the weights.
    """
    if settings.ranks is not None and adapter is not None:
        return _at_ranks(ref, adapter, settings)
    wanted = wanted_for(settings, settings.beams)
    as_packed = (settings.precision, settings.dtype) == ("auto", "auto")  # else its unpacked model is measured
    if settings.generates and ref.is_package and as_packed:
        if (device := pick_device(settings.device)).type != "cpu" and not wanted.obstacle:
            wanted = replace(wanted, obstacle=f"the native decoder runs on the CPU, the model would be on {device}")
        if (backend := native_backend(ref.package, wanted)) is not None:
            values = {"values": backend.describe()["values"]}
            return Subject(_without_weights(ref), load_tokenizer(ref), backend, values=values)
    dtype = settings.weights
    if dtype == "auto" and _scores(settings):
        dtype = computing_dtype(settings.precision, pick_device(settings.device))
    model, tokenizer = load_with_adapter(ref, adapter, dtype, settings.device)
    backend = native_backend(model, wanted, consume=True) if settings.generates else None
    return Subject(model, tokenizer, backend)


def _scores(settings: EvaluateConfig) -> bool:
    """Return whether texts are scored in the faster number format: lm-eval takes the model's own, as answers do."""
    return not settings.generates and settings.task != "harness"


def _without_weights(ref: ModelRef) -> nn.Module:
    with torch.device("meta"):
        model = build_causal_model(known_config(ref.folder))
    model.generation_config = generation_settings(ref.folder)
    return model


def _at_ranks(ref: ModelRef, adapter: str, settings: EvaluateConfig) -> Subject:
    loaded = load_super_adapter(adapter, str(ref.folder), settings.weights, settings.device)
    ranks = _chosen(settings.ranks or "", loaded.elastic.space, loaded.record["fingerprint"])
    native = None
    if settings.generates:
        native = open_native_ranks(loaded.elastic, wanted_for(settings, settings.beams), consume=True)
    return Subject(loaded.model, loaded.tokenizer, None, ranks, loaded.elastic, native)


def _chosen(name: str, space: SearchSpace, fingerprint: str) -> dict[int | None, RankConfig | None]:
    if name == ALL_RANKS:
        return {rank: tied(space, rank) for rank in allowed_ranks(space)}
    if name.isdecimal() and not Path(name).is_file():
        return {None: tied(space, int(name))}
    return {None: choose_ranks(name, space, fingerprint)}
