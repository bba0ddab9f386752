"""The plan of a run: each stage's work, hours, memory and disk, without weights or a download.

Hours are floating-point operations (FLOP) over the rate of a product that is timed on the device.

H hidden and F intermediate features of a Llama.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shears.adapt.groups import build_space
from shears.adapt.space import RankConfig, SearchSpace
from shears.adapt.super_adapter import by_linear
from shears.config import Recipe, TrainConfig
from shears.config.export_options import FORMATS
from shears.config.resolve import load_recipe
from shears.config.sparsify_options import METHODS
from shears.config.train_options import LoopConfig
from shears.data.rows import ARITHMETIC, read_rows
from shears.errors import InputError
from shears.evaluation.evaluated import check_apart
from shears.export.gguf import planned_gguf_bytes
from shears.models.activations import BUDGET
from shears.models.devices import DTYPES, computing_dtype, pick_device, resolved_precision
from shears.models.load import cache_bytes
from shears.records.artifacts import EVALUATION, RECIPE
from shears.records.folders import partial_folder
from shears.records.paths import expanded
from shears.runs.shapes import BF16_BYTES, FP32_BYTES, Shape, shape_of
from shears.runs.stages import DENSE_LORA, baseline_configs, run_folder, stages_of, with_calibration
from shears.training.fit import FORWARD_TOKENS, MICRO_BATCH

CHOICES = {"maximal": SearchSpace.maximal, "minimal": SearchSpace.minimal}  # others: as heuristic
ADAM_BYTES = 4 * FP32_BYTES  # weight, gradient and two moments of a trained weight, all fp32
CHARACTERS = 4  # of a token, about
SIDE = 2048  # of the matrices whose product is timed
LONGEST: int = TrainConfig.model_fields["max_length"].default  # tokens of a row without a training


class Estimate(NamedTuple):
    """Work in words; bytes of weights and optimizer, of activations and caches; FLOP if known."""

    work: str
    memory: int | None
    activations: float = 0
    flops: float | None = None


@dataclass(frozen=True)
class PlannedStage:
    """A stage: its state and work in words; bytes and FLOP, None if unknown.

    `memory` are weights and optimizer, `activations` those of the largest batch with the cache of
    keys and values; `place` is the device and the number format of the products.
    """

    name: str
    state: str
    work: str
    memory: int | None
    activations: int
    disk: int | None
    flops: float | None
    place: tuple[str, str]

    def hours(self, rates: Mapping[tuple[str, str], float]) -> float | None:
        """Return the hours at the FLOP a second of each place; None if one of them is unknown."""
        rate = rates.get(self.place)
        return None if self.flops is None or not rate else self.flops / rate / 3600

    @property
    def peak(self) -> int | None:
        """Bytes of weights, optimizer, activations and cache, about; None if unknown."""
        return None if self.memory is None else self.memory + self.activations


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run; `parameters` is None for a model of unknown size."""

    model: str
    folder: Path
    parameters: int | None
    stages: list[PlannedStage]

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the files that the stages to come leave, those of known size."""
        return sum(stage.disk or 0 for stage in self.stages if stage.state != "done")


def plan(recipe: Recipe, output: str | Path | None = None) -> RunPlan:
    """Return what `run` would do, without loading weights and without a download.

    InputError for whatever `run` refuses before it begins: an incomplete recipe, a search on rows
    of the test data (if both are here), a stage that was made with another configuration, groups
    that match no linear.
    """
    folder = run_folder(recipe, output)
    recipe = with_calibration(recipe)
    search, test = recipe.search, recipe.evaluate
    if search and test and _is_local(search.data) and _is_local(test.data):
        with quietly():
            check_apart(search.data, test.data, search.limit, test.limit, (search.columns, test.columns))
    states = {each.name: _state(each.is_done(), each.output) for each in stages_of(recipe, folder)}
    if test:
        is_done = set(states.values()) == {"done"} and (folder / EVALUATION).is_file()
        if is_done:
            before = load_recipe(folder / RECIPE)
            is_done = (before.evaluate, before.baselines) == (test, recipe.baselines)
        states["evaluate"] = _state(is_done, folder / EVALUATION)
    basis = _Basis(recipe)
    stages = [
        PlannedStage(
            name, state, (own := _estimate(basis, name)).work, own.memory, round(own.activations),
            basis.disk(name), own.flops, basis.place(name),
        )
        for name, state in states.items()
    ]  # fmt: skip
    return RunPlan(str(recipe.model), folder, basis.shape.parameters if basis.shape else None, stages)


def bytes_of(recipe: Recipe, stages: Iterable[str]) -> int:
    """Return the bytes of the files that some stages of a recipe leave, those of known size."""
    basis = _Basis(recipe)
    return sum(basis.disk(name) or 0 for name in stages)


def _state(is_done: bool, output: Path) -> str:
    return "done" if is_done else "interrupted" if partial_folder(output).exists() else "to do"


class _Basis:
    """The sizes that all estimates follow from; None for a model of unknown shape.

    `dense` are the bytes of the model's files, taken to have 16 bits a weight where they are not
    here; `sparse` those in the number format of the pruned model.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.shape = shape = shape_of(str(recipe.model), recipe.sparsify.dtype)
        self.dense = None if shape is None else shape.file_bytes or BF16_BYTES * shape.parameters
        self.sparse = self.loaded(self.dense, recipe.sparsify.dtype)
        train = recipe.train
        self.space = build_space(shape.model, train.groups, train.ranks) if shape and train else None

    def loaded(self, stored: int | None, weights: str) -> int | None:
        """Return the size of a model in the format `weights`; auto: that of its files, `stored`."""
        dtype = DTYPES.get(weights)
        return stored if dtype is None or self.shape is None else dtype.itemsize * self.shape.parameters

    def place(self, name: str) -> tuple[str, str]:
        """Return the device of a stage, maybe of another machine, and its number format."""
        config: Any = baseline_configs(self.recipe).get(name) or getattr(self.recipe, name)
        device = str(pick_device("auto")) if config.device == "auto" else config.device
        precision = getattr(config, "precision", "fp32")
        is_wide = name == "search" and device == "cpu" and config.weights == "fp32"
        return device, "fp32" if is_wide else resolved_precision(precision, device)

    def item(self, name: str) -> int:
        """Return the bytes of a number in the products of a stage."""
        return DTYPES[self.place(name)[1]].itemsize

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.recipe.train.max_length if self.recipe.train else LONGEST

    def ranks(self, choice: Callable[[SearchSpace], RankConfig]) -> dict[str, int]:
        return {} if self.space is None else dict(by_linear(self.space, choice(self.space)))

    def adapter(self, choice: Callable[[SearchSpace], RankConfig] = SearchSpace.maximal) -> int:
        return FP32_BYTES * self.shape.adapter_parameters(self.ranks(choice)) if self.shape else 0

    def recovery(self) -> int:
        assert self.shape is not None
        return self.shape.adapter_parameters(dict.fromkeys(self.shape.sides, self.recipe.sparsify.recover_rank))

    @property
    def exported(self) -> Callable[[SearchSpace], RankConfig]:
        export = self.recipe.export
        ranks = "maximal" if FORMATS[export.format].pads else export.sub_adapter
        return CHOICES.get(ranks or "", SearchSpace.heuristic)

    def disk(self, name: str) -> int | None:
        if self.shape is None or self.sparse is None:
            return None
        if name == "sparsify":
            return self.sparse + FP32_BYTES * self.recovery()
        if name == "export":
            return self._export_bytes(self.shape, self.sparse)
        return {"heal": self.sparse, "search": 0, "evaluate": 0}.get(name, self.adapter())  # of a training

    def _export_bytes(self, shape: Shape, sparse: int) -> int:
        """Return the bytes of an export; a package merges an adapter that was trained masked."""
        export, train, sparsify = self.recipe.export, self.recipe.train, self.recipe.sparsify
        holds = FORMATS[export.format].holds
        if train and train.quantize_aware != "none":
            export = export.model_copy(update={"dtype": "int4"})
        if holds == "gguf":
            return planned_gguf_bytes(shape.specs, export)
        if holds != "package":
            return self.adapter(self.exported) if holds == "adapter" else sparse
        beside = {} if train and train.masks else self.ranks(self.exported)
        return shape.package_bytes(export, sparsify.sparsity, DTYPES.get(sparsify.dtype), beside)


def _estimate(basis: _Basis, name: str) -> Estimate:
    if name == "train" and basis.recipe.train is not None:
        return _training(basis, basis.recipe.train, basis.sparse)
    if (baseline := baseline_configs(basis.recipe).get(name)) is None:
        return ESTIMATES[name](basis)
    model, size = ("dense", basis.dense) if name == DENSE_LORA else ("sparse", basis.sparse)
    own = _training(basis, baseline, size, name)
    return own._replace(work=f"rank {baseline.ranks[0]} on the {model} model, {own.work}")


def _sparsify(basis: _Basis) -> Estimate:
    config = basis.recipe.sparsify
    shape = basis.shape
    num_tokens = 0
    is_fitted = config.reconstruct == "block"
    work = f"{config.method} to {100 * config.sparsity:.4g}% zeros" + (", then fits the blocks" if is_fitted else "")
    if config.needs_calibration:
        num_tokens = config.num_samples * config.sequence_length
        sizes = f"{config.num_samples} x {config.sequence_length} = {num_tokens:,} tokens"
        work += f", {sizes} of {_shown(str(config.calibration))}"
    if shape is None:
        return Estimate(work, None)
    hidden = min(BUDGET, FP32_BYTES * num_tokens * shape.width)
    widest = max(inputs for _, inputs in shape.sides.values())
    moments = widest**2 * (METHODS[config.method].needs == "moments")
    # fp32: weights outside the blocks, two blocks (a fit needs gradients, Adam's two moments and a
    # copy too), twice the second moments of the widest linear
    blocks = 6 if is_fitted else 2
    memory = FP32_BYTES * (shape.beside + blocks * shape.block + 2 * moments) + hidden
    held = block_bytes(shape, basis.item("sparsify")) * config.sequence_length * (num_tokens > 0)
    is_cheap = config.method in ("wanda", "magnitude") and not is_fitted
    flops = 4.0 * shape.linear_weights * num_tokens if is_cheap else None  # blocks read them twice
    return Estimate(work, memory, held, flops)


def _heal(basis: _Basis) -> Estimate:
    config = basis.recipe.heal
    assert config is not None
    tokens = config.num_sequences * config.sequence_length
    work = f"{config.num_steps:,} steps, {tokens:,} tokens of {_shown(config.data)}"
    if basis.shape is None:
        return Estimate(work, None)
    kept = round(basis.shape.linear_weights * (1 - basis.recipe.sparsify.sparsity))
    trained = (ADAM_BYTES + FP32_BYTES) * kept  # + places
    dtype = _trained_dtype(config)
    memory = sum(basis.loaded(size, dtype) or 0 for size in (basis.dense, basis.sparse)) + trained
    every, length = basis.shape.sides, config.sequence_length
    held = training_bytes(basis.shape, basis.item("heal"), config, every, length)
    flops = 2.0 * basis.shape.products * tokens * (4 + config.recompute)  # the teacher's pass too
    return Estimate(work, memory, held, flops)


def _trained_dtype(config: LoopConfig) -> str:
    """Return the number format in which a training loads its base, maybe on another machine."""
    device = pick_device("auto") if config.device == "auto" else config.device
    return computing_dtype(config.precision, device)


def _training(basis: _Basis, config: TrainConfig, model_bytes: int | None, name: str = "train") -> Estimate:
    examples, words, tokens = _amount(config.data)
    count = round((examples or 0) * (1 - (config.validation_share or 0)))
    passes = "1 to 10" if config.epochs is None else f"{config.epochs:g}"
    steps = f"{config.num_steps(count):,} steps" if count or config.max_steps else f"{passes} epochs in steps"
    held_out = f", validation on {config.validation}" if config.validation else ""
    work = f"{steps} of {config.batch_size} examples, {words}{held_out}"
    loaded = basis.loaded(model_bytes, _trained_dtype(config))
    if loaded is None or basis.shape is None:
        return Estimate(work, None)
    adapted, item = basis.ranks(SearchSpace.maximal), basis.item(name)
    held = training_bytes(basis.shape, item, config, adapted, config.max_length)
    times = 2 + config.recompute + (config.teacher is not None)  # forward, gradients of its inputs
    read = config.num_steps(count) * config.batch_size / max(examples or 0, 1) * tokens
    flops = 2.0 * times * basis.shape.products * read or None
    return Estimate(work, loaded + ADAM_BYTES // FP32_BYTES * basis.adapter(), held, flops)


def _search(basis: _Basis) -> Estimate:
    config = basis.recipe.search
    assert config is not None
    size = f" of {basis.space.size:.3g}" if basis.space else ""
    _, data, tokens = _amount(config.data, config.limit)
    work = f"{config.strategy}, up to {config.budget}{size} configurations, each on {data}"
    device, precision = basis.place("search")
    loaded = basis.loaded(basis.sparse, config.weights if device == "cpu" else precision)
    if loaded is None or basis.shape is None:
        return Estimate(work, None)
    held = config.batch_size * basis.longest * (block_bytes(basis.shape, basis.item("search")) + basis.shape.logits)
    flops = 2.0 * basis.shape.products * config.budget * tokens or None
    return Estimate(work, loaded + basis.adapter(), held, flops)


def _export(basis: _Basis) -> Estimate:
    config = basis.recipe.export
    ranks = config.sub_adapter or ("the ranks that search chose" if basis.recipe.search else "the heuristic's ranks")
    work = f"format {config.format}, {ranks if basis.recipe.train else config.dtype}"
    return Estimate(work, None if basis.shape is None else 2 * basis.adapter(basis.exported))


def _evaluate(basis: _Basis) -> Estimate:
    config = basis.recipe.evaluate
    assert config is not None
    num_models = 2 + bool(basis.recipe.heal) + len(basis.recipe.baselines) + basis.recipe.exports
    limit = f"the first {config.limit:,} of " if config.limit else ""
    data = ", ".join(config.harness) or _shown(config.data)
    work = f"{config.task}, {num_models} models, each on {limit}{data}"
    dense, sparse = (basis.loaded(size, config.weights) for size in (basis.dense, basis.sparse))
    if dense is None or sparse is None or basis.shape is None:
        return Estimate(work, None)
    bases = (dense if name == DENSE_LORA else sparse for name in basis.recipe.baselines)
    sizes = [dense, sparse + basis.adapter(SearchSpace.heuristic), *(base + basis.adapter() for base in bases)]
    held = block_bytes(basis.shape, item := basis.item("evaluate"))
    length = basis.longest
    if config.generates:
        work += f", answers of up to {config.longest_answer} tokens, {config.beams} beam{'s' * (config.beams > 1)}"
        held += config.beams * cache_bytes(basis.shape.model, item)
        length += config.longest_answer
    return Estimate(work, max(sizes), held * config.batch_size * length)  # one model at a time


ESTIMATES: Mapping[str, Callable[[_Basis], Estimate]] = {
    "sparsify": _sparsify,
    "heal": _heal,
    "search": _search,
    "export": _export,
    "evaluate": _evaluate,
}


def block_bytes(shape: Shape, item: int, adapted: Collection[str] = (), dropout: float = 0.0) -> float:
    """Return the bytes of a token that the backward of a block needs, in `item` bytes a number.

    They are two inputs of norms in fp32, the linears' outputs that are not added to the residual
    stream, the input of the output projection, the activation function, and the inputs of adapted
    linears with the masks of their dropout. In 16 bits a Llama has 16 H + 6 F beside adapters.
    """
    outputs = sum(outputs for outputs, _ in shape.sides.values()) / shape.num_blocks
    widest = max(outputs for outputs, _ in shape.sides.values())
    inputs = sum(shape.sides[name][1] for name in adapted) / shape.num_blocks
    own = 2 * FP32_BYTES * shape.width + item * (outputs - shape.width + widest)
    return own + (item + (dropout > 0)) * inputs


def training_bytes(shape: Shape, item: int, config: LoopConfig, adapted: Collection[str], length: int) -> float:
    """Return the bytes of activations and logits of the largest micro-batch of `length`-token rows.

    With `recompute` they are the inputs of all blocks and the activations of one.
    """
    block = block_bytes(shape, item, adapted, getattr(config, "dropout", 0.0))
    tokens = (config.micro_batch_size or MICRO_BATCH) * length
    if config.micro_batch_size is None:
        tokens = max(tokens, FORWARD_TOKENS)
    blocks = block + item * shape.width * shape.num_blocks if config.recompute else block * shape.num_blocks
    return tokens * (blocks + shape.logits)


def _is_local(source: str) -> bool:
    return source.partition(":")[0] == ARITHMETIC or expanded(source).is_file()


def _shown(source: str) -> str:
    return source if _is_local(source) else f"{source} (not on this machine yet)"


def timed_rate(device: str, precision: str) -> float:
    """Return the FLOP a second of a product on a device; 0 for one that is not on this machine."""
    try:
        matrix = torch.ones(SIDE, SIDE, dtype=DTYPES[precision], device=pick_device(device))
    except InputError:
        return 0.0
    seconds = []
    for _ in range(3):  # the first one loads kernels
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def _amount(source: str, limit: int | None = None) -> tuple[int | None, str, float]:
    """Return the number of examples (None: unknown), the same in words, about how many tokens."""
    if not _is_local(source):
        count = f"up to {limit:,}" if limit else "an unknown number of"
        return limit, f"{count} examples ({source} is not on this machine yet)", 0.0
    with quietly():
        rows = read_rows(source)[:limit]
    tokens = sum(len(str(value)) for row in rows for value in row.values()) / CHARACTERS
    return len(rows), f"{len(rows):,} examples of {source}, about {tokens:,.0f} tokens", tokens


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress log lines, such as those of reading data."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
