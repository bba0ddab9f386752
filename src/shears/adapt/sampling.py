"""Which ranks are trained: the choice for each step, and the callback that activates it.

A choice is a function of the seed and of the step alone. So it depends neither on the order of the
data nor on how a step is split into forwards, and a resumed training continues the same sequence.
"""

import random
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.config.train import SamplingName
from shears.errors import InputError


def ranks_of_step(sampling: SamplingName, space: SearchSpace, seed: int, step: int) -> RankConfig:
    """Return the ranks to train in a step: uniform draws them (Shears, section 3.2).

    maximal trains the largest, plain LoRA, whose ranks are cut afterwards (`elastic.reorder`). So
    does nested, whose elastic adapter has a diagonal that stands for the smaller ranks.
    """
    return space.random(random.Random(f"ranks/{seed}/{step}")) if sampling == "uniform" else space.maximal()


class NLSCallback(TrainerCallback):
    """Neural Low-rank adapter Search in any `transformers.Trainer`: draws ranks for each step.

    The sampling of a nested adapter is nested, that of any other one uniform by default. InputError
    for a sampling that misfits the adapter.
    """

    def __init__(self, elastic: ElasticAdapter, seed: int = 0, sampling: SamplingName | None = None) -> None:
        self.elastic = elastic
        self.seed = seed
        self.sampling: SamplingName = sampling or ("nested" if elastic.nested else "uniform")
        if (self.sampling == "nested") != elastic.nested:
            raise InputError(
                "the sampling nested and an adapter with make_elastic(..., nested=True) need each other, got the "
                f"{'adapter' if elastic.nested else 'sampling'} alone; set both"
            )

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Activate the ranks of this step."""
        self.elastic.activate(ranks_of_step(self.sampling, self.elastic.space, self.seed, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Activate the heuristic ranks before an evaluation, not those of the last draw."""
        if control.should_evaluate:
            self.elastic.activate(self.elastic.space.heuristic())

    on_epoch_end = on_step_end

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the largest ranks active."""
        self.elastic.activate(self.elastic.space.maximal())
