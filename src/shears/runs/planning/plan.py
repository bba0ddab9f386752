"""The plan of a run: its stages, what each will do, need and leave, and what is done already."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shears.adapt.groups import build_space
from shears.adapt.space import RankConfig, SearchSpace
from shears.adapt.training.fit import num_seen, num_steps
from shears.config import EvaluateConfig, Recipe
from shears.config.export import FORMATS
from shears.config.notation import num_bytes
from shears.config.sparsify import METHODS
from shears.evaluation.run import settings_and_data
from shears.export.ranks import by_linear
from shears.models.devices import DTYPES
from shears.models.load import load_tokenizer
from shears.models.quantization import BITS
from shears.records.artifacts import EVALUATION, evaluation_file, read_object
from shears.records.folders import partial_folder
from shears.runs.pipeline import run_folder, stages_of
from shears.runs.planning.data import amount, calibration_amount, example_length, refuse_shared_rows, text_amount
from shears.runs.planning.needs import (
    FP32,
    adapter_parameters,
    packed_bytes,
    pruning_memory,
    quantized_bytes,
    running_memory,
    training_memory,
)
from shears.runs.planning.shapes import Shape, shape_of

CHOICES = {"maximal": SearchSpace.maximal, "minimal": SearchSpace.minimal}  # others are reckoned like the heuristic
HALF = 2  # bytes of a weight in the files of a model that is not here: most are published in 16 bits


@dataclass(frozen=True)
class PlannedStage:
    """A stage: done, interrupted or to do; its work in words; memory and disk in bytes, None where not known yet.

    Memory is what is held without the activations of a forward, which depend on lengths and batch.
    """

    name: str
    state: str
    work: str
    memory: int | None
    disk: int | None


@dataclass(frozen=True)
class Plan:
    """A run before it runs."""

    model: str
    folder: Path
    parameters: int | None
    stages: list[PlannedStage]


@dataclass(frozen=True)
class _Known:
    """What the estimates are made from: the recipe, and the model's shape where it is known."""

    recipe: Recipe
    shape: Shape | None

    @property
    def dense_bytes(self) -> int | None:
        """Return the size of the model that is pruned, in memory and in its files."""
        if self.shape is None:
            return None
        return self.shape.file_bytes or HALF * self.shape.parameters

    @property
    def sparse_bytes(self) -> int | None:
        """Return the size of the pruned model, in memory and in its files: as it was, or in the format asked for."""
        dtype = DTYPES.get(self.recipe.sparsify.dtype)
        return self.shape.parameters * dtype.itemsize if self.shape and dtype else self.dense_bytes

    @property
    def package_bytes(self) -> int:
        """Return the size of the pruned model as a package, in the number formats asked for."""
        assert self.shape is not None
        config, shape = self.recipe.export, self.shape
        own = FP32 if (self.sparse_bytes or 0) > 3 * shape.parameters else HALF
        each = {"fp32": FP32, "bf16": HALF, "int8": 1}.get(config.values, own)
        weights, rest = shape.packed_weights, max(each, HALF)
        packed = packed_bytes(weights, shape.parameters - weights, self.recipe.sparsify.sparsity, each, rest)
        return packed - (rest - 1) * shape.beside * (config.embeddings == "int8")

    @property
    def space(self) -> SearchSpace | None:
        """Return the search space of the adapters."""
        train = self.recipe.train
        return build_space(self.shape.model, train.groups, train.ranks) if self.shape and train else None

    def adapter(self, choice: Callable[[SearchSpace], RankConfig]) -> int:
        """Return the weights of the adapter at some ranks; 0 where there is none or its model is not known."""
        if (space := self.space) is None or self.shape is None:
            return 0
        return adapter_parameters(self.shape.sides, by_linear(space, choice(space)))


def plan(recipe: Recipe, output: str | Path | None = None) -> Plan:
    """Return what `run` would do, without loading weights and without a download.

    InputError for whatever `run` would refuse before it begins: a recipe that lacks something, a stage that was made
    otherwise, groups that match no linear.
    """
    folder = run_folder(recipe, output)
    assert recipe.model is not None
    refuse_shared_rows(recipe)
    known = _Known(recipe, shape_of(recipe.model))
    stages = [_planned(stage.name, _state(stage.is_done(), stage.output), known) for stage in stages_of(recipe, folder)]
    if recipe.evaluate:
        is_done = all(stage.state == "done" for stage in stages) and _is_measured(recipe.evaluate, folder)
        stages.append(_planned("evaluate", _state(is_done, folder / EVALUATION), known))
    return Plan(recipe.model, folder, known.shape.parameters if known.shape else None, stages)


def _is_measured(config: EvaluateConfig, folder: Path) -> bool:
    """Tell whether the figures of a run are there, of these data and settings; `run` looks at the weights, too."""
    if not (folder / EVALUATION).is_file():
        return False
    files = [evaluation_file(folder, row["name"]) for row in read_object(folder / EVALUATION)["models"]]
    asked = settings_and_data(config)

    def fits(record: Mapping[str, Any]) -> bool:
        before = record.get("config") or {}
        template = config.template or before.get("template")  # that of the training
        found = {"config": before, "data_sha256": record.get("data_sha256")}
        return found == {**asked, "config": {**asked["config"], "template": template}}

    return all(file.is_file() and fits(read_object(file)) for file in files)


def _state(is_done: bool, output: Path) -> str:
    return "done" if is_done else "interrupted" if partial_folder(output).exists() else "to do"


def _planned(name: str, state: str, known: _Known) -> PlannedStage:
    return PlannedStage(name, state, *STAGES[name](known))


Estimate = tuple[str, int | None, int | None]  # the work in words, memory, disk


def _sparsify(known: _Known) -> Estimate:
    config, shape = known.recipe.sparsify, known.shape
    tokens, words = 0, f"{config.method} to {100 * config.sparsity:.4g}%"
    if config.needs_calibration:
        tokens, source = calibration_amount(config)
        words += f", {source}"
    if shape is None or known.sparse_bytes is None:
        return words, None, None
    hidden = min(num_bytes(config.activation_budget), FP32 * tokens * shape.width)
    recovers_by_moments = config.recover_rank > 0 and config.recover_by == "moments"
    moments = METHODS[config.method].needs == "moments" or config.reconstruct or recovers_by_moments
    widest = max(inputs for _, inputs in shape.sides.values()) ** 2 if moments else 0
    recovery = FP32 * adapter_parameters(shape.sides, dict.fromkeys(shape.sides, config.recover_rank))
    return words, pruning_memory(shape.beside, shape.block, hidden, widest), known.sparse_bytes + recovery


def _train(known: _Known) -> Estimate:
    config = known.recipe.train
    assert config is not None
    found, length = amount(config.data), None
    if found.examples is not None and known.shape is not None and known.shape.folder is not None:
        length = example_length(config, load_tokenizer(known.shape.folder))
    count = round((found.examples or 0) * (length.kept if length else 1))
    steps = f"{num_steps(config, count):,} steps" if count or config.max_steps else f"{config.epochs:g} epochs in steps"
    tokens = f", about {length.tokens * num_seen(config, count):,.0f} tokens" if length else ""
    words = f"{steps} of {config.batch_size} examples, {found.words}{tokens}"
    largest = known.adapter(SearchSpace.maximal)
    if known.sparse_bytes is None or known.shape is None:
        return words, None, None
    held, weights = known.sparse_bytes, known.shape.linear_weights
    if config.quantize != "none":
        held = quantized_bytes(held, weights, known.shape.parameters - weights, BITS[config.quantize])
    return words, training_memory(held, largest), FP32 * largest


def _search(known: _Known) -> Estimate:
    config = known.recipe.search
    assert config is not None
    space = known.space
    of = f" of {space.size:.3g}" if space else ""
    words = f"{config.strategy}, up to {config.max_evaluations}{of} configurations, each on "
    words += amount(config.data, config.limit).words
    if known.sparse_bytes is None:
        return words, None, None
    held = _held(known.sparse_bytes, config.weights, known)
    return words, running_memory(held, known.adapter(SearchSpace.maximal)), 0


def _held(stored: int, weights: str, known: _Known) -> int:
    """Return the bytes of a model that is held in a number format, those of its files where that is auto."""
    dtype = DTYPES.get(weights)
    return stored if dtype is None or known.shape is None else dtype.itemsize * known.shape.parameters


def _export(known: _Known) -> Estimate:
    config = known.recipe.export
    form = FORMATS[config.format]
    choice = CHOICES.get("maximal" if form.pads else config.ranks or "", SearchSpace.heuristic)
    adapter = known.adapter(choice)
    ranks = config.ranks or ("the ranks that search chose" if known.recipe.search else "the heuristic's ranks")
    words = f"format {config.format}, {ranks}"
    if known.shape is None:
        return words, None, None
    disk = {
        "adapter": FP32 * adapter,
        "model": known.sparse_bytes,
        "package": known.package_bytes + FP32 * adapter,
    }
    return words, 2 * FP32 * adapter, disk[form.holds]


def _evaluate(known: _Known) -> Estimate:
    config = known.recipe.evaluate
    assert config is not None
    models = 2 + bool(known.recipe.train)
    words = f"{config.task}, {models} models, each on {_asked(config)}"
    if known.dense_bytes is None or known.sparse_bytes is None:
        return words, None, None
    dense, sparse = (_held(stored, config.weights, known) for stored in (known.dense_bytes, known.sparse_bytes))
    adapted = running_memory(sparse, known.adapter(SearchSpace.heuristic))
    return words, max(dense, adapted), 0  # one model after the other


def _asked(config: EvaluateConfig) -> str:
    """Return in words what each model is measured on."""
    if config.task == "perplexity":
        return text_amount(config.data, config.sequence_length, config.limit)
    if config.task == "harness":
        first = f"up to {config.limit:,} examples of " if config.limit else ""
        return first + ", ".join(config.harness)
    return amount(config.data, config.limit).words


STAGES: Mapping[str, Callable[[_Known], Estimate]] = MappingProxyType(
    {"sparsify": _sparsify, "train": _train, "search": _search, "export": _export, "evaluate": _evaluate}
)
