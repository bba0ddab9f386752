"""Run all stages of a recipe in one folder: finished stages are skipped, interrupted ones continue."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from shears.adapt.train import train
from shears.config import EvaluateConfig, Recipe
from shears.config.export import FORMATS
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import check_apart
from shears.evaluation.journal import journal_path
from shears.evaluation.run import evaluate, measured, parts_of, template_of
from shears.export.ranks import ranks_file
from shears.export.stage import export_adapter
from shears.inspection import inspect
from shears.models.devices import set_threads
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import (
    EVALUATION,
    RECIPE,
    RESULT,
    SEARCH_SPACE,
    SPARSITY,
    as_data,
    evaluation_file,
    read_object,
    weights_fingerprint,
    write_json,
    write_text,
)
from shears.records.cards.card import write_card
from shears.records.folders import partial_folder, run_lock
from shears.records.paths import expanded, file_fingerprint
from shears.records.timing import timed
from shears.runs.stages import Stage
from shears.searching.stage import search
from shears.sparsity.stage import sparsify

logger = logging.getLogger(__name__)


def run(recipe: Recipe, output: str | Path | None = None) -> dict[str, Any]:
    """Run every stage of a recipe in the folder `output`; return the summary, which evaluation.json holds too.

    InputError for an incomplete recipe, a stage made with another configuration, or a folder that another process uses.
    """
    folder = run_folder(recipe, output)
    set_threads(recipe.threads)
    if recipe.search and recipe.evaluate:
        check_apart(recipe.search.data, recipe.evaluate.data, recipe.search.limit, recipe.evaluate.limit)
    with run_lock(folder):
        stages = stages_of(recipe, folder)
        done = [stage.is_done() for stage in stages]  # raises before any work is done
        write_text(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        for number, (stage, is_done) in enumerate(zip(stages, done, strict=True), start=1):
            if is_done:
                stage.verify()
                logger.info("[%d/%d] %s: done before with this configuration, skipped", number, len(stages), stage.name)
            else:
                logger.info("[%d/%d] %s", number, len(stages), stage.name)
                with timed(folder, stage.name):
                    stage.make()
        return _evaluate_models(recipe, folder) if recipe.evaluate else {"models": []}


def run_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the folder of a run; InputError for a recipe that lacks what a run needs."""
    target = recipe.output if output is None else output
    if not recipe.model or not target:
        raise InputError("a run must have a model and an output folder; add `model:` and `output:` to the recipe")
    if recipe.search and recipe.evaluate and recipe.search.data == recipe.evaluate.data:
        raise InputError(
            f"search must use validation data, never the test split; search and evaluate both have {recipe.search.data}"
        )
    if recipe.search and not recipe.train:
        raise InputError("a run with a search must train first; add a `train:` section to the recipe")
    folder = expanded(target).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output of a run must be a folder, got the file {folder}; choose another output")
    return folder


def stages_of(recipe: Recipe, folder: Path) -> list[Stage]:
    """Return the stages of a recipe in order; each reads the artifact of the one before."""
    assert recipe.model is not None
    model = recipe.model
    sparse = folder / "sparse"
    adapter = folder / "super_adapter"
    searched = folder / "search"

    def inputs_of(key: str, path: str | Path, **sources: str | None) -> Callable[[], dict[str, str]]:
        def fingerprints() -> dict[str, str]:
            weights = resolve(path).fingerprint if key == "base_fingerprint" else weights_fingerprint(Path(path))
            return {key: weights, **_hashes(sources)}

        return fingerprints

    pruning = as_data(recipe.sparsify)
    inputs = inputs_of("base_fingerprint", model, calibration=recipe.sparsify.calibration)
    stages = [Stage("sparsify", sparse, SPARSITY, pruning, inputs, lambda: sparsify(model, sparse, **pruning))]
    if recipe.train is None:
        return stages
    training = as_data(recipe.train)
    stages.append(
        Stage(
            "train", adapter, SEARCH_SPACE, training, inputs_of("base_fingerprint", sparse, data=recipe.train.data),
            lambda: train(sparse, adapter, resume=partial_folder(adapter).exists(), **training),
        )
    )  # fmt: skip
    if recipe.search:
        searching = as_data(recipe.search)
        storage = recipe.search.storage  # `searching` has its URL without the password
        inputs = inputs_of("super_adapter_fingerprint", adapter, data=recipe.search.data, test=recipe.search.test)
        stages.append(
            Stage(
                "search", searched, RESULT, searching, inputs,
                lambda: search(adapter, searched, resume=True, **{**searching, "storage": storage}),
            )
        )  # fmt: skip
    return [*stages, _export_stage(recipe, folder)]


def _hashes(sources: Mapping[str, str | None]) -> dict[str, str]:
    """Return the sha256 of the sources that are files here, under the keys that records use."""
    hashes = {f"{name}_sha256": source_fingerprint(source) for name, source in sources.items() if source}
    return {key: value for key, value in hashes.items() if value}


def _export_stage(recipe: Recipe, folder: Path) -> Stage:
    adapter = folder / "super_adapter"
    ranks = recipe.export.ranks or (str(folder / "search" / RESULT) if recipe.search else "heuristic")
    config = {**as_data(recipe.export), "ranks": ranks}

    def inputs() -> dict[str, str]:
        fingerprints = {"super_adapter_fingerprint": weights_fingerprint(adapter)}
        if file := ranks_file(ranks):
            fingerprints["ranks_fingerprint"] = file_fingerprint(file.path)
        return fingerprints | _hashes({"calibration": recipe.export.calibration})

    form = FORMATS[recipe.export.format]
    output = folder / form.folder
    return Stage("export", output, form.record, config, inputs, lambda: export_adapter(adapter, output, **config))


def _evaluate_models(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Evaluate the dense, the sparse and the exported model on the test data; return the summary and write it."""
    assert recipe.evaluate is not None
    assert recipe.model is not None
    dense = resolve(recipe.model)
    sparse = resolve(folder / "sparse")
    models: dict[str, tuple[ModelRef, Path | None]] = {"dense": (dense, None), "sparse": (sparse, None)}
    if recipe.train:
        form = FORMATS[recipe.export.format]
        if form.is_model:
            models[form.folder] = (resolve(folder / form.folder), None)
        else:
            models["sparse + sub-adapter"] = (sparse, folder / form.folder)
    (folder / "evaluation").mkdir(exist_ok=True)
    config = recipe.evaluate
    if config.task != "perplexity":  # the same template for all models: the recipe's or the training's
        template = template_of(config, *parts_of(dense, folder / "super_adapter" if recipe.train else None))
        config = config.model_copy(update={"template": template})
    rows = [_row(name, *parts, config, folder) for name, parts in models.items()]
    task = {"task": config.task, "data": config.data}
    summary = {**task, "models": rows}
    write_json(folder / EVALUATION, summary)
    figures = [{**task, **row} for row in rows]
    write_card(folder / "sparse", figures[:2])
    if recipe.train:
        write_card(folder / FORMATS[recipe.export.format].folder, figures)
    return summary


def _row(name: str, model: ModelRef, adapter: Path | None, config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """Return the figures and sizes of one model, from an earlier run if it measured the same."""
    file = evaluation_file(folder, name)
    logger.info("evaluate %s", name)
    figures = _earlier_figures(file, model, adapter, config)
    if figures is None:
        with timed(folder, f"evaluate {name}"):
            evaluate(model, file, adapter=str(adapter) if adapter else None, **as_data(config))
        figures = read_object(file)
    weights = inspect(model.folder)
    adapter_parameters = inspect(adapter)["parameters"] if adapter else weights.get("adapter_parameters", 0)
    return {
        "name": name,
        **{key: figures[key] for key in ("metric", "value", "n", "ci95")},
        "details": figures.get("details", {}),
        "sparsity": weights["sparsity"],
        "parameters": weights["parameters"],
        "nonzeros": weights["nonzeros"],
        "adapter_parameters": adapter_parameters,
    }


def _earlier_figures(
    file: Path, model: ModelRef, adapter: Path | None, config: EvaluateConfig
) -> dict[str, Any] | None:
    """Return the figures in a file if they are of this model, data and configuration, else None."""
    if not file.is_file():
        return None
    record = read_object(file)
    expected = measured(model, adapter, config)
    own = config.model_copy(update={"template": None})
    if record.get("config") == as_data(own) and template_of(own, *parts_of(model, adapter)) == config.template:
        expected["config"]["template"] = None  # earlier versions recorded no template; it was the same one here
    if any(record.get(key) != value for key, value in expected.items()):
        logger.info("%s is of another model, prompt, data or setting: measuring again", file)
        return None
    journal_path(file).unlink(missing_ok=True)  # a kill between writing the figures and deleting the journal leaves it
    return record
