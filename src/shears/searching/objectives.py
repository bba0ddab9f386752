"""From a super-adapter and examples to the figures of a rank configuration."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.adapt.super_adapter import SuperAdapter
from shears.config import EvaluateConfig, SearchConfig
from shears.data.examples import load_examples, tokenize_all
from shears.evaluation.decode import wanted_for
from shears.evaluation.likelihood import completion_nats
from shears.evaluation.tasks import Subject, evaluate_examples
from shears.models.devices import autocast, device_of
from shears.models.load import num_positions
from shears.models.sparse_adapter import is_sparse
from shears.records.figures import CUT
from shears.runtime.backend import Backend
from shears.runtime.loading import Wanted, native_backend
from shears.runtime.native.model_source import updates_of
from shears.searching.outcome import Figures, Goal, Measured
from shears.training.batches import padding

Measure = Callable[[RankConfig], Measured]


def open_quality(
    adapter: SuperAdapter, settings: SearchConfig, quality: str, data: str, limit: int | None = None
) -> Measure:
    """Return a measure of `loss` or `accuracy` on examples; InputError for unusable ones."""
    return (_open_accuracy if quality == "accuracy" else _open_loss)(adapter, settings, data, limit)


def _open_loss(adapter: SuperAdapter, settings: SearchConfig, data: str, limit: int | None) -> Measure:
    """Measure the loss over completion tokens, in nats.

    Precision `auto` is fp32 on a CPU: one rank changes the loss by less than bf16 rounds.
    """
    examples = load_examples(data, adapter.record["template"], adapter.tokenizer, limit, columns=settings.columns)
    longest = adapter.record["config"]["max_length"]
    longest = min(longest, num_positions(adapter.model) or longest)
    rows = tokenize_all(examples, adapter.tokenizer, longest)
    pad_id = padding(adapter.tokenizer)
    device = device_of(adapter.model)
    precision = "fp32" if (settings.precision, device.type) == ("auto", "cpu") else settings.precision

    def measure(ranks: RankConfig) -> Measured:
        adapter.elastic.activate(ranks)
        with autocast(precision, device):
            losses, counts = completion_nats(adapter.model, rows, pad_id, settings.batch_size)
        return Measured(losses.numpy(), counts.numpy())

    return measure


def _open_accuracy(adapter: SuperAdapter, settings: SearchConfig, data: str, limit: int | None) -> Measure:
    """Measure accuracy; the native decoder generates the answers where it supports the model."""
    template = adapter.record["template"]
    examples = load_examples(data, template, adapter.tokenizer, limit, columns=settings.columns)
    shared = {name: getattr(settings, name) for name in ("batch_size", "max_new_tokens", "precision", "backend")}
    task = EvaluateConfig.model_validate({"task": settings.task, "data": data, **shared})
    task = task.model_copy(update={"template": template})
    native = _native_at(adapter.elastic, wanted_for(task)) if task.generates else None

    def measure(ranks: RankConfig) -> Measured:
        adapter.elastic.activate(ranks)
        backend = None if native is None else native(ranks)
        with autocast(settings.precision, device_of(adapter.model)):
            evaluation = evaluate_examples(Subject(adapter.model, adapter.tokenizer, backend), examples, task)
        right = np.array([record["correct"] for record in evaluation.records], dtype=np.float64)
        num_cut = evaluation.details.get(CUT)
        return Measured(right, np.ones_like(right), None if num_cut is None else int(num_cut))

    return measure


def _native_at(elastic: ElasticAdapter, wanted: Wanted) -> Callable[[RankConfig], Backend | None] | None:
    """Return a function from active ranks to the native decoder; None for an unsupported model."""
    backend = native_backend(elastic.model, wanted)
    if backend is None:
        return None
    if is_sparse(elastic.model):
        del backend  # frees its memory
        return lambda _: native_backend(elastic.model, replace(wanted, backend="native"))
    updates = updates_of(elastic.model)
    groups = {name: group for group, names in elastic.space.modules.items() for name in names}

    def at(ranks: RankConfig) -> Backend:
        cut = {}
        for name, update in updates.items():
            rank = ranks[groups[name]]
            scaling = update.scaling * elastic.space.factor(groups[name], rank)
            cut[name] = replace(update, a=update.a[:rank], b=update.b[:, :rank], scaling=scaling)
        backend.adapt(cut)
        return backend

    return at


def open_objective(adapter: SuperAdapter, settings: SearchConfig, goal: Goal) -> Callable[[RankConfig], Figures]:
    qualities = {
        name: open_quality(adapter, settings, name, settings.data, settings.limit)
        for name in ("accuracy", "loss")
        if name in settings.figures
    }

    def figures_of(ranks: RankConfig) -> Figures:
        figures: dict[str, int | float] = {"parameters": adapter.elastic.num_parameters(ranks)}
        if goal.key(figures)[0] > 0.0:
            return figures
        for name, measure in qualities.items():
            measured = measure(ranks)
            figures[name] = measured.figure
            if measured.num_cut is not None:
                figures[CUT] = measured.num_cut
        return figures

    return figures_of
