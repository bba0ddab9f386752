"""The rivals: PEFT's LoRA in transformers' and TRL's trainers, without this project's code.

`PLAIN` is the recipe of PEFT's documentation: a step in one padded batch, every logit computed. The others accumulate
four batches of four rows; none recomputes in the backward pass. The rows come in the order in which they are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
BATCH_SIZE = 16  # examples in an optimizer step, in every recipe compared with these
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How a rival trains."""

    micro_batch: int = 4
    """Rows in a forward."""
    grouped: bool = True
    """Whether it takes the rows in batches of similar lengths."""
    completions: bool = False
    """Whether logits are computed from the first completion of a batch on, by a collator of a few lines."""
    padding_free: bool = False
    """Whether TRL's SFTTrainer trains, with the rows of a forward in one row."""


RIVALS = {
    "plain PEFT": Recipe(micro_batch=BATCH_SIZE, grouped=False),
    "PEFT, grouped": Recipe(),
    "PEFT, grouped, completions": Recipe(completions=True),
    "TRL, padding-free": Recipe(grouped=False, padding_free=True),
}
PLAIN, _, COMPLETIONS, _ = RIVALS


class CompletionCollator(DataCollatorForSeq2Seq):
    """Pads on the left, and asks the model for the logits from the first completion of the batch on."""

    def __call__(self, features: Any, return_tensors: str | None = None) -> dict[str, Any]:
        """Return the batch; its labels have as many columns as there are logits."""
        batch = super().__call__(features, return_tensors)
        first = int((batch["labels"] != -100).any(dim=0).nonzero()[0]) - 1  # its logits predict the first label
        labels = batch["labels"][:, first:]
        return {**batch, "labels": labels, "logits_to_keep": labels.shape[1]}


def plain_trainer(
    base: str, rows: Sequence[dict[str, list[int]]], output: Path, recipe: Recipe, *, bf16: bool
) -> Trainer:
    """Return a Trainer over the rows (input_ids; labels, -100 before the completion), to be taken in their order.

    `bf16` holds the base in bf16 and computes under autocast; else both are float32.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, dtype=dtype)
    model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS, task_type="CAUSAL_LM"))
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": BATCH_SIZE // recipe.micro_batch,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "train_sampling_strategy": "sequential",
        "bf16": bf16,
        "activation_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if recipe.padding_free:
        config = SFTConfig(**arguments, padding_free=True, max_length=None)
        trainer: Trainer = SFTTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer
        )
    else:
        tokenizer.padding_side = "left" if recipe.completions else tokenizer.padding_side
        collator = (CompletionCollator if recipe.completions else DataCollatorForSeq2Seq)(tokenizer)
        trainer = Trainer(model=model, args=TrainingArguments(**arguments), data_collator=collator, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer
