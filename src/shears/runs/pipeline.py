"""Run all stages of a recipe in a folder: finished ones are skipped, interrupted ones continue."""

import logging
from pathlib import Path
from typing import Any

import yaml

from shears.checkpoints.inspection import inspect
from shears.config import EvaluateConfig, Recipe
from shears.config.export_options import FORMATS
from shears.evaluation.comparison import lead
from shears.evaluation.evaluated import check_apart, journal_path
from shears.evaluation.run import evaluate, identity_of, with_template
from shears.evaluation.tasks import check_data
from shears.models.ref import ModelRef, resolve
from shears.records import artifacts
from shears.records.artifacts import as_data
from shears.records.folders import partial_folder, refuse_full_disk, run_lock
from shears.records.paths import is_path
from shears.records.publishing import write_card
from shears.records.timing import timed
from shears.runs.plan import bytes_of
from shears.runs.stages import HEALED_FOLDER, baseline_model, run_folder, sparse_folder, stages_of, with_calibration

logger = logging.getLogger(__name__)


def run(recipe: Recipe, output: str | Path | None = None) -> dict[str, Any]:
    """Run every stage of a recipe in the folder `output`; return the content of evaluation.json."""
    folder = run_folder(recipe, output)
    recipe = with_calibration(recipe)
    if recipe.search and recipe.evaluate:
        columns = (recipe.search.columns, recipe.evaluate.columns)
        check_apart(recipe.search.data, recipe.evaluate.data, recipe.search.limit, recipe.evaluate.limit, columns)
    with run_lock(folder):
        stages = stages_of(recipe, folder)
        done = [stage.is_done() for stage in stages]  # raises before any work is done
        missing = [stage for stage, is_done in zip(stages, done, strict=True) if not is_done]
        for stage in missing:
            stage.check()
        if recipe.evaluate and (recipe.evaluate.task == "harness" or is_path(recipe.evaluate.data)):
            check_data(recipe.evaluate)
        begun = [file for stage in missing for file in partial_folder(stage.output).glob("*.safetensors")]
        written = sum(file.stat().st_size for file in begun)
        refuse_full_disk(folder, bytes_of(recipe, [stage.name for stage in missing]) - written)
        artifacts.write_text(folder / artifacts.RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        total = len(stages) + (recipe.evaluate is not None)
        for number, (stage, is_done) in enumerate(zip(stages, done, strict=True), start=1):
            if is_done:
                stage.verify()
                logger.info("[%d/%d] %s is already done with these settings", number, total, stage.name)
            else:
                logger.info("[%d/%d] %s", number, total, stage.name)
                with timed(folder, stage.name):
                    stage.make()
        return _evaluate_models(recipe, folder) if recipe.evaluate else {"models": []}


def _models_of(recipe: Recipe, folder: Path) -> dict[str, tuple[ModelRef, Path | None]]:
    assert recipe.evaluate is not None
    models: dict[str, tuple[ModelRef, Path | None]] = {
        "dense": (resolve(str(recipe.model), recipe.sparsify.dtype), None),
        "sparse": (resolve(folder / "sparse"), None),
    }
    sparse = resolve(sparse_folder(recipe, folder))
    if recipe.heal is not None:
        models["healed"] = (sparse, None)
    for name in recipe.baselines:
        base = resolve(baseline_model(recipe, name, folder))
        models[name] = (base, artifacts.baseline_folder(folder, name))
    if recipe.exports:
        form = FORMATS[recipe.export.format]
        if form.is_model:
            models[form.folder] = (resolve(folder / form.folder), None)
        else:
            models["sparse + sub-adapter"] = (sparse, folder / form.folder)
    return models


def _evaluate_models(recipe: Recipe, folder: Path) -> dict[str, Any]:
    assert recipe.evaluate is not None
    models = _models_of(recipe, folder)
    (folder / "evaluation").mkdir(exist_ok=True)
    # the same template for all models: the recipe's, or the training's, or the dense model's
    config = with_template(recipe.evaluate, models["dense"][0], folder / "super_adapter" if recipe.train else None)
    number = len(stages_of(recipe, folder)) + 1
    rows = []
    for done, (name, parts) in enumerate(models.items(), start=1):
        logger.info("[%d/%d] evaluate (%d of %d): %s", number, number, done, len(models), name)
        rows.append(_row(name, *parts, config, folder))
    task = {"task": config.task, "data": config.data}
    records = {name: artifacts.read_object(artifacts.evaluation_file(folder, name)) for name in models}
    was_trained = artifacts.read_object(folder / "sparse" / artifacts.SPARSITY).get(artifacts.TRAINED_BEFORE)
    only_run_trained = recipe.train is not None and not was_trained
    summary = {**task, "models": rows, "lead": lead(rows, records, only_run_trained=only_run_trained)}
    artifacts.write_json(folder / artifacts.EVALUATION, summary)
    figures = [{**task, **row} for row in rows]
    write_card(folder / "sparse", figures[:2])
    if recipe.heal:
        write_card(folder / HEALED_FOLDER, figures[:3])
    if recipe.exports:
        write_card(folder / FORMATS[recipe.export.format].folder, figures)
    return summary


def _row(name: str, model: ModelRef, adapter: Path | None, config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    file = artifacts.evaluation_file(folder, name)
    figures = _earlier_figures(file, model, adapter, config)
    if figures is None:
        with timed(folder, f"evaluate {name}"):
            evaluate(model, file, adapter=str(adapter) if adapter else None, **as_data(config))
        figures = artifacts.read_object(file)
    weights = inspect(model.folder)
    return {
        "name": name,
        **{key: figures[key] for key in ("metric", "value", "n", "ci95", "details")},
        **{key: weights[key] for key in ("sparsity", "parameters", "nonzeros")},
        "adapter_parameters": inspect(adapter)["parameters"] if adapter else weights.get("adapter_parameters", 0),
    }


def _earlier_figures(
    file: Path, model: ModelRef, adapter: Path | None, config: EvaluateConfig
) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    record = artifacts.read_object(file)
    is_same = all(record.get(key) == value for key, value in identity_of(model, adapter, config).items())
    if not is_same or (config.generates and config.backend not in ("auto", record.get("backend"))):
        return None
    journal_path(file).unlink(missing_ok=True)  # of a run that was killed before it deleted it
    return record
