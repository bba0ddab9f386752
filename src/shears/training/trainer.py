"""transformers' Trainer with our batches, order of examples, loss and checkpoints.

B examples of a forward.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerState

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.properties import ignores_padding, keeps_apart, num_positions, takes_pieces
from shears.training.batches import PACK_TOKENS, pack, pad
from shears.training.distillation import Loss

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
    """Yields indices, `batch_size` of similar lengths in a run; `set_epoch` reshuffles them.

    Equal lengths give a plain shuffle. At the end, BLANK fills up to a multiple of `multiple`. The
    order is a function of (seed, epoch).
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
        # only the last pool can end in a short batch; it must stay last, since a loader cuts equal
        # runs
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        for batch in batches + short:
            yield from batch
        yield from [BLANK] * self.missing


@dataclass(frozen=True)
class Collator:
    """Makes a batch of numbered examples: packed into rows of `capacity` tokens, or padded.

    `behind` puts the padding behind the examples, for models that do not ignore it. `limit` is the
    most tokens that a row may have: the model's positions.
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


def collator_of(model: nn.Module, pad_id: int, *, packing: bool = True) -> Collator:
    """Return the collator whose batches a model computes correctly, packed if it can."""
    packed = packing and keeps_apart(model)
    behind = not packed and not ignores_padding(model)
    return Collator(pad_id, PACK_TOKENS if packed else None, behind, num_positions(model))


@runtime_checkable
class TrainedWeights(Protocol):
    """What is trained in a model, and how a checkpoint holds it."""

    file: str
    """The name of the file in a checkpoint."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        ...

    @property
    def narrow(self) -> int:
        """The largest inner dimension of the products that are trained; 0 without any."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by name."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Give the model tensors that `tensors` returned."""
        ...


class StepTrainer(Trainer):
    """A Trainer whose loss is the mean over a step's labelled tokens, however they are split.

    Examples are bucketed by `lengths`. A checkpoint holds the trained weights alone.
    """

    def __init__(self, *, lengths: list[int], weights: TrainedWeights, loss: Loss, **kwargs: Any) -> None:
        super().__init__(model=weights.model, **kwargs)
        self.lengths = lengths
        self.weights = weights
        self.loss = loss
        self.model_accepts_loss_kwargs = True  # makes Trainer count the step's labels and not divide again
        self.in_pieces = takes_pieces(weights.model)
        self.add_callback(_EpochOrder(self))
        self.begin_step()

    def begin_step(self) -> None:
        """Reset the figures of the step."""
        self.step_loss = 0.0
        self.step_tokens = 0
        self.gradient_norm = 0.0

    def step_figures(self) -> tuple[float, int]:
        """Return the step's loss and its tokens over all processes."""
        own = (self.step_loss, self.step_tokens)
        parts = [own] if self.accelerator.num_processes == 1 else gather_object([own])
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    def save_state(self) -> None:
        """Save the state after the last step as a checkpoint, in all processes."""
        self._save_checkpoint(self.model_wrapped, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def restore(self, checkpoint: Path) -> None:
        """Give the model the trained weights of a checkpoint."""
        self.weights.load(load_file(checkpoint / self.weights.file))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the summed loss of this forward over the labelled tokens of the whole step."""
        labelled = (inputs["labels"][:, 1:] != IGNORED).sum()
        total = max(int(num_items_in_batch if num_items_in_batch is not None else labelled), 1)
        processes = self.accelerator.num_processes
        scaler = self.accelerator.scaler  # multiplies the loss, so that fp16 holds small gradients
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        losses, _ = self.example_losses(model, inputs, processes / total * scale)
        self.step_loss += (losses.detach().sum() / total).item()
        self.step_tokens += num_tokens(inputs)
        # DDP averages the gradients of the processes, and the step's loss is their sum
        scaled: Tensor = losses.sum() / total * processes
        return scaled

    def example_losses(
        self, model: nn.Module, inputs: Mapping[str, Tensor], scale: float = 1.0
    ) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """Return each example's summed loss, differentiated with `scale`, and its labelled tokens."""
        count = len(inputs["numbers"])
        with self.accelerator.autocast():  # prepared models switch it on in their own forward alone
            losses, targets, rows = self.loss.of_tokens(model, inputs, scale, in_pieces=self.in_pieces)
        sums = losses.new_zeros(count).index_add(0, rows, losses)
        return sums, torch.bincount(rows[targets != IGNORED], minlength=count)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.weights.tensors().items()}
        save_file(tensors, folder / self.weights.file, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.restore(Path(resume_from_checkpoint))

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


class _EpochOrder(TrainerCallback):
    """Sets the epoch whose order of examples comes next.

    Trainer and accelerate set it too, but not through every wrapper: several processes that resumed
    in the middle of an epoch continued in the order of the first epoch.
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
