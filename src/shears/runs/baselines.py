"""Baselines of a run: plain LoRA at one rank, on the dense or on the pruned model, with the budget of its training."""

from pathlib import Path
from typing import Any

from shears.config import Recipe, TrainConfig
from shears.config.evaluate import BASELINES
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import as_data
from shears.records.paths import expanded

DENSE_LORA, SPARSE_LORA = BASELINES
HEALED_FOLDER = "healed"  # in a run's folder


def baseline_configs(recipe: Recipe) -> dict[str, TrainConfig]:
    """Return how each baseline of a recipe is trained, by its name: as the run trains, but for what `_plain` changes.

    So data, steps, batch size, alpha, groups and seed are the run's, and so is the learning rate unless the recipe
    gives the baseline one of its own.
    """
    if recipe.train is None or recipe.evaluate is None:
        return {}
    own = as_data(recipe.train)
    configs = {}
    for name, baseline in recipe.evaluate.baselines.items():
        given = {key: value for key, value in as_data(baseline).items() if value is not None}
        configs[name] = TrainConfig.model_validate({**own, **_plain(recipe.train, name), **given})
    return configs


def _plain(train: TrainConfig, name: str) -> dict[str, Any]:
    """Return the settings of plain LoRA: the largest rank alone; on the dense model also nothing about zeros.

    The dense model has nothing to recover, no zeros to keep and no teacher. On the pruned model the start is the run's
    own, so that the run differs from its baseline in nothing but the choice of ranks.
    """
    one_rank = {"adapter": "lora", "ranks": train.ranks[:1], "sampling": "maximal", "reorder": False, "curriculum": 0.0}
    if name == SPARSE_LORA:
        return one_rank
    plain = {"sparse_adapter": False, "quantize_aware": "none", "learn_scales": False, "teacher": None}
    return {**one_rank, "init": "lora" if train.init == "recovery" else train.init, **plain}


def sparse_folder(recipe: Recipe, folder: Path) -> Path:
    """Return the folder of the sparse model that a run trains on: the healed one where the recipe heals."""
    return folder / (HEALED_FOLDER if recipe.heal is not None else "sparse")


def dense_model(recipe: Recipe) -> ModelRef:
    """Return the model that a run prunes; a .gguf file is converted into the number format of the pruned model."""
    assert recipe.model is not None
    return resolve(recipe.model, recipe.sparsify.dtype)


def baseline_model(recipe: Recipe, name: str, folder: Path) -> str | Path:
    """Return the model that a baseline of a run in `folder` is trained on.

    A .gguf file that the run converts to bf16 is given by its folder, because its name means the fp32 conversion.
    """
    assert recipe.model is not None
    if name != DENSE_LORA:
        return sparse_folder(recipe, folder)
    is_bf16_file = recipe.sparsify.dtype == "bf16" and expanded(recipe.model).is_file()
    return dense_model(recipe).folder if is_bf16_file else recipe.model
