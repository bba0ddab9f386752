"""Baselines of a run: plain LoRA at one rank on the dense or the pruned model, trained as the run trains."""

from pathlib import Path
from typing import Any

from shears.config import Recipe, TrainConfig
from shears.config.evaluate_options import BASELINES
from shears.models.fetching import gguf_named
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import as_data

DENSE_LORA, SPARSE_LORA = BASELINES
HEALED_FOLDER = "healed"  # in a run's folder


def baseline_configs(recipe: Recipe) -> dict[str, TrainConfig]:
    """Return the training of each baseline of a recipe by name: the run's, with the changes of `_plain`.

    A recipe may give a baseline a learning rate of its own.
    """
    if recipe.train is None or recipe.evaluate is None:
        return {}
    own = as_data(recipe.train)
    configs: dict[str, TrainConfig] = {}
    for name, baseline in recipe.evaluate.baselines.items():
        given = {key: value for key, value in as_data(baseline).items() if value is not None}
        configs[name] = TrainConfig.model_validate({**own, **_plain(recipe, recipe.train, name), **given})
    return configs


def _plain(recipe: Recipe, train: TrainConfig, name: str) -> dict[str, Any]:
    """Return the settings of plain LoRA: the largest rank alone.

    On the pruned model the run and its baseline differ in the choice of ranks only. The dense model
    has no zeros to keep, no teacher, and nothing to recover.
    """
    one_rank = {"ranks": train.ranks[:1], "sampling": "uniform"}
    if name == SPARSE_LORA:
        return one_rank
    plain = {"sparse_adapter": False, "quantize_aware": "none", "teacher": None}
    return {**one_rank, "init": "lora", **plain}


def sparse_folder(recipe: Recipe, folder: Path) -> Path:
    """Return the folder of the sparse model that a run trains on: the healed one if the recipe heals."""
    return folder / (HEALED_FOLDER if recipe.heal is not None else "sparse")


def dense_model(model: str, dtype: str, folder: Path) -> ModelRef:
    """Return the model that the run in `folder` prunes, or has pruned; a .gguf file is converted to `dtype`."""
    return resolve(model, dtype)


def baseline_model(recipe: Recipe, name: str, folder: Path) -> str | Path:
    """Return the model that a baseline is trained on.

    The result for a .gguf file that the run converts to bf16 is its folder, because the name of the
    file means the fp32 conversion.
    """
    assert recipe.model is not None
    if name != DENSE_LORA:
        return sparse_folder(recipe, folder)
    if gguf_named(recipe.model) is None:
        return recipe.model
    dense = dense_model(recipe.model, recipe.sparsify.dtype, folder)
    return dense.folder if recipe.sparsify.dtype == "bf16" else dense.name
