"""The plain recipe: PEFT's LoRA in transformers' Trainer as their documentation shows it, without this project's code.

Every logit is computed, batches are padded to their longest example, the loss is the model's own.
"""

from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
BATCH_SIZE = 16  # examples in an optimizer step, in every recipe compared with this one
LEARNING_RATE = 1e-3


def plain_trainer(
    base: str, rows: Sequence[dict[str, list[int]]], output: Path, *, bf16: bool, checkpointing: bool = False
) -> Trainer:
    """Return a Trainer over the rows (input_ids; labels, -100 before the completion), to be taken in their order.

    `checkpointing` recomputes every block in the backward pass.
    """
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS, task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        train_sampling_strategy="sequential",  # the rows come shuffled
        bf16=bf16,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(base, trust_remote_code=False)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
