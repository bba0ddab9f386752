"""The Trainer of the frozen sparse model: completion-only logits, packed rows, ranks by example, order of examples.

B examples of a forward.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.sampling import RankSampling, RowPosition
from shears.adapt.space import RankConfig
from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.properties import num_positions
from shears.training.batches import PACK_TOKENS, ignores_padding, keeps_apart, pack, pad, padding
from shears.training.losses import TokenLosses, packed_predictions, padded_predictions, piecewise_losses, takes_pieces
from shears.training.teaching import Teaching

BATCHES_PER_POOL = 16  # examples are sorted by length within pools this large: little padding, still a random mix
BLANK = -1  # the number of an example without labels, which fills up the last batch of several processes


class NumberedExamples(Dataset[tuple[int, Tokenized]]):
    """Training examples with their numbers; the number BLANK gives two tokens without labels."""

    def __init__(self, rows: Sequence[Tokenized]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tokenized]:
        if index == BLANK:
            return BLANK, Tokenized(self.rows[0].input_ids[:1] * 2, [IGNORED, IGNORED])
        return index, self.rows[index]


class LengthBucketSampler(Sampler[int]):
    """Yields indices so that consecutive runs of `batch_size` have similar lengths; `set_epoch` reshuffles them.

    Equal lengths give a plain shuffle. At the end, BLANK fills up to a multiple of `multiple`. The order is a function
    of (seed, epoch).
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, multiple: int = 1) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.missing = -len(lengths) % multiple

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.missing

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"order/{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        size = self.batch_size * BATCHES_PER_POOL
        pools = [sorted(order[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(order), size)]
        batches = [pool[i : i + self.batch_size] for pool in pools for i in range(0, len(pool), self.batch_size)]
        # only the last pool can end in a short batch; it must stay last, since a loader cuts equal runs
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        for batch in batches + short:
            yield from batch
        yield from [BLANK] * self.missing


@dataclass(frozen=True)
class Collator:
    """Makes a batch of numbered examples: packed into rows of `capacity` tokens, or padded if `capacity` is None.

    `behind` puts the padding behind the examples, for models that do not ignore it. `limit` is the most tokens that a
    row may have: the model's positions.
    """

    pad_id: int
    capacity: int | None
    behind: bool = False
    limit: int | None = None

    def __call__(self, numbered: Sequence[tuple[int, Tokenized]]) -> dict[str, Tensor]:
        """Return the batch, with `numbers`, the examples' numbers in the training set."""
        rows = [row for _, row in numbered]
        if self.capacity is None:
            batch = pad(rows, self.pad_id, behind=self.behind)
        else:
            batch = pack(rows, self.capacity, self.pad_id, self.limit)
        return {**batch, "numbers": torch.tensor([number for number, _ in numbered])}


def collator_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, packing: bool) -> Collator:
    """Return the collator whose batches a model computes correctly: packed where it keeps examples apart."""
    packed = packing and keeps_apart(model)
    behind = not packed and not ignores_padding(model)
    return Collator(padding(tokenizer), PACK_TOKENS if packed else None, behind, num_positions(model))


class ExampleLoss(NamedTuple):
    """The loss of a training example (nats per labelled token) and the ranks that it was computed with."""

    example: int
    loss: float
    tokens: int
    ranks: tuple[int, ...]

    def as_data(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return {**self._asdict(), "loss": round(self.loss, 5), "ranks": list(self.ranks)}


class StepTrainer(Trainer):
    """A Trainer with our order of examples, bucketed by `lengths`, and figures of every optimizer step.

    A subclass computes the loss as a sum over the tokens of the whole step, and adds to the step's figures.
    """

    def __init__(self, *, lengths: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lengths = lengths
        self.model_accepts_loss_kwargs = True  # makes Trainer count the step's labels and not divide again
        self.in_pieces = not self.args.torch_compile and takes_pieces(kwargs["model"])
        self.add_callback(_EpochOrder(self))
        self.begin_step()

    def begin_step(self) -> None:
        """Reset the figures of the step."""
        self.step_loss = 0.0
        self.step_tokens = 0
        self.gradient_norm = 0.0

    def step_figures(self) -> tuple[float, int, dict[str, Any]]:
        """Return the step's loss, its tokens, and what else its line in the log says, over all processes."""
        own = (self.step_loss, self.step_tokens, self._own_details())
        parts = [own] if self.accelerator.num_processes == 1 else gather_object([own])
        details = self._details([part[2] for part in parts])
        return sum(part[0] for part in parts), sum(part[1] for part in parts), details

    def _own_details(self) -> Any:
        """Return what this process knows of the step beside loss and tokens."""
        return None

    def _details(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Return keys of the step's line in the log from the details of all processes."""
        return {}

    def save_state(self) -> None:
        """Save the state after the last step as a checkpoint, in all processes."""
        self._save_checkpoint(self.model_wrapped, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)  # of all processes, before the clipping
        self.gradient_norm = float(norm)
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        per_forward = self.args.train_batch_size * self.accelerator.num_processes
        size = per_forward * self.args.gradient_accumulation_steps
        multiple = per_forward if self.accelerator.num_processes > 1 else 1
        self.order = LengthBucketSampler(self.lengths, size, self.args.seed, multiple)
        return self.order

    def _scaler_scale(self) -> float:
        """Return what accelerate multiplies the loss with, so that fp16 holds small gradients; 1 without a scaler."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())


class CompletionTrainer(StepTrainer):
    """A trainer whose loss is the mean over the optimizer step's completion tokens, however they are split.

    A `strategy` by example draws the ranks here; otherwise NLSCallback has activated those of the step.
    """

    teaching: Teaching | None = None
    """A teacher, whose predictions the loss of training also counts."""

    def __init__(self, *, elastic: ElasticAdapter, strategy: RankSampling, **kwargs: Any) -> None:
        self.elastic = elastic
        self.strategy = strategy
        super().__init__(**kwargs)

    def begin_step(self) -> None:
        """Reset the figures of the step."""
        super().begin_step()
        self.step_examples: list[ExampleLoss] = []
        self._forwards = 0

    def _own_details(self) -> list[ExampleLoss]:
        return self.step_examples

    def _details(self, parts: Sequence[list[ExampleLoss]]) -> dict[str, Any]:
        """Return the step's ranks, or its examples if their ranks differ."""
        if self.strategy.by_step:
            return {"ranks": dict(self.elastic.active or {})}
        return {"examples": [example.as_data() for part in parts for example in part]}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the summed loss of this forward over the number of labelled tokens in the whole step."""
        numbers: list[int] = inputs["numbers"].tolist()
        configs = self._draw(len(numbers)) if self.strategy.by_example else []
        labelled = (inputs["labels"][:, 1:] != IGNORED).sum()
        total = max(int(num_items_in_batch if num_items_in_batch is not None else labelled), 1)
        scale = self.accelerator.num_processes / total * self._scaler_scale()
        losses, counts = self._example_losses(model, inputs, len(numbers), configs, scale)
        self.step_loss += (losses.detach().sum() / total).item()
        self.step_tokens += num_tokens(inputs)
        if not self.strategy.by_step:
            self._note(numbers, losses.detach() / counts.clamp(min=1), counts, configs)
        self._forwards += 1
        # DDP averages the gradients of the processes, and the step's loss is their sum
        scaled: Tensor = losses.sum() / total * self.accelerator.num_processes
        return scaled

    def _draw(self, count: int) -> list[RankConfig]:
        """Draw the ranks of this forward's examples, the same for any number of processes and forwards a step."""
        forward = self._forwards * self.accelerator.num_processes + self.accelerator.process_index
        first = forward * self.args.train_batch_size
        step = self.state.global_step
        return [self.strategy.config(RowPosition(step, row=row)) for row in range(first, first + count)]

    def _example_losses(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        count: int,
        configs: Sequence[RankConfig],
        scale: float = 1.0,
    ) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """Return each example's summed loss, to be differentiated with the weight `scale`, and its labelled tokens."""
        if configs:
            self.elastic.activate_rows(configs, inputs.get("examples"))
        losses, targets, rows = self._token_losses(model, inputs, scale)
        sums = losses.new_zeros(count).index_add(0, rows, losses)
        return sums, torch.bincount(rows[targets != IGNORED], minlength=count)

    def _token_losses(self, model: nn.Module, inputs: Mapping[str, Tensor], scale: float) -> TokenLosses:
        if self.teaching is not None and model.training:  # a validation measures the labels' loss
            with self.accelerator.autocast():
                return self.teaching.losses(model, inputs, scale, in_pieces=self.in_pieces)
        if self.in_pieces:
            batch = {name: tensor for name, tensor in inputs.items() if name != "numbers"}
            with self.accelerator.autocast():  # prepared models switch it on in their own forward alone
                return piecewise_losses(model, batch, scale)
        predict = packed_predictions if "examples" in inputs else padded_predictions
        predictions = predict(model, inputs)
        return TokenLosses(predictions.losses(), predictions.targets, predictions.rows)

    def _note(self, numbers: Sequence[int], losses: Tensor, counts: Tensor, configs: Sequence[RankConfig]) -> None:
        if not configs:  # every example of this process has the active configuration
            assert self.elastic.active is not None
            configs = [self.elastic.active] * len(numbers)
        figures = zip(numbers, losses.tolist(), counts.tolist(), configs, strict=True)
        self.step_examples += [
            ExampleLoss(number, loss, tokens, tuple(ranks.values()))
            for number, loss, tokens, ranks in figures
            if number != BLANK
        ]


class _EpochOrder(TrainerCallback):
    """Sets the epoch whose order of examples comes next.

    Trainer and accelerate set it too, but not through every wrapper: several processes that resumed in the middle of an
    epoch continued in the order of the first epoch.
    """

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Choose the order before the first batch is drawn."""
        self.trainer.order.set_epoch(int(state.epoch or 0))


def num_tokens(inputs: Mapping[str, Tensor]) -> int:
    """Return the number of tokens of this forward, without padding and blank examples."""
    real = inputs["numbers"] != BLANK
    if "examples" not in inputs:
        return int(inputs["attention_mask"][real].sum())
    return int((real[inputs["examples"]] & (inputs["examples"] >= 0)).sum())
