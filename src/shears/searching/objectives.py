"""From a super-adapter and examples to the figures of a rank configuration."""

from collections.abc import Callable

import numpy as np

from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig
from shears.config import EvaluateConfig, SearchConfig
from shears.data.examples import load_examples, tokenize_all
from shears.evaluation.continuous import open_native_ranks, wanted_for
from shears.evaluation.scoring.score import plainly
from shears.evaluation.scoring.scorers import LossScorer
from shears.evaluation.tasks.registry import evaluate_examples
from shears.models.devices import autocast, device_of
from shears.models.properties import within_context
from shears.records.figures import CUT
from shears.searching.outcome import Figures, Goal, Measured
from shears.training.batches import padding

Measure = Callable[[RankConfig], Measured]


def open_quality(
    adapter: SuperAdapter, settings: SearchConfig, quality: str, data: str, limit: int | None = None
) -> Measure:
    """Return a function that measures `loss` or `accuracy` on examples; InputError for unusable ones."""
    opened = _open_accuracy if quality == "accuracy" else _open_loss
    return opened(adapter, settings, data, limit)


def _open_loss(adapter: SuperAdapter, settings: SearchConfig, data: str, limit: int | None) -> Measure:
    """Measure the loss over completion tokens, in nats.

    Precision `auto` is fp32 here: one rank changes the loss by less than bf16 rounds.
    """
    examples = load_examples(data, adapter.record["template"], adapter.tokenizer, limit, columns=settings.columns)
    longest = within_context(adapter.model.get_base_model(), adapter.record["config"]["max_length"])
    rows = tokenize_all(examples, adapter.tokenizer, longest)
    scorer = LossScorer(adapter.model, rows, padding(adapter.tokenizer), settings.batch_size)
    precision = "fp32" if settings.precision == "auto" else settings.precision

    def measure(ranks: RankConfig) -> Measured:
        adapter.elastic.activate(ranks)
        with autocast(precision, device_of(adapter.model)):
            return Measured(scorer.measure(plainly).numpy(), scorer.weights.double().cpu().numpy())

    return measure


def _open_accuracy(adapter: SuperAdapter, settings: SearchConfig, data: str, limit: int | None) -> Measure:
    """Measure the share of right answers; the native decoder generates them where it covers the model."""
    template = adapter.record["template"]
    examples = load_examples(data, template, adapter.tokenizer, limit, columns=settings.columns)
    shared = {name: getattr(settings, name) for name in ("batch_size", "max_new_tokens", "precision", "backend")}
    task = EvaluateConfig.model_validate({"task": settings.task, "data": data, **shared})
    task = task.model_copy(update={"template": template})
    native = open_native_ranks(adapter.elastic, wanted_for(task)) if task.generates else None

    def measure(ranks: RankConfig) -> Measured:
        adapter.elastic.activate(ranks)
        backend = None if native is None else native.at(ranks)
        with autocast(settings.precision, device_of(adapter.model)):
            evaluation = evaluate_examples(adapter.model, adapter.tokenizer, examples, task, backend=backend)
        right = np.array([record["correct"] for record in evaluation.records], dtype=np.float64)
        num_cut = evaluation.details.get(CUT)
        return Measured(right, np.ones_like(right), None if num_cut is None else int(num_cut))

    return measure


def open_objective(adapter: SuperAdapter, settings: SearchConfig, goal: Goal) -> Callable[[RankConfig], Figures]:
    """Return the function that a search minimises: from ranks to the figures on validation examples.

    A configuration whose size breaks a bound is not measured.
    """
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
