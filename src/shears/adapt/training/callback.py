"""The callback that makes any `transformers.Trainer` train a super-adapter."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.sampling import Place, Sampling, sampling
from shears.errors import InputError


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
