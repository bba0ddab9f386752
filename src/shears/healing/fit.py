"""The loop of healing: the Trainer of training with another loss."""

import logging
from pathlib import Path

from transformers import PrinterCallback

from shears.config import HealConfig
from shears.healing.prepare import Prepared
from shears.healing.recovery import recovery_rank
from shears.healing.trainer import HealingTrainer, restore
from shears.progress import meter
from shears.records.artifacts import TRAINING_LOG
from shears.training import checkpoints
from shears.training.batches import padding
from shears.training.heap import kept_heap
from shears.training.loop import last_checkpoint, recompute_between_products, train_from, training_arguments
from shears.training.step_log import StepLog
from shears.training.trainer import Collator, NumberedExamples

logger = logging.getLogger(__name__)
OPTIMIZERS = {"adamw": "adamw_torch", "adamw-8bit": "adamw_bnb_8bit"}  # their names in transformers


def fit(prepared: Prepared, work: Path, settings: HealConfig) -> None:
    """Train until the last step, from the last whole checkpoint in `work` if there is one."""
    steps = settings.num_steps
    if steps <= settings.warmup_steps:
        logger.warning(
            "warmup_steps (%d) must be below the number of steps (%d); lower warmup_steps", settings.warmup_steps, steps
        )
    trainer = _trainer(prepared, work / checkpoints.CHECKPOINTS, settings)
    checkpoint = last_checkpoint(work)
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    if checkpoint and done == steps:  # Trainer would make one more step before it stops
        restore(prepared.model, checkpoint)
        return
    logger.info(
        "healing on %d tokens in %d steps%s, of %d sequences of text",
        settings.num_sequences * settings.sequence_length, steps, f" from {done}" * (done > 0), len(prepared.rows),
    )  # fmt: skip
    with meter("heal", steps, "step") as progress:
        progress.skip(done)
        trainer.add_callback(StepLog(work / TRAINING_LOG, trainer, progress))
        with kept_heap():
            train_from(trainer, checkpoint)


def _trainer(prepared: Prepared, folder: Path, settings: HealConfig) -> HealingTrainer:
    arguments = training_arguments(settings.as_training, folder)
    arguments.optim = OPTIMIZERS[settings.optimizer]
    if settings.recompute:
        narrow = settings.rank if settings.train == "lora" else recovery_rank(prepared.model)
        recompute_between_products(prepared.model, narrow)
    trainer = HealingTrainer(
        teacher=prepared.teacher,
        settings=settings,
        lengths=[1] * len(prepared.rows),  # they are of one length
        model=prepared.model,
        args=arguments,
        train_dataset=NumberedExamples(prepared.rows),
        data_collator=Collator(padding(prepared.tokenizer), None),
        callbacks=[checkpoints.MarkWhole()],
    )
    trainer.remove_callback(PrinterCallback)  # only the command line prints
    return trainer
