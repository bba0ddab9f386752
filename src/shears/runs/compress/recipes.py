"""The recipes that make a candidate and the dense fine-tuned model."""

from typing import Any

from shears.checkpoints.tensor_files import TensorFiles
from shears.config import CompressConfig, ExportConfig, HealConfig, Recipe, SparsifyConfig, TrainConfig
from shears.config.fields import DtypeName
from shears.config.sparsify_options import MethodName
from shears.models.fetching import gguf_named
from shears.models.ref import ModelRef
from shears.runs.compress.candidates import Candidate

BEST_METHOD: MethodName = SparsifyConfig.model_fields["method"].default
WITH_SENSITIVITY = ("admm", "sparsegpt")  # docs/explanation/pruning.md: 26.1 in place of 36.7 of Wanda


def dtype_of(model: ModelRef) -> DtypeName:
    """Return the number format in which stages read a model: a .gguf file in that of its conversion."""
    if gguf_named(model.name) is None:
        return "auto"
    files = TensorFiles(model.folder)
    return "bf16" if any(str(files.dtype(name)) == "torch.bfloat16" for name in files.names) else "auto"


def recipe_of(candidate: Candidate, config: CompressConfig, model: ModelRef, text: str) -> Recipe:
    """Return the recipe that makes a candidate, calibrated and healed on the file `text`."""
    sampling: dict[str, Any] = {"sequence_length": config.sequence_length, "seed": config.seed}
    if config.num_samples is not None:
        sampling["num_samples"] = config.num_samples
    method = config.method or BEST_METHOD
    pruning: dict[str, Any] = {"method": method, "calibration": text}
    dense: dict[str, Any] = {"method": "magnitude"}  # needs no text
    heal = _heal(config, text, candidate.values) if candidate.sparsity and config.heal else None
    on_grid = config.data is not None or (heal is not None and heal.quantize_aware != "none")
    rounds = candidate.values == "int4" and not on_grid
    return Recipe(
        model=model.name,
        threads=config.threads,
        sparsify=SparsifyConfig(
            sparsity=candidate.sparsity, dtype=dtype_of(model), **sampling,
            **(pruning if candidate.sparsity else dense),
        ),
        heal=heal,
        train=_train(candidate, config, text),
        export=ExportConfig(
            format="package", values=candidate.values, embeddings=candidate.embeddings,
            calibration=text if rounds else None, **sampling,
        ),
    )  # fmt: skip


def _heal(config: CompressConfig, text: str, values: str) -> HealConfig:
    """Return how a pruned model is healed: on the grid of int4, if its package has int4 values."""
    assert config.heal is not None
    steps = HealConfig(data=text, tokens=config.heal, sequence_length=config.sequence_length).num_steps
    warmup = min(HealConfig.model_fields["warmup_steps"].default, steps - 1)
    return HealConfig(
        data=text, tokens=config.heal, sequence_length=config.sequence_length, teacher=config.teacher,
        warmup_steps=warmup, seed=config.seed, quantize_aware="int4" if values == "int4" else "none",
    )  # fmt: skip


def _train(candidate: Candidate, config: CompressConfig, text: str) -> TrainConfig | None:
    """Return how the adapter is trained: for the zeros and, if asked, for the grid of int4.

    It has one rank: it vanishes into the package, whose size and speed no smaller rank would change.
    The zeros mask a share of its product, which the default alpha makes up for.
    """
    if config.data is None:
        return None
    return _one_rank(config, text, teacher=config.teacher, **masked_for(candidate.values))


def masked_for(values: str) -> dict[str, Any]:
    """Return the options of a training whose adapter is merged into a package of these values: zeros stay zeros."""
    return {"quantize_aware": "int4"} if values == "int4" else {"sparse_adapter": True}


def teacher_training(config: CompressConfig, text: str) -> TrainConfig:
    """Return how the dense model is trained on the rows, for as many steps as the packages."""
    return _one_rank(config, text)


def _one_rank(config: CompressConfig, text: str, **others: Any) -> TrainConfig:
    length: dict[str, Any] = {"max_steps": config.max_steps}
    options = TrainConfig.model_fields
    if config.max_steps is not None:
        length["warmup_steps"] = min(options["warmup_steps"].default, config.max_steps - 1)
    length["max_length"] = max(options["max_length"].default, config.sequence_length)
    return TrainConfig(data=text if config.calibration is None else config.data, seed=config.seed, **length, **others)
