"""What the stages of a compression take: four parts are timed once here, the rest is arithmetic."""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from shears.adapt.train import Rows, train
from shears.config import SparsifyConfig
from shears.config.compress_options import EffortName
from shears.data.calibration import calibration_batches
from shears.data.examples import IGNORED
from shears.data.rows import as_json_lines, read_rows
from shears.data.tokens import encode
from shears.models.blocks import decoder_blocks
from shears.models.devices import autocast, computing_dtype
from shears.models.load import load_model
from shears.models.ref import ModelRef, load_tokenizer
from shears.records.artifacts import TRAINING_TIMES, as_data
from shears.runs.candidates import BATCH, FEWEST_STEPS, Amounts, Candidate, Effort, training_for, training_of
from shears.runs.exam import Exam, Texts
from shears.runs.plan import quietly
from shears.sparsity.prune import sparsify_model

logger = logging.getLogger(__name__)
TEACHER = "teacher"  # the folder of the dense model's adapter
STEP_ROWS = 4  # rows at least in the training step that is timed
STEP_TOKENS = 1024  # tokens there, if rows are short: an update of few tokens is dear for each
QUESTIONS = 8  # rows that are answered at most: a batch of few takes longer for each
AS_IT_CAME = 100  # rows that the original model answers at most: untrained answers are long
SLOW = 10.0  # tokens a second of a model whose speed is not predicted
DECODED = 130  # tokens that a measured speed takes, its warm-up included
PRUNING_PASSES = 1.5  # forward passes of a calibration token: blocks read it twice, no head does
ROUNDING_PASSES = 4.0  # the same of rounding with the text's inputs: both models, rounded and not
GRADIENT_TOKENS = 4 * 3.0  # sequences of sensitivity, in forward passes of a token
HEAL_PASSES = 5.0  # the teacher's pass, the student's forward and backward, its weights' gradients


class Speeds(NamedTuple):
    """Seconds that parts of the stages take.

    `forward` is a token of a forward pass, `pruning` ADMM on all blocks, `trained` a token of a
    training step. The original model answers a question in `question`, a trained one in `answer`.
    """

    load: float
    forward: float
    pruning: float
    trained: float = 0.0
    question: float = 0.0
    answer: float = 0.0


def measured_speeds(
    model: ModelRef, effort: Effort, first: Candidate, texts: Texts, training: Rows | None, exam: Exam
) -> Speeds:
    """Return the speeds of making a candidate of a model; `training` are its rows to train on."""
    started = time.perf_counter()
    with quietly():
        rounds = first.values == "int4"  # rounding with the text's inputs takes as long as pruning
        load, forward, pruning = _reading(model, effort, first.sparsity or 0.5 * rounds, texts)
        speeds = Speeds(load, forward, pruning)
        if training is not None:
            right = statistics.fmean(sum(label != IGNORED for label in row.labels) for row in training.train)
            began = time.perf_counter()
            answered = exam.answered(model, limit=QUESTIONS, untrained=True)
            question = (time.perf_counter() - began) / answered.n
            answers = encode([str(each.get("output", "")) for each in answered.records], load_tokenizer(model))
            written = statistics.fmean(map(len, answers))
            answer = question * min(right / written, 1.0) if written else question
            speeds = speeds._replace(
                trained=_training(model, effort, first, texts, training), question=question, answer=answer
            )
    logger.info("measured the speed of this machine in %.0f s", time.perf_counter() - started)
    return speeds


def _reading(model: ModelRef, effort: Effort, sparsity: float, texts: Texts) -> tuple[float, float, float]:
    started = time.perf_counter()
    network = load_model(model, computing_dtype("auto", "cpu"), "cpu")
    loading = time.perf_counter() - started
    tokenizer = load_tokenizer(model)
    text = calibration_batches(str(texts.calibration), tokenizer, 2, effort.sequence_length, 1, 0).batches
    batch = torch.cat([each for each in text if each.shape[1] == text[0].shape[1]])

    def forward_pass() -> None:
        with torch.no_grad(), autocast("auto", "cpu"):
            network(input_ids=batch, use_cache=False)

    forward = min(_seconds(forward_pass), _seconds(forward_pass)) / batch.numel()  # the first one warms up
    if not sparsity:
        return loading, forward, 0.0
    blocks = decoder_blocks(network)[1]
    number = len(blocks)
    del blocks[1:]
    settings = SparsifyConfig(sparsity=sparsity, method=effort.method)
    return loading, forward, number * _seconds(lambda: sparsify_model(network, [batch], settings))


def timed_rows(count: int, length: float) -> int:
    """Return how many of `count` rows of a mean `length` the timed step has; two are timed."""
    return min(max(STEP_ROWS, int(STEP_TOKENS / length)), BATCH, max(count // 2, 1))


def _training(model: ModelRef, effort: Effort, first: Candidate, texts: Texts, rows: Rows) -> float:
    length = statistics.fmean(len(row.input_ids) for row in rows.train)
    size = timed_rows(len(rows.train), length)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text(as_json_lines(read_rows(str(texts.calibration))[: 2 * size]), encoding="utf-8")
        two = training_of(replace(effort, steps=2), file, batch_size=size, **training_for(first))
        folder = train(model.folder, Path(scratch) / "adapter", **as_data(two))
        seconds = float(json.loads((folder / TRAINING_TIMES).read_text().splitlines()[-1])["seconds"])
    return seconds / (size * length)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def stage_seconds(effort: Effort, first: Candidate, speeds: Speeds, amounts: Amounts, windows: int) -> dict[str, float]:
    """Return the seconds of the stages that make and measure `first`, by name, in their order."""
    reading = 2 * speeds.load
    tokens = min(effort.num_samples * effort.sequence_length, amounts.text_tokens)
    held_out = min(windows * effort.sequence_length, amounts.held_out_tokens)
    loss = speeds.load + held_out * speeds.forward + DECODED / (first.tokens_per_second or SLOW)
    training = reading + effort.steps * BATCH * amounts.row_tokens * speeds.trained
    learning = training + effort.teaches * amounts.rows * amounts.row_tokens * speeds.forward
    own = {"sparsify": reading}
    if first.sparsity:
        own["sparsify"] += PRUNING_PASSES * tokens * speeds.forward
        if effort.method == "admm":
            own["sparsify"] += speeds.pruning + GRADIENT_TOKENS * effort.sequence_length * speeds.forward
        if effort.heal:
            own["heal"] = HEAL_PASSES * effort.heal * speeds.forward + 3 * speeds.load
    if effort.steps:
        own["train"] = learning
    own["export"] = reading
    rounding = ROUNDING_PASSES * tokens * speeds.forward + speeds.pruning
    if first.values == "int4" and not (first.sparsity and {"heal", "train"} & own.keys()):
        own["export"] += rounding
    own["measure"] = loss + amounts.questions * speeds.answer
    stages = {"dense": loss + min(amounts.questions, AS_IT_CAME) * speeds.question}
    if effort.teaches:
        stages[TEACHER] = training
    stages |= own
    if effort.rival and first.sparsity:
        stages["rival"] = learning + own["export"] + rounding + own["measure"]
    return stages


def fitted(found: Mapping[EffortName, Effort], total: Callable[[Effort], float], left: float) -> Effort:
    """Return the effort whose total seconds fit into `left`; the least one if none does.

    It is the most thorough one that has the steps of the next lower one, with as many of its own
    steps as fit. Where nothing else fits, wanda replaces admm, then the rival is left out.
    """
    quick = found["quick"]
    cheap = replace(quick, method="wanda")
    ladder = [
        (found["thorough"], found["usual"].steps), (found["usual"], quick.steps), (quick, FEWEST_STEPS),
        (cheap, FEWEST_STEPS), (replace(cheap, rival=False), FEWEST_STEPS),
    ]  # fmt: skip
    for effort, fewest in ladder:
        least = replace(effort, steps=min(fewest, effort.steps))
        spare = left - total(least)
        if spare >= 0:
            break
    step = total(replace(least, steps=least.steps + 1)) - total(least)
    more = int(max(spare, 0.0) / step) if step else 0
    return replace(least, steps=min(least.steps + more, effort.steps))


def left_out(effort: Effort, whole: Effort, over: float) -> list[str]:
    """Return what an effort leaves out of the most thorough one; `over`: seconds past the time."""
    parts = {
        f"{whole.steps - effort.steps} of {whole.steps} training steps": effort.steps < whole.steps,
        f"{whole.num_samples - effort.num_samples} of {whole.num_samples} calibration sequences":
            effort.num_samples < whole.num_samples,
        f"{whole.heal - effort.heal:,} of {whole.heal:,} tokens of healing": effort.heal < whole.heal,
        "the teacher": whole.teaches and not effort.teaches,
        f"pruning by {whole.method} ({effort.method} is faster)": effort.method != whole.method,
        "the comparison with an unpruned int4 model": whole.rival and not effort.rival,
        f"it still takes about {over / 60:.0f} min longer than --time": over > 0,
    }  # fmt: skip
    return [what for what, is_so in parts.items() if is_so]


def sentences(effort: Effort, first: Candidate, amounts: Amounts) -> dict[str, str]:
    epochs = effort.steps * BATCH / max(amounts.rows, 1)
    training = f"for {effort.steps} steps of {BATCH} rows ({epochs:.1f} epochs of {amounts.rows:,} rows)"
    samples = min(effort.num_samples, max(amounts.text_tokens // effort.sequence_length, 1))
    text = f"{samples} sequences of {effort.sequence_length} tokens"
    rounded = ", rounded to int4," * (first.values == "int4")
    tested = f", and tests it on {amounts.questions:,} rows" * (amounts.questions > 0)
    fewer = f" and tests it on {min(amounts.questions, AS_IT_CAME)} rows" * (amounts.questions > 0)
    zeros = f"prunes {100 * first.sparsity:g} % of the weights by {effort.method}, calibrated on {text}"
    on_int4 = " on weights rounded to int4" * (first.values == "int4" and first.sparsity > 0)
    return {
        "plan": "measures the speed of this machine",
        "dense": f"measures the loss of the original model{fewer}",
        TEACHER: f"trains LoRA on the original model {training}",
        "sparsify": zeros if first.sparsity else "copies the original weights",
        "heal": f"trains the kept weights{rounded} on {effort.heal:,} tokens to predict what the original predicts",
        "train": f"trains an adapter{on_int4} {training}{', with the teacher' * effort.teaches}",
        "export": f"{'merges the adapter and ' * (effort.steps > 0)}writes a package with {first.values} weights",
        "measure": f"measures size, speed and loss of the package{tested}",
        "rival": "fine-tunes the unpruned model, rounds it to int4 and measures the same",
    }
