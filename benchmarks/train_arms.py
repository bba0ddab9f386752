"""The arms that `benchmarks.train_speed` compares: the plain recipe and ours, on one base and the same examples."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.plain_peft import BATCH_SIZE, LEARNING_RATE, plain_trainer
from shears.adapt.prepare import prepare
from shears.config import TrainConfig
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.models.devices import resolved_precision
from shears.models.load import load_tokenizer
from shears.models.ref import resolve
from shears.training.loop import fit
from shears.training.trainer import LengthBucketSampler

PLAIN, CHECKPOINTED = "plain PEFT", "plain PEFT, gradient checkpointing"
LORA, HOOKLESS = "LoRA, packed", "LoRA, packed, hooks off"
NLS, SPARSE = "NLS uniform, packed", "SparsePEFT, packed"
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    CHECKPOINTED: {},
    "LoRA, padded in length buckets": {"ranks": 32, "packing": False},
    LORA: {"ranks": 32},
    HOOKLESS: {"ranks": 32},  # LoRA has the hooks that mask ranks even with one rank; this arm removes them
    NLS: {},
    "NLS uniform, packed, nothing recomputed": {"recompute": False},
    "NLS uniform, packed, gradient checkpointing": {"gradient_checkpointing": True},
    "NLS uniform, packed, two forwards": {"micro_batch_size": 8},  # gradients accumulate: less memory
    "nested, packed": {"sampling": "nested"},
    SPARSE: {"sparse_adapter": True},
}


@dataclass(frozen=True)
class Job:
    """What every arm trains on: a base and a file of examples, for `rounds` passes; and a folder to work in."""

    base: str
    data: str
    rounds: int
    folder: str

    def settings(self, arm: str) -> TrainConfig:
        """Return the configuration of one of our arms."""
        longest = max(len(row.input_ids) for row in self.rows())
        return TrainConfig.model_validate(
            {"data": self.data, "epochs": self.rounds, "learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE,
             "max_length": max(512, longest), "save_steps": 10**6, "warmup_steps": 0, "device": "cpu",
             "sampling": "uniform", **ARMS[arm]}
        )  # fmt: skip

    def rows(self) -> list[Tokenized]:
        """Return the tokenized examples."""
        tokenizer = load_tokenizer(self.base)
        return tokenize_all(load_examples(self.data, "question", tokenizer), tokenizer, max_length=10**6)

    def order(self) -> list[int]:
        """Return the examples' numbers in the order in which our packed arms take them."""
        sampler = LengthBucketSampler([1] * len(self.rows()), BATCH_SIZE, seed=0)
        numbers: list[int] = []
        for epoch in range(self.rounds):
            sampler.set_epoch(epoch)
            numbers += sampler
        return numbers


def loaded(arm: str, job: Job) -> Callable[[], object]:
    """Load an arm's model and data; return the function that trains it."""
    settings = job.settings(arm)
    work = Path(job.folder) / arm
    work.mkdir()
    if arm in (PLAIN, CHECKPOINTED):
        rows = [asdict(row) for row in job.rows()]
        bf16 = resolved_precision(settings.precision, "cpu") == "bf16"
        ordered = [rows[number] for number in job.order()]
        trainer = plain_trainer(job.base, ordered, work, bf16=bf16, checkpointing=arm == CHECKPOINTED)
        _read(trainer.model)
        return trainer.train
    prepared = prepare(resolve(job.base), settings)
    _read(prepared.model)
    if arm == HOOKLESS:
        for hook in prepared.elastic._hooks:
            hook.remove()
    return partial(fit, prepared, work, settings)


def _read(model: nn.Module | None) -> None:
    """Read every weight into memory: the files are only mapped."""
    for parameter in model.parameters() if model is not None else ():
        parameter.detach().sum()


def train(arm: str, job: Job) -> None:
    """Load and train an arm without printing anything."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft 0.21 reads what transformers 5.24 renamed
    loaded(arm, job)()


def num_tokens(row: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the approximate number of tokens of an example."""
    return len(tokenizer(row["prompt"] + row["completion"])["input_ids"])


def lengthened(rows: Sequence[dict[str, str]], length: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Return every k-th row with the rows before it, solved, in its prompt; k gives about `length` tokens."""
    each = max(round(length / mean(num_tokens(row, tokenizer) for row in rows)), 1)
    texts = [row["prompt"] + row["completion"] for row in rows]
    return [
        {**rows[last], "prompt": "\n\n".join([*texts[last - each + 1 : last], rows[last]["prompt"]])}
        for last in range(each - 1, len(rows), each)
    ]
