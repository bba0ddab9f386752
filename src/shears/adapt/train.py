"""Train a super-adapter on a frozen sparse model: PEFT's LoRA, transformers' Trainer, one callback of ours."""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D

from shears.adapt.callback import NLSCallback
from shears.adapt.checkpoints import MarkWhole, cut_log, last_whole_checkpoint
from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.groups import build_space, target_modules
from shears.adapt.space import SearchSpace
from shears.adapt.trainer import CompletionTrainer, StepLog
from shears.artifacts import (
    SEARCH_SPACE,
    as_data,
    read_json,
    weights_fingerprint,
    working_folder,
    write_json,
)
from shears.data.collate import pad_left
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.data.fingerprints import rows_fingerprint
from shears.models import load_model, load_tokenizer, model_folder, pick_device, resolved_precision
from shears.progress import meter
from shears.recipe import TrainConfig
from shears.resolve import build
from shears.version import __version__

logger = logging.getLogger(__name__)
LOG = "training_log.jsonl"


class Ready(NamedTuple):
    """All that training needs, loaded."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    elastic: ElasticAdapter
    rows: Sequence[Tokenized]


def train(model: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Train a super-adapter on `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `TrainConfig`. `resume` continues an interrupted run of the same configuration from
    its last whole checkpoint. InputError for what cannot be used, or when the loss stops being finite.
    """
    settings, output, started = build(TrainConfig, "train", config), Path(output), time.monotonic()
    asked = {"model": str(model), **as_data(settings)}
    with working_folder(output, asked, resume=resume) as work:
        folder = model_folder(model)
        base = weights_fingerprint(folder)
        ready = _prepare(model, settings)
        _fit(ready, work, settings)
        _save(ready, work, settings, {"base": _name_of(model), "base_fingerprint": base})
        shutil.rmtree(work / "checkpoints")  # last: until all is saved, they are what a resume goes on from
    logger.info("trained %s in %.0f s", output, time.monotonic() - started)
    return output


def _name_of(model: str | Path) -> str:
    """Folders by their absolute path, so that the adapter finds its base from anywhere; names as they are."""
    return str(Path(model).resolve()) if Path(model).exists() else str(model)


def _prepare(model: str | Path, settings: TrainConfig) -> Ready:
    tokenizer = load_tokenizer(model)
    examples = load_examples(settings.data, settings.template, tokenizer)
    rows = tokenize_all(examples, tokenizer, settings.max_length, settings.train_on)
    base = load_model(model, device=settings.device)
    space = build_space(base, settings.groups, settings.ranks)
    peft_model = add_lora(base, space, settings)
    elastic = make_elastic(peft_model, space)
    logger.info("%d groups of ranks %s: %s sub-adapters", len(space.ranks), settings.ranks, f"{space.size:.3g}")
    return Ready(peft_model, tokenizer, elastic, rows)


def add_lora(model: PreTrainedModel, space: SearchSpace, settings: TrainConfig) -> PeftModel:
    """Return the model with a fresh LoRA adapter of the largest rank on the space's linears, the base frozen."""
    targets = target_modules(model, space)
    conv = any(isinstance(model.get_submodule(name), Conv1D) for names in space.modules.values() for name in names)
    lora = LoraConfig(
        r=space.max_rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=conv,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return get_peft_model(model, lora)


def _fit(ready: Ready, work: Path, settings: TrainConfig) -> None:
    lengths = [len(row.input_ids) for row in ready.rows]
    pad = ready.tokenizer.pad_token_id
    assert isinstance(pad, int)
    trainer = CompletionTrainer(
        lengths=lengths,
        model=ready.model,
        args=_arguments(settings, work / "checkpoints"),
        train_dataset=list(ready.rows),
        data_collator=lambda rows: pad_left(rows, pad),
        callbacks=[NLSCallback(ready.elastic, settings.seed), MarkWhole()],
    )
    trainer.remove_callback(PrinterCallback)  # only the command line prints
    checkpoint = last_whole_checkpoint(work / "checkpoints")
    done = int(checkpoint.name.rsplit("-", 1)[-1]) if checkpoint else 0
    cut_log(work / LOG, done)
    steps = _num_steps(settings, len(ready.rows))
    logger.info(
        "training %d examples, %d tokens, %d steps%s", len(lengths), sum(lengths), steps, f" from {done}" * (done > 0)
    )
    with meter("train", steps, "step") as progress:
        progress.skip(done)
        trainer.add_callback(StepLog(work / LOG, trainer, ready.elastic, progress))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _num_steps(settings: TrainConfig, num_examples: int) -> int:
    per_epoch = -(-num_examples // settings.batch_size)
    return settings.max_steps or -int(-settings.epochs * per_epoch // 1)


def _arguments(settings: TrainConfig, folder: Path) -> TrainingArguments:
    precision = resolved_precision(settings.precision, pick_device(settings.device))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.forward_size,
        gradient_accumulation_steps=settings.batch_size // settings.forward_size,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        save_steps=settings.save_steps,
        save_total_limit=2,  # the one before must live until the new one is whole
        logging_strategy="no",
        report_to="none",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=pick_device(settings.device).type == "cpu",
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def _save(ready: Ready, work: Path, settings: TrainConfig, origin: dict[str, str]) -> None:
    """Write the vanilla PEFT adapter, then the record that makes the folder a super-adapter."""
    config = ready.model.peft_config["default"]
    config.base_model_name_or_path = origin["base"]
    ready.model.save_pretrained(str(work))
    _sort_targets(work / "adapter_config.json")
    space, elastic = ready.elastic.space, ready.elastic
    record = {
        "shears_version": __version__,
        "config": as_data(settings),
        **origin,
        "data_fingerprint": rows_fingerprint(ready.rows),
        "fingerprint": weights_fingerprint(work),
        "alpha": settings.alpha,
        "max_rank": space.max_rank,
        "template": settings.template,
        "num_steps": json.loads((work / LOG).read_text().splitlines()[-1])["step"],
        "num_parameters": {
            name: elastic.num_parameters(getattr(space, name)()) for name in ("maximal", "heuristic", "minimal")
        },
        "groups": {
            name: {"ranks": list(ranks), "modules": list(space.modules[name])} for name, ranks in space.ranks.items()
        },
    }
    write_json(work / SEARCH_SPACE, record)


def _sort_targets(path: Path) -> None:
    """PEFT writes target_modules in the order of a set, another one in every process."""
    config = read_json(path)
    config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)
