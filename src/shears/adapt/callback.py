"""The callback that makes any `transformers.Trainer` train a super-adapter."""

import random
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace


def config_of_step(space: SearchSpace, seed: int, step: int) -> RankConfig:
    """Return the rank configuration of an optimizer step, drawn uniformly from (seed, step) alone.

    Independent of data order and of every other draw, so that resuming at any step goes on with the same sequence.
    """
    return space.random(random.Random(f"ranks/{seed}/{step}"))


class NLSCallback(TrainerCallback):
    """Neural Low-rank adapter Search: one random rank configuration per optimizer step, never inside a forward."""

    def __init__(self, elastic: ElasticAdapter, seed: int = 0) -> None:
        self.elastic, self.seed = elastic, seed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the ranks of this step."""
        self.elastic.activate(config_of_step(self.elastic.space, self.seed, state.global_step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate the heuristic sub-adapter, not whatever was drawn last."""
        if control.should_evaluate:
            self.elastic.activate(self.elastic.space.heuristic())

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the heuristic sub-adapter, not whatever was drawn last."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the largest ranks active."""
        self.elastic.activate(self.elastic.space.maximal())
