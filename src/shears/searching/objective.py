"""From a super-adapter to figures: what a rank configuration is worth on validation data."""

from collections.abc import Callable, Sequence

from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig
from shears.data.examples import Example, Tokenized
from shears.evaluation.score import device_of, mean_completion_loss, padding
from shears.evaluation.tasks import evaluate_examples
from shears.models import autocast
from shears.recipe import EvaluateConfig, SearchConfig
from shears.searching.strategy import ACCURACY, LOSS, PARAMETERS, Figures, Objective


def loss_objective(adapter: SuperAdapter, rows: Sequence[Tokenized], config: SearchConfig) -> Objective:
    """Return an objective that gives `loss`, the mean over all completion tokens in nats, and `parameters`."""
    pad_id = padding(adapter.tokenizer)
    return _objective(
        adapter, LOSS.quality, config, lambda: mean_completion_loss(adapter.model, rows, pad_id, config.batch_size)
    )


def accuracy_objective(adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig) -> Objective:
    """Return an objective that gives `accuracy`, the share of examples the task counts as right, and `parameters`."""
    assert config.task is not None, "SearchConfig demands a task for the accuracy"
    scoring = EvaluateConfig(
        task=config.task, data=config.data, batch_size=config.batch_size, max_new_tokens=config.max_new_tokens
    )
    return _objective(
        adapter,
        ACCURACY.quality,
        config,
        lambda: evaluate_examples(adapter.model, adapter.tokenizer, examples, scoring).value,
    )


def _objective(adapter: SuperAdapter, quality: str, config: SearchConfig, measure: Callable[[], float]) -> Objective:
    device = device_of(adapter.model)

    def evaluate(ranks: RankConfig) -> Figures:
        adapter.elastic.activate(ranks)
        with autocast(config.precision, device):
            return {quality: measure(), PARAMETERS: adapter.elastic.num_parameters(ranks)}

    return evaluate
