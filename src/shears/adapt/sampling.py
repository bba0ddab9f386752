"""Which ranks are trained: strategies that draw a rank configuration, and the callback that activates it.

A draw is a function of the seed and of a position (step, process, row) alone. So it depends neither on the order of
the data nor on how a step is split into forwards, and a resumed training continues the same sequence. `uniform` is
the paper's strategy (Shears, section 3.2).
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError


@dataclass(frozen=True)
class RowPosition:
    """An optimizer step, a process, and a row: the number of an example in the step, over all processes."""

    step: int
    process: int = 0
    row: int = 0


NESTED = "nested"  # the strategy that draws nothing, see `elastic`
Reach = Literal["step", "process", "example"]
Draw = Callable[[SearchSpace, int, RowPosition], RankConfig]


def uniform(space: SearchSpace, seed: int, position: RowPosition) -> RankConfig:
    """Return one random configuration per step."""
    return space.random(random.Random(f"ranks/{seed}/{position.step}"))


def per_process(space: SearchSpace, seed: int, position: RowPosition) -> RankConfig:
    """Return one random configuration per step and process; the more processes, the more are trained at no cost."""
    return space.random(random.Random(f"ranks/{seed}/{position.step}/process {position.process}"))


def per_example(space: SearchSpace, seed: int, position: RowPosition) -> RankConfig:
    """Return one random configuration per example."""
    return space.random(random.Random(f"ranks/{seed}/{position.step}/row {position.row}"))


def maximal(space: SearchSpace, seed: int, position: RowPosition) -> RankConfig:
    """Return the largest ranks: plain LoRA, whose ranks are cut after training (see `elastic.reorder`)."""
    return space.maximal()


def sandwich(space: SearchSpace, seed: int, position: RowPosition) -> RankConfig:
    """Return the largest ranks for a quarter of the examples, the smallest for a quarter, random ones for the rest.

    After the sandwich rule of slimmable networks (Yu and Huang, 2019), with rows of one batch in place of three
    forwards.
    """
    match (position.step + position.row) % 4:
        case 0:
            return space.maximal()
        case 1:
            return space.minimal()
        case _:
            return per_example(space, seed, position)


@dataclass(frozen=True)
class RankSampling:
    """A strategy on a search space; `reach` is what shares one draw: a step, a process in a step, or an example.

    Over the first `curriculum` steps the smaller ranks are added one after the other, largest first. `nested` needs an
    elastic adapter whose diagonal stands for the smaller ranks.
    """

    space: SearchSpace
    draw: Draw
    reach: Reach
    seed: int
    curriculum: int = 0
    nested: bool = False

    @property
    def by_step(self) -> bool:
        """Tell whether all examples of a step have the same configuration."""
        return self.reach == "step" or self.space.size == 1

    @property
    def by_example(self) -> bool:
        """Tell whether every row of a batch has its own configuration; False for a space of one configuration."""
        return self.reach == "example" and self.space.size > 1

    def config(self, position: RowPosition) -> RankConfig:
        """Return the ranks to train at a position."""
        return self.draw(self._allowed(position.step), self.seed, position)

    def _allowed(self, step: int) -> SearchSpace:
        if step >= self.curriculum:
            return self.space
        allowed = {
            group: ranks[: 1 + step * len(ranks) // self.curriculum] for group, ranks in self.space.ranks.items()
        }
        return replace(self.space, ranks=allowed)


STRATEGIES: Mapping[str, tuple[Draw, Reach]] = MappingProxyType(
    {
        "uniform": (uniform, "step"),
        "maximal": (maximal, "step"),
        "per-process": (per_process, "process"),
        "per-example": (per_example, "example"),
        "sandwich": (sandwich, "example"),
        NESTED: (maximal, "step"),  # the diagonal of the adapter stands for the smaller ranks
    }
)


def rank_sampling(name: str, space: SearchSpace, seed: int, curriculum: int = 0) -> RankSampling:
    """Return the strategy of that name."""
    draw, reach = STRATEGIES[name]
    return RankSampling(space, draw, reach, seed, curriculum, name == NESTED)


class NLSCallback(TrainerCallback):
    """Neural Low-rank adapter Search in any `transformers.Trainer`: draws ranks per step, never inside a forward.

    A strategy that draws per example needs a trainer that knows the rows of a batch, such as `CompletionTrainer`;
    `trainer_draws` declares that the trainer is one. InputError when training begins if a strategy per example has no
    such trainer, or if DDP would overwrite ranks per process by those of the first process.
    """

    def __init__(
        self,
        elastic: ElasticAdapter,
        seed: int = 0,
        strategy: RankSampling | None = None,
        *,
        trainer_draws: bool = False,
    ) -> None:
        self.elastic = elastic
        self.strategy = strategy or rank_sampling("uniform", elastic.space, seed)
        self.trainer_draws = trainer_draws

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Refuse a strategy whose draws this trainer would not make, would overwrite, or that misfits the adapter."""
        if self.strategy.nested != self.elastic.nested:
            raise InputError(
                "the strategy nested and an adapter with make_elastic(..., nested=True) need each other, got the "
                f"{'strategy' if self.strategy.nested else 'adapter'} alone; set both"
            )
        if self.strategy.by_example and not self.trainer_draws:
            raise InputError(
                "the strategy of NLSCallback must draw ranks by step or by process, got one by example; use uniform, "
                "or shears.train, whose trainer knows the examples"
            )
        by_process = not (self.strategy.by_step or self.strategy.by_example)
        if by_process and args.world_size > 1 and args.ddp_broadcast_buffers is not False:
            raise InputError(
                "ranks by process need TrainingArguments(ddp_broadcast_buffers=False), else every process trains the "
                f"ranks of the first; got {args.ddp_broadcast_buffers}; set it to False"
            )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Activate the ranks of this step."""
        if not self.strategy.by_example:
            self.elastic.activate(self.strategy.config(RowPosition(state.global_step, args.process_index)))

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Activate the heuristic ranks before an evaluation, not those of the last draw."""
        if control.should_evaluate:
            self.elastic.activate(self.elastic.space.heuristic())

    on_epoch_end = on_step_end

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the largest ranks active."""
        self.elastic.activate(self.elastic.space.maximal())
