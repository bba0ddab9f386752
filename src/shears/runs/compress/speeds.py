"""How long parts of the stages take on this machine: short probes of the real model and code."""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from shears.adapt.prepare import Rows
from shears.adapt.train import train
from shears.config import CompressConfig, SparsifyConfig, TrainConfig
from shears.data.calibration import calibration_batches
from shears.data.example import IGNORED, Row, Tokenized
from shears.data.rows import as_json_lines, read_rows
from shears.models.blocks import decoder_blocks
from shears.models.devices import autocast, computing_dtype
from shears.models.load import load_model
from shears.models.properties import within_context
from shears.models.ref import ModelRef
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import TRAINING_TIMES, as_data
from shears.runs.compress.measuring import Questions
from shears.runs.compress.recipes import BEST_METHOD, masked_for
from shears.runs.compress.texts import Texts
from shears.runs.plan import quietly
from shears.sparsity.prune import sparsify_model

logger = logging.getLogger(__name__)
LENGTH = 256  # tokens of a sequence that a probe reads
FORWARD_TOKENS = 512
LONGEST_STEP = 30.0  # seconds that the larger step may take, as a forward pass predicts it
LONGEST_BLOCK = 8.0  # seconds of pruning a block behind which it isn't repeated
LARGE_STEP = 4  # rows in the larger step of two
TRAINED_IN_FORWARDS = 4  # forward passes that a trained token costs, roughly
QUESTIONS = 16  # rows that are answered at most: a batch of few takes longer for each


@dataclass(frozen=True)
class Speeds:
    """Seconds that parts of the stages take.

    `load` reads the model, `forward` is a token of a forward pass, `pruning` what pruning all
    blocks takes beside forward passes. A training step takes `step`, and `trained` for each token.
    The model as it came answers a question in `question`, a trained one in `trained_question`: it
    ends where the right answer ends.
    """

    load: float
    forward: float
    pruning: float = 0.0
    step: float = 0.0
    trained: float = 0.0
    question: float = 0.0
    trained_question: float = 0.0

    def as_data(self) -> dict[str, float]:
        """Return the seconds with three digits, as a record holds them."""
        return {name: float(f"{value:.3g}") for name, value in asdict(self).items()}


def measured_speeds(
    model: ModelRef, config: CompressConfig, texts: Texts, training: Rows | None, asked: Questions | None
) -> Speeds:
    """Return the speeds of a model; `training` are its rows to train on, `asked` those to answer."""
    started = time.perf_counter()
    with quietly():
        load, forward, pruning = _reading(model, config, texts)
    logger.info("speeds: %.0f tokens/s forward, %.0f s of pruning beside", 1 / forward, pruning)
    step, trained, question, trained_question = 0.0, 0.0, 0.0, 0.0
    if training is not None:
        with quietly():
            step, trained = _training(model, config, texts, training.train, forward)
        logger.info("speeds: a training step takes %.1f s, and %.0f tokens/s", step, 1 / trained)
    if asked is not None:
        with quietly():
            question, trained_question = _answering(model, asked, training)
        logger.info("speeds: an answer takes %.1f s, %.1f s after training", question, trained_question)
    logger.info("measured the speeds of this machine in %.0f s", time.perf_counter() - started)
    return Speeds(load, forward, pruning, step, trained, question, trained_question)


def _reading(model: ModelRef, config: CompressConfig, texts: Texts) -> tuple[float, float, float]:
    """Return the seconds of loading, of a token of a forward pass, and of pruning all blocks."""
    started = time.perf_counter()
    network = load_model(model, computing_dtype("auto", "cpu"), "cpu")
    loading = time.perf_counter() - started
    length = within_context(network, min(LENGTH, config.sequence_length))
    text = calibration_batches(str(texts.calibration), load_tokenizer(model), 2, length, 1, config.seed).batches
    batch = torch.cat([each for each in text if each.shape[1] == text[0].shape[1]])
    count = max(FORWARD_TOKENS // batch.numel(), 1)

    def passes() -> None:
        with torch.no_grad(), autocast("auto", "cpu"):
            for _ in range(count):
                network(input_ids=batch, use_cache=False)

    forward = min(_seconds(passes), _seconds(passes)) / (count * batch.numel())
    method = config.method or BEST_METHOD
    if not any(config.sparsities) or method == "magnitude":
        return loading, forward, 0.0
    blocks = decoder_blocks(network)[1]
    number = len(blocks)
    del blocks[1:]
    settings = SparsifyConfig(sparsity=max(config.sparsities), method=method)
    one: Sequence[Tensor] = [batch]

    def pruned() -> float:
        return _seconds(lambda: sparsify_model(network, one, settings))

    first = pruned()  # warms up
    return loading, forward, number * (min(first, pruned()) if first < LONGEST_BLOCK else first)


def _training(
    model: ModelRef, config: CompressConfig, texts: Texts, rows: Sequence[Tokenized], forward: float
) -> tuple[float, float]:
    """Return the seconds of a training step beside its tokens, and of a token, from two sizes of step.

    Where a step of one row takes so long that a larger one would take more than LONGEST_STEP, a
    token is taken to cost TRAINED_IN_FORWARDS forward passes.
    """
    length = sum(len(row.input_ids) for row in rows) / len(rows)
    source = read_rows(str(texts.calibration) if config.calibration is None else str(config.data))
    small = _step_seconds(model, config, source, 1)
    trained = TRAINED_IN_FORWARDS * forward
    size = min(1 + int((LONGEST_STEP - small) / (trained * length)), LARGE_STEP, len(rows))
    if size <= 1:
        return max(small - trained * length, 0.0), trained
    return line_through((length, small), (size * length, _step_seconds(model, config, source, size)))


def _step_seconds(model: ModelRef, config: CompressConfig, rows: Sequence[Row], size: int) -> float:
    """Return the seconds of a training step of so many rows, the second one."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text(as_json_lines(rows[: 2 * size]), encoding="utf-8")
        settings = TrainConfig(
            data=str(file), batch_size=size, max_steps=2, warmup_steps=0, seed=config.seed,
            **masked_for("int4" if "int4" in config.values else "bf16"),
        )  # fmt: skip
        folder = train(model.folder, Path(scratch) / "adapter", **as_data(settings))
        return float(json.loads((folder / TRAINING_TIMES).read_text().splitlines()[-1])["seconds"])


def line_through(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Return the seconds of a step and of each of its tokens, neither below 0, from (tokens, seconds) of two steps."""
    rise = large[0] - small[0]
    slope = (large[1] - small[1]) / rise if rise > 0 else 0.0
    if slope <= 0:
        return 0.0, large[1] / large[0]
    return max(large[1] - slope * large[0], 0.0), slope


def _answering(model: ModelRef, asked: Questions, training: Rows | None) -> tuple[float, float]:
    """Return the seconds of a question to the model, and to one that ends where the right answers do."""
    rows = read_rows(str(asked.rows))
    some = [rows[number * len(rows) // QUESTIONS] for number in range(QUESTIONS)] if len(rows) > QUESTIONS else rows
    tokenizer = load_tokenizer(model)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "questions.jsonl"
        file.write_text(as_json_lines(some), encoding="utf-8")
        started = time.perf_counter()
        measured = asked.untrained.answered(model, rows=file)
        question = (time.perf_counter() - started) / len(some)
    written = [len(tokenizer(str(record.get("output", "")))["input_ids"]) for record in measured.records]
    if training is None or not any(written):
        return question, question
    right = statistics.mean(sum(label != IGNORED for label in row.labels) for row in training.train)
    return question, question * min(right * len(written) / sum(written), 1.0)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
