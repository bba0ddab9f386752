"""Which ranks are trained: strategies of drawing a rank configuration, functions of (seed, place) alone.

A place is a step, a process and a row, so that the draws depend neither on the order of the data nor on how a step is
split into forwards, and resuming goes on with the same sequence. Uniform is the paper's (Shears, section 3.2).
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
class Place:
    """An optimizer step, a process, and a row: the number of an example in the step, over all processes."""

    step: int
    process: int = 0
    row: int = 0


Reach = Literal["step", "process", "example"]
Draw = Callable[[SearchSpace, int, Place], RankConfig]


def uniform(space: SearchSpace, seed: int, place: Place) -> RankConfig:
    """One random configuration a step."""
    return space.random(random.Random(f"ranks/{seed}/{place.step}"))


def per_process(space: SearchSpace, seed: int, place: Place) -> RankConfig:
    """One random configuration a step and process: as many as there are processes, at no extra cost."""
    return space.random(random.Random(f"ranks/{seed}/{place.step}/process {place.process}"))


def per_example(space: SearchSpace, seed: int, place: Place) -> RankConfig:
    """One random configuration an example."""
    return space.random(random.Random(f"ranks/{seed}/{place.step}/row {place.row}"))


def maximal(space: SearchSpace, seed: int, place: Place) -> RankConfig:
    """The largest ranks always: plain LoRA, to be cut afterwards (see reorder.py)."""
    return space.maximal()


def sandwich(space: SearchSpace, seed: int, place: Place) -> RankConfig:
    """A quarter of the examples at the largest ranks, a quarter at the smallest, the others at random.

    After the sandwich rule of slimmable networks (Yu and Huang, 2019), with rows of one batch in place of three
    forwards.
    """
    match (place.step + place.row) % 4:
        case 0:
            return space.maximal()
        case 1:
            return space.minimal()
        case _:
            return per_example(space, seed, place)


@dataclass(frozen=True)
class Sampling:
    """A strategy on a space; what shares one draw is a step, a process in it, or an example.

    Over the first `curriculum` steps the smaller ranks join in, one after the other, largest first.
    """

    space: SearchSpace
    draw: Draw
    reach: Reach
    seed: int
    curriculum: int = 0

    @property
    def by_step(self) -> bool:
        """Tell whether all examples of a step have the same configuration."""
        return self.reach == "step" or self.space.size == 1

    @property
    def by_example(self) -> bool:
        """Tell whether every row of a batch has its own configuration; in a space of one, no row needs a mask."""
        return self.reach == "example" and self.space.size > 1

    def config(self, place: Place) -> RankConfig:
        """Return the ranks to train at a place."""
        return self.draw(self._allowed(place.step), self.seed, place)

    def _allowed(self, step: int) -> SearchSpace:
        if step >= self.curriculum:
            return self.space
        groups = self.space.ranks.items()
        return replace(
            self.space, ranks={name: ranks[: 1 + step * len(ranks) // self.curriculum] for name, ranks in groups}
        )


STRATEGIES: Mapping[str, tuple[Draw, Reach]] = MappingProxyType(
    {
        "uniform": (uniform, "step"),
        "maximal": (maximal, "step"),
        "per-process": (per_process, "process"),
        "per-example": (per_example, "example"),
        "sandwich": (sandwich, "example"),
    }
)


def sampling(name: str, space: SearchSpace, seed: int, curriculum: int = 0) -> Sampling:
    """Return the strategy of that name."""
    draw, reach = STRATEGIES[name]
    return Sampling(space, draw, reach, seed, curriculum)


class NLSCallback(TrainerCallback):
    """Neural Low-rank adapter Search: one rank configuration per optimizer step, never inside a forward.

    Strategies that give every example its own need to know the rows of a batch, as `train` (CompletionTrainer) does:
    such a trainer says so by `trainer_draws`, and InputError comes where no other would draw. So it does where several
    processes are to have ranks of their own and DDP would give them those of the first.
    """

    def __init__(
        self, elastic: ElasticAdapter, seed: int = 0, strategy: Sampling | None = None, *, trainer_draws: bool = False
    ) -> None:
        self.elastic, self.trainer_draws = elastic, trainer_draws
        self.strategy = strategy or sampling("uniform", elastic.space, seed)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a strategy by example that nobody would draw, and one by process that DDP would undo."""
        if self.strategy.by_example and not self.trainer_draws:
            raise InputError(
                "the strategy of NLSCallback must draw ranks by step or by process, got one by example; take uniform, "
                "or shears.train, whose trainer knows the examples"
            )
        by_process = not (self.strategy.by_step or self.strategy.by_example)
        if by_process and args.world_size > 1 and args.ddp_broadcast_buffers is not False:
            raise InputError(
                "ranks by process need TrainingArguments(ddp_broadcast_buffers=False), else all processes train those "
                f"of the first; got {args.ddp_broadcast_buffers}"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the ranks of this step."""
        if not self.strategy.by_example:
            self.elastic.activate(self.strategy.config(Place(state.global_step, args.process_index)))

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
