"""The plan of a run: work, memory and disk of each stage; no weight is loaded or downloaded."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shears.adapt.groups import build_space
from shears.adapt.ranks import by_linear
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import EvaluateConfig, Recipe, RunEvaluateConfig, SparsifyConfig, TrainConfig
from shears.config.export_options import FORMATS
from shears.config.loop import LoopConfig
from shears.config.sparsify_options import METHODS
from shears.data.calibration import token_row_lengths
from shears.data.examples import load_examples, tokenize_all
from shears.data.rows import ARITHMETIC, read_rows, source_fingerprint
from shears.evaluation.run import same_backend, settings_and_data
from shears.evaluation.seen_in_training import check_apart
from shears.models.blockwise.activations import BUDGET
from shears.models.devices import DTYPES, computing_dtype, pick_device
from shears.models.ref import resolve
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import EVALUATION, evaluation_file, read_object
from shears.records.folders import partial_folder
from shears.records.paths import expanded
from shears.runs.baselines import DENSE_LORA, baseline_configs
from shears.runs.shapes import BF16_BYTES, FP32_BYTES, Shape, shape_of
from shears.runs.stages import run_folder, stages_of, with_calibration

CHOICES = {"maximal": SearchSpace.maximal, "minimal": SearchSpace.minimal}  # others: as heuristic
NUM_SAMPLED = 500  # examples that are tokenized to estimate the length of one
ADAM_BYTES = 4 * FP32_BYTES  # weight, gradient and two moments of a trained weight, all fp32

Estimate = tuple[str, int | None]  # work in words; memory in bytes


@dataclass(frozen=True)
class PlannedStage:
    """A stage: its state and work in words; memory and disk in bytes, None if unknown.

    Memory is without the activations of a forward pass, which depend on lengths and batch.
    """

    name: str
    state: str
    work: str
    memory: int | None
    disk: int | None


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


@dataclass(frozen=True)
class _Basis:
    """The input of all estimates: the recipe, and the model's shape, None if unknown."""

    recipe: Recipe
    shape: Shape | None

    @property
    def dense_bytes(self) -> int | None:
        """Return the size of the dense model; unknown files are taken to have 16 bits a weight."""
        if self.shape is None:
            return None
        return self.shape.file_bytes or BF16_BYTES * self.shape.parameters

    @property
    def sparse_bytes(self) -> int | None:
        """Return the size of the pruned model in its own or the requested number format."""
        dtype = DTYPES.get(self.recipe.sparsify.dtype)
        return self.shape.parameters * dtype.itemsize if self.shape and dtype else self.dense_bytes

    def package_bytes(self, ranks: Mapping[str, int]) -> int:
        """Return the size of the package file; an adapter that was trained masked is merged."""
        assert self.shape is not None
        train = self.recipe.train
        export = self.recipe.export
        if train and train.quantize_aware != "none":
            export = export.model_copy(update={"values": train.quantize_aware})
        sparsify = self.recipe.sparsify
        kept_beside = {} if train and train.masks else ranks
        return self.shape.package_bytes(export, sparsify.sparsity, DTYPES.get(sparsify.dtype), kept_beside)

    @property
    def space(self) -> SearchSpace | None:
        """Return the search space of the adapters."""
        train = self.recipe.train
        return build_space(self.shape.model, train.groups, train.ranks) if self.shape and train else None

    def ranks(self, choice: Callable[[SearchSpace], RankConfig]) -> dict[str, int]:
        """Return the rank of every adapted linear; empty without a training or a known shape."""
        space = self.space
        return {} if space is None else dict(by_linear(space, choice(space)))

    def adapter(self, choice: Callable[[SearchSpace], RankConfig]) -> int:
        """Return the number of adapter parameters at chosen ranks."""
        return self.shape.adapter_parameters(self.ranks(choice)) if self.shape else 0

    def loaded_bytes(self, stored: int, weights: str) -> int:
        """Return the size of a model loaded in the format `weights`; auto: that of its files."""
        dtype = DTYPES.get(weights)
        return stored if dtype is None or self.shape is None else dtype.itemsize * self.shape.parameters


def plan(recipe: Recipe, output: str | Path | None = None) -> RunPlan:
    """Return what `run` would do, without loading weights and without a download.

    InputError for whatever `run` refuses before it begins: an incomplete recipe, a search on rows
    of the test data (if both are here), a stage that was made with another configuration, groups
    that match no linear.
    """
    folder = run_folder(recipe, output)
    recipe = with_calibration(recipe)
    assert recipe.model is not None
    search = recipe.search
    test = recipe.evaluate
    if search and test and _is_local(search.data) and _is_local(test.data):
        with quietly():
            check_apart(search.data, test.data, search.limit, test.limit, (search.columns, test.columns))
    basis = _Basis(recipe, shape_of(recipe.model, recipe.sparsify.dtype))
    states = {stage.name: _state(stage.is_done(), stage.output) for stage in stages_of(recipe, folder)}
    if recipe.evaluate:
        is_done = set(states.values()) == {"done"} and _is_evaluated(recipe.evaluate, folder)
        states["evaluate"] = _state(is_done, folder / EVALUATION)
    stages = [PlannedStage(name, state, *_estimate(basis, name), _disk(basis, name)) for name, state in states.items()]
    return RunPlan(recipe.model, folder, basis.shape.parameters if basis.shape else None, stages)


def bytes_of(recipe: Recipe, stages: Iterable[str]) -> int:
    """Return the bytes of the files that some stages of a recipe leave, those of known size."""
    assert recipe.model is not None
    basis = _Basis(recipe, shape_of(recipe.model, recipe.sparsify.dtype))
    return sum(_disk(basis, name) or 0 for name in stages)


def _is_evaluated(config: RunEvaluateConfig, folder: Path) -> bool:
    """Tell whether a run has the figures of these data and settings; weights are not checked."""
    if not (folder / EVALUATION).is_file():
        return False
    names = [row["name"] for row in read_object(folder / EVALUATION)["models"]]
    files = [evaluation_file(folder, name) for name in names]
    data_sha256 = source_fingerprint(config.data)

    def fits(record: Mapping[str, Any]) -> bool:
        recorded = record["config"]
        template = config.template or recorded["template"]  # that of the training
        settings = settings_and_data(config.measurement.in_template(template))
        same = (recorded, record.get("data_sha256")) == (settings["config"], data_sha256)
        return same and same_backend(record, config)

    return config.baselines.keys() <= set(names) and all(file.is_file() and fits(read_object(file)) for file in files)


def _state(is_done: bool, output: Path) -> str:
    return "done" if is_done else "interrupted" if partial_folder(output).exists() else "to do"


def _sparsify(basis: _Basis) -> Estimate:
    config = basis.recipe.sparsify
    shape = basis.shape
    num_tokens = 0
    is_fitted = config.reconstruct == "block"
    work = f"{config.method} to {100 * config.sparsity:.4g}%" + (", blocks fitted" if is_fitted else "")
    if config.needs_calibration:
        num_tokens, source = _calibration_tokens(config)
        work += f", {source}"
    if shape is None or basis.sparse_bytes is None:
        return work, None
    hidden = min(BUDGET, FP32_BYTES * num_tokens * shape.width)
    needs_moments = METHODS[config.method].needs == "moments"
    moments = max(inputs for _, inputs in shape.sides.values()) ** 2 if needs_moments else 0
    # fp32: weights outside the blocks, two blocks (a fit needs gradients, Adam's two moments and a
    # copy too), twice the second moments of the widest linear
    blocks = 6 if is_fitted else 2
    return work, FP32_BYTES * (shape.beside + blocks * shape.block + 2 * moments) + hidden


def _heal(basis: _Basis) -> Estimate:
    config = basis.recipe.heal
    assert config is not None
    tokens = config.num_sequences * config.sequence_length
    work = f"{config.num_steps:,} steps, {tokens:,} tokens of {_shown(config.data)}"
    if basis.shape is None or basis.sparse_bytes is None or basis.dense_bytes is None:
        return work, None
    recovery_rank = basis.recipe.sparsify.recover_rank if config.recovery else 0
    kept = round(basis.shape.linear_weights * (1 - basis.recipe.sparsify.sparsity))
    recovery = basis.shape.adapter_parameters(dict.fromkeys(basis.shape.sides, recovery_rank))
    trained = (ADAM_BYTES + FP32_BYTES) * kept + ADAM_BYTES * recovery  # + places
    dtype = _trained_dtype(config)
    loaded = sum(basis.loaded_bytes(size, dtype) for size in (basis.dense_bytes, basis.sparse_bytes))
    return work, loaded + trained


def _trained_dtype(config: LoopConfig) -> str:
    """Return the number format in which a training loads its base; the device may be one of another machine."""
    device = pick_device("auto") if config.device == "auto" else config.device
    return computing_dtype(config.precision, device)


def _estimate(basis: _Basis, name: str) -> Estimate:
    if (baseline := baseline_configs(basis.recipe).get(name)) is None:
        return ESTIMATES[name](basis)
    model = "dense" if name == DENSE_LORA else "sparse"
    work, memory = _training(basis, baseline, basis.dense_bytes if name == DENSE_LORA else basis.sparse_bytes)
    return f"rank {baseline.ranks[0]} on the {model} model, {work}", memory


def _disk(basis: _Basis, name: str) -> int | None:
    """Return the bytes of the files that a stage leaves; None for a model of unknown size."""
    if basis.shape is None or basis.sparse_bytes is None:
        return None
    if name == "sparsify":
        recovery_rank = basis.recipe.sparsify.recover_rank
        recovery = basis.shape.adapter_parameters(dict.fromkeys(basis.shape.sides, recovery_rank))
        return basis.sparse_bytes + FP32_BYTES * recovery
    if name == "export":
        holds = FORMATS[basis.recipe.export.format].holds
        choice = _exported_ranks(basis.recipe)
        if holds == "package":
            return basis.package_bytes(basis.ranks(choice))
        if holds == "gguf":
            return basis.shape.gguf_bytes(basis.recipe.export)
        return FP32_BYTES * basis.adapter(choice) if holds == "adapter" else basis.sparse_bytes
    others = {"heal": basis.sparse_bytes, "search": 0, "evaluate": 0}
    return others[name] if name in others else FP32_BYTES * basis.adapter(SearchSpace.maximal)  # of a training


def _exported_ranks(recipe: Recipe) -> Callable[[SearchSpace], RankConfig]:
    ranks = "maximal" if FORMATS[recipe.export.format].pads else recipe.export.ranks
    return CHOICES.get(ranks or "", SearchSpace.heuristic)


def _train(basis: _Basis) -> Estimate:
    assert basis.recipe.train is not None
    return _training(basis, basis.recipe.train, basis.sparse_bytes)


def _training(basis: _Basis, config: TrainConfig, model_bytes: int | None) -> Estimate:
    """Return the estimate of a training on a model of `model_bytes`."""
    examples, words = _amount(config.data)
    count = examples or 0
    tokens = ""
    if examples is not None and basis.shape is not None and basis.shape.folder is not None:
        length, kept = _example_length(config, basis.shape.folder)
        count = round(examples * kept * (1 - (config.validation_share or 0)))
        tokens = f", about {length * config.num_seen(count):,.0f} tokens"
    passes = "1 to 10" if config.epochs is None else f"{config.epochs:g}"
    steps = f"{config.num_steps(count):,} steps" if count or config.max_steps else f"{passes} epochs in steps"
    held_out = f", validated on {config.validation}" if config.validation else ""
    work = f"{steps} of {config.batch_size} examples, {words}{tokens}{held_out}"
    if model_bytes is None or basis.shape is None:
        return work, None
    largest = basis.adapter(SearchSpace.maximal)
    model_bytes = basis.loaded_bytes(model_bytes, _trained_dtype(config))
    return work, model_bytes + ADAM_BYTES * largest


def _search(basis: _Basis) -> Estimate:
    config = basis.recipe.search
    assert config is not None
    size = f" of {basis.space.size:.3g}" if basis.space else ""
    data = _amount(config.data, config.limit)[1]
    work = f"{config.strategy}, up to {config.budget}{size} configurations, each on {data}"
    if basis.sparse_bytes is None:
        return work, None
    loaded = basis.loaded_bytes(basis.sparse_bytes, config.weights)
    return work, loaded + FP32_BYTES * basis.adapter(SearchSpace.maximal)


def _export(basis: _Basis) -> Estimate:
    config = basis.recipe.export
    ranks = config.ranks or ("the ranks that search chose" if basis.recipe.search else "the heuristic's ranks")
    work = f"format {config.format}, {ranks}" if basis.recipe.train else f"format {config.format}, {config.values}"
    return work, None if basis.shape is None else 2 * FP32_BYTES * basis.adapter(_exported_ranks(basis.recipe))


def _evaluate(basis: _Basis) -> Estimate:
    config = basis.recipe.evaluate
    assert config is not None
    num_models = 2 + bool(basis.recipe.heal) + len(config.baselines) + basis.recipe.exports
    work = f"{config.task}, {num_models} models, each on {_evaluation_data(config)}"
    if basis.dense_bytes is None or basis.sparse_bytes is None:
        return work, None
    dense = basis.loaded_bytes(basis.dense_bytes, config.weights)
    sparse = basis.loaded_bytes(basis.sparse_bytes, config.weights)
    adapted = sparse + FP32_BYTES * basis.adapter(SearchSpace.heuristic)
    bases = (dense if name == DENSE_LORA else sparse for name in config.baselines)
    largest = FP32_BYTES * basis.adapter(SearchSpace.maximal)
    return work, max(dense, adapted, *(base + largest for base in bases))  # one model at a time


ESTIMATES: Mapping[str, Callable[[_Basis], Estimate]] = {
    "sparsify": _sparsify,
    "heal": _heal,
    "train": _train,
    "search": _search,
    "export": _export,
    "evaluate": _evaluate,
}


def _is_local(source: str) -> bool:
    """Tell whether a source can be read without a download."""
    return source.partition(":")[0] == ARITHMETIC or expanded(source).is_file()


def _shown(source: str) -> str:
    return source if _is_local(source) else f"{source} (not here yet)"


def _amount(source: str, limit: int | None = None) -> tuple[int | None, str]:
    """Return how many examples a source has, None if unknown, and the same in words.

    InputError if its rows cannot be read.
    """
    if not _is_local(source):
        count = f"up to {limit:,}" if limit else "an unknown number of"
        return limit, f"{count} examples ({source} is not here yet)"
    with quietly():
        num_rows = len(read_rows(source)[:limit])
    return num_rows, f"{num_rows:,} examples of {source}"


def _evaluation_data(config: EvaluateConfig) -> str:
    """Return the data of an evaluation in words."""
    if config.task == "perplexity":
        windows = f"the first {config.limit:,} windows" if config.limit else "windows"
        return f"{windows} of {config.sequence_length:,} tokens of {_shown(config.data)}"
    if config.task == "harness":
        return (f"up to {config.limit:,} examples of " if config.limit else "") + ", ".join(config.harness)
    return _amount(config.data, config.limit)[1]


def _calibration_tokens(config: SparsifyConfig) -> tuple[int, str]:
    """Return the number of calibration tokens, and the same in words; InputError as in `_amount`."""
    text = str(config.calibration)
    if _is_local(text):
        with quietly():
            lengths = token_row_lengths(text)
        if lengths is not None:
            return sum(lengths), f"all {len(lengths):,} rows of {text}, {sum(lengths):,} tokens"
    num_tokens = config.num_samples * config.sequence_length
    return num_tokens, f"{config.num_samples} x {config.sequence_length} = {num_tokens:,} tokens of {_shown(text)}"


def _example_length(config: TrainConfig, model: Path) -> tuple[float, float]:
    """Estimate the mean tokens of a training example and the share of those that are not too long."""
    tokenizer = load_tokenizer(resolve(model))
    with quietly():
        examples = load_examples(config.data, config.template, tokenizer, NUM_SAMPLED, columns=config.columns)
        rows = tokenize_all(examples, tokenizer, config.max_length)
    return sum(len(row.input_ids) for row in rows) / len(rows), len(rows) / len(examples)


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress log lines, such as those of reading data."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
