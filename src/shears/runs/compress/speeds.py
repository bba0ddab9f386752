"""How long parts of the stages take on this machine: a forward pass, a training step, a pruned block, an answer."""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shears.adapt.prepare import Rows
from shears.adapt.train import train
from shears.config import CompressConfig, SparsifyConfig, TrainConfig
from shears.data.calibration import calibration_batches
from shears.data.examples import IGNORED, Tokenized
from shears.data.rows import as_json_lines, read_rows
from shears.models.blocks import decoder_blocks
from shears.models.devices import autocast, computing_dtype
from shears.models.load import load_model
from shears.models.properties import within_context
from shears.models.ref import ModelRef
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import TRAINING_TIMES, as_data
from shears.runs.compress.exam import Exam, Texts
from shears.runs.compress.recipes import BEST_METHOD, masked_for
from shears.runs.plan import quietly
from shears.sparsity.prune import sparsify_model

logger = logging.getLogger(__name__)
LENGTH = 256  # tokens of a sequence that is read
STEP_ROWS = 4  # rows in the training step
QUESTIONS = 16  # rows that are answered at most: a batch of few takes longer for each


@dataclass(frozen=True)
class Speeds:
    """Seconds that parts of the stages take.

    `load` reads the model, `forward` is a token of a forward pass, `pruning` what pruning all
    blocks takes beside forward passes, `trained` a token of a training step. The model as it came
    answers a question in `question`, a trained one in `trained_question`: it ends where the right
    answer ends.
    """

    load: float
    forward: float
    pruning: float = 0.0
    trained: float = 0.0
    question: float = 0.0
    trained_question: float = 0.0


def measured_speeds(model: ModelRef, config: CompressConfig, texts: Texts, training: Rows | None, exam: Exam) -> Speeds:
    """Return the speeds of a model; `training` are its rows to train on."""
    started = time.perf_counter()
    with quietly():
        load, forward, pruning = _reading(model, config, texts)
        trained = 0.0 if training is None else _training(model, config, texts, training.train)
        question, trained_question = (0.0, 0.0) if exam.rows is None else _answering(model, exam, training)
    logger.info("measured the speeds of this machine in %.0f s", time.perf_counter() - started)
    return Speeds(load, forward, pruning, trained, question, trained_question)


def _reading(model: ModelRef, config: CompressConfig, texts: Texts) -> tuple[float, float, float]:
    """Return the seconds of loading, of a token of a forward pass, and of pruning all blocks."""
    started = time.perf_counter()
    network = load_model(model, computing_dtype("auto", "cpu"), "cpu")
    loading = time.perf_counter() - started
    length = within_context(network, min(LENGTH, config.sequence_length))
    text = calibration_batches(str(texts.calibration), load_tokenizer(model), 2, length, 1, config.seed).batches
    batch = torch.cat([each for each in text if each.shape[1] == text[0].shape[1]])

    def forward_pass() -> None:
        with torch.no_grad(), autocast("auto", "cpu"):
            network(input_ids=batch, use_cache=False)

    forward = min(_seconds(forward_pass), _seconds(forward_pass)) / batch.numel()  # the first one warms up
    method = config.method or BEST_METHOD
    if not any(config.sparsities) or method == "magnitude":
        return loading, forward, 0.0
    blocks = decoder_blocks(network)[1]
    number = len(blocks)
    del blocks[1:]
    settings = SparsifyConfig(sparsity=max(config.sparsities), method=method)
    return loading, forward, number * _seconds(lambda: sparsify_model(network, [batch], settings))


def _training(model: ModelRef, config: CompressConfig, texts: Texts, rows: Sequence[Tokenized]) -> float:
    """Return the seconds of a token of a training step, the second one of STEP_ROWS rows."""
    size = min(STEP_ROWS, len(rows))
    source = read_rows(str(texts.calibration) if config.calibration is None else str(config.data))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text(as_json_lines(source[: 2 * size]), encoding="utf-8")
        settings = TrainConfig(
            data=str(file), batch_size=size, max_steps=2, warmup_steps=0, seed=config.seed,
            **masked_for("int4" if "int4" in config.values else "bf16"),
        )  # fmt: skip
        folder = train(model.folder, Path(scratch) / "adapter", **as_data(settings))
        seconds = float(json.loads((folder / TRAINING_TIMES).read_text().splitlines()[-1])["seconds"])
    return seconds / (size * statistics.mean(len(row.input_ids) for row in rows))


def _answering(model: ModelRef, exam: Exam, training: Rows | None) -> tuple[float, float]:
    """Return the seconds of a question to the model, and to one that ends where the right answers do."""
    rows = read_rows(str(exam.rows))
    some = [rows[number * len(rows) // QUESTIONS] for number in range(QUESTIONS)] if len(rows) > QUESTIONS else rows
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "questions.jsonl"
        file.write_text(as_json_lines(some), encoding="utf-8")
        started = time.perf_counter()
        measured = exam.answered(model, rows=file, untrained=True)
        question = (time.perf_counter() - started) / len(some)
    tokenizer = load_tokenizer(model)
    written = sum(len(tokenizer(str(record.get("output", "")))["input_ids"]) for record in measured.records)
    if training is None or not written:
        return question, question
    right = statistics.mean(sum(label != IGNORED for label in row.labels) for row in training.train)
    return question, question * min(right * len(some) / written, 1.0)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
