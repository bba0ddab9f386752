"""What each part of the training road is worth in time and memory, beside plain PEFT, by interleaved steps.

    python -m benchmarks.training_ablation MODEL ROWS.jsonl [--steps 8] [--precision fp32] [--heal] [--arms "ARM; ARM"]

MODEL is a folder of a (sparse) model, ROWS hold prompt and completion. Every arm takes the same examples in the same
order, 16 a step, in a process of its own; one makes a step while the others wait, in a new order at each step. Seconds
are those of the processor (all threads); the first step is a warm-up. A peak is the process's resident memory from its
start, with pages of mapped files. A part stays in the road if it is worth 10 % of the time or 25 % of the memory.
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

import shears
from shears.adapt.train import read_training_rows
from shears.config import TrainConfig
from shears.models.devices import resolved_precision
from shears.models.ref import resolve
from shears.training.batches import EpochOrder

BATCH, MICRO = 16, 4
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
ARMS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, recomputed": {"recompute": True},
    "ours, a step in one forward": {"micro_batch_size": BATCH},
}
PLAIN = "plain PEFT, in fours"


class Turn(TrainerCallback):
    """Waits for its turn before every step; sends the processor's seconds of the step and the peak so far."""

    def __init__(self, baton: Connection) -> None:
        self.baton = baton
        self.started = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Report a step, at the beginning that everything is loaded; wait for the next turn."""
        seconds = time.process_time() - self.started
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        self.baton.send((seconds, int(peak.split()[1]) * 1024))
        self.baton.recv()
        self.started = time.process_time()

    on_train_begin = on_step_end


def plain(asked: argparse.Namespace, folder: str) -> None:
    """Train by PEFT and transformers' Trainer: every logit is computed, nothing of ours runs in a step."""
    rows = read_training_rows(resolve(asked.model), TrainConfig(data=asked.rows)).train
    order = list(EpochOrder([len(row.input_ids) for row in rows], BATCH, 0))
    bf16 = resolved_precision(asked.precision, "cpu") == "bf16"
    dtype: Any = "auto" if bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype, trust_remote_code=False)
    adapted = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS, task_type="CAUSAL_LM"))
    arguments = transformers.TrainingArguments(
        folder, max_steps=asked.steps, per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO,
        train_sampling_strategy="sequential", bf16=bf16, use_cpu=True, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    examples: Any = [{"input_ids": rows[number].input_ids, "labels": rows[number].labels} for number in order]
    collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(asked.model, trust_remote_code=False))
    Trainer(model=adapted, args=arguments, data_collator=collator, train_dataset=examples).train()


def ours(asked: argparse.Namespace, folder: str, **changes: Any) -> None:
    """Train, or heal, with some settings changed."""
    settings = {"data": asked.rows, "precision": asked.precision, "device": "cpu", "warmup_steps": 0, **changes}
    if asked.heal:
        shears.heal(asked.model, f"{folder}/out", tokens=asked.steps * BATCH * 512, batch_size=BATCH, **settings)
    else:
        shears.train(asked.model, f"{folder}/out", ranks=32, max_steps=asked.steps, **settings)


def take_part(arm: Callable[[], None], baton: Connection) -> None:
    """Run an arm whose Trainer waits for its turns."""
    callbacks: list[Any] = DEFAULT_CALLBACKS
    callbacks.append(Turn(baton))
    transformers.logging.set_verbosity_error()
    arm()


def measure(arms: dict[str, Callable[[], None]], steps: int) -> dict[str, list[tuple[float, int]]]:
    """Return seconds and peak after every step of each arm."""
    context = multiprocessing.get_context("spawn")
    batons: dict[str, Connection] = {}
    processes = []
    for name, arm in arms.items():
        batons[name], theirs = context.Pipe()
        processes.append(context.Process(target=take_part, args=(arm, theirs), daemon=True))
        processes[-1].start()
        batons[name].recv()  # loads while the others wait
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in arms}
    for step in range(steps):
        for name in random.Random(step).sample(list(arms), len(arms)):
            batons[name].send(None)
            taken[name].append(batons[name].recv())
    for process in processes:
        process.terminate()
    return taken


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--arms", default="; ".join((PLAIN, *ARMS)), help="fewer of them where memory is short")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Callable[[], None]] = {} if asked.heal else {PLAIN: partial(plain, asked, folder)}
        for at, name in enumerate(ARMS):
            arms[name] = partial(ours, asked, f"{folder}/{at}", **ARMS[name])
        taken = measure({name: arm for name, arm in arms.items() if name in asked.arms.split("; ")}, asked.steps)
    best = median(seconds for seconds, _ in taken["ours"][1:])
    print("| arm | seconds a step | to ours | peak, GB |\n| --- | --- | --- | --- |")
    for name, steps in taken.items():
        seconds = median(each for each, _ in steps[1:])
        print(f"| {name} | {seconds:.2f} | {seconds / best:.2f} | {steps[-1][1] / 1e9:.2f} |")


if __name__ == "__main__":
    main()
