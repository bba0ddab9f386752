"""All stages of a recipe in one folder: what is there and fits is skipped, what was interrupted goes on."""

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
    read_json,
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
    """Run every stage the recipe has in the folder `output`; return the summary written to `evaluation.json`.

    InputError for a recipe that lacks what a run needs, a stage made with another configuration, or a folder another
    process works on.
    """
    folder = run_folder(recipe, output)
    set_threads(recipe.threads)
    if recipe.search and recipe.evaluate:
        check_apart(recipe.search.data, recipe.evaluate.data, recipe.search.limit, recipe.evaluate.limit)
    with run_lock(folder):
        stages = stages_of(recipe, folder)
        done = [stage.is_done() for stage in stages]  # refuse before any work is done
        write_text(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        for number, (stage, is_done) in enumerate(zip(stages, done, strict=True), start=1):
            if is_done:
                stage.verify()
                logger.info("[%d/%d] %s: done before, fits, skipped", number, len(stages), stage.name)
            else:
                logger.info("[%d/%d] %s", number, len(stages), stage.name)
                with timed(folder, stage.name):
                    stage.make()
        return _measure(recipe, folder) if recipe.evaluate else {"models": []}


def run_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the folder of a run; InputError for a recipe that lacks what a run needs."""
    target = recipe.output if output is None else output
    if not recipe.model or not target:
        raise InputError("a run must have a model and an output folder; add `model:` and `output:` to the recipe")
    if recipe.search and recipe.evaluate and recipe.search.data == recipe.evaluate.data:
        raise InputError(f"search must see validation data, never the test split; both are {recipe.search.data}")
    if recipe.search and not recipe.train:
        raise InputError("a run that searches must train first; add a `train:` section to the recipe")
    folder = expanded(target).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output of a run must be a folder, got the file {folder}; name another")
    return folder


def _is_begun(output: Path) -> bool:
    """Tell whether an interrupted run left something to go on from."""
    return partial_folder(output).exists()


def stages_of(recipe: Recipe, folder: Path) -> list[Stage]:
    """The recipe's stages in order; each reads the artifact of the one before."""
    assert recipe.model is not None
    model = recipe.model
    sparse, adapter, found = folder / "sparse", folder / "super_adapter", folder / "search"

    def made_from(key: str, path: str | Path, **texts: str | None) -> Callable[[], dict[str, str]]:
        def inputs() -> dict[str, str]:
            weights = resolve(path).fingerprint if key == "base_fingerprint" else weights_fingerprint(Path(path))
            return {key: weights, **_hashes(texts)}

        return inputs

    pruned, adapted = as_data(recipe.sparsify), as_data(recipe.train) if recipe.train else {}
    stages = [
        Stage("sparsify", sparse, SPARSITY, pruned,
              made_from("base_fingerprint", model, calibration=recipe.sparsify.calibration),
              lambda: sparsify(model, sparse, **pruned)),
    ]  # fmt: skip
    if recipe.train:
        stages.append(
            Stage("train", adapter, SEARCH_SPACE, adapted,
                  made_from("base_fingerprint", sparse, data=recipe.train.data),
                  lambda: train(sparse, adapter, resume=_is_begun(adapter), **adapted))
        )  # fmt: skip
    if recipe.search:
        searched, storage = as_data(recipe.search), recipe.search.storage  # as data, the URL lacks its password
        stages.append(
            Stage("search", found, RESULT, searched,
                  made_from("super_adapter_fingerprint", adapter, data=recipe.search.data, test=recipe.search.test),
                  lambda: search(adapter, found, resume=True, **{**searched, "storage": storage}))
        )  # fmt: skip
    return [*stages, _export_stage(recipe, folder)] if recipe.train else stages


def _hashes(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Return sha256 of the texts that are files here, under the keys that records have it by."""
    found = {f"{name}_sha256": source_fingerprint(source) for name, source in texts.items() if source}
    return {key: value for key, value in found.items() if value}


def _export_stage(recipe: Recipe, folder: Path) -> Stage:
    adapter, result = folder / "super_adapter", folder / "search" / RESULT
    ranks = recipe.export.ranks or (str(result) if recipe.search else "heuristic")
    config = {**as_data(recipe.export), "ranks": ranks}

    def inputs() -> dict[str, str]:
        found = {"super_adapter_fingerprint": weights_fingerprint(adapter)}
        if file := ranks_file(ranks):
            found["ranks_fingerprint"] = file_fingerprint(file.path)
        return found | _hashes({"calibration": recipe.export.calibration})

    form = FORMATS[recipe.export.format]
    output = folder / form.folder
    return Stage("export", output, form.record, config, inputs, lambda: export_adapter(adapter, output, **config))


def _measure(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Evaluate the dense, the sparse and the sparse + sub-adapter model on the test data, each once."""
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
    config = _asked(recipe.evaluate, *parts_of(dense, folder / "super_adapter" if recipe.train else None))
    rows = [_row(name, *parts, config, folder) for name, parts in models.items()]
    summary = {"task": config.task, "data": config.data, "models": rows}
    write_json(folder / EVALUATION, summary)
    _write_figures(recipe, folder, summary)
    return summary


def _asked(config: EvaluateConfig, *trained: Path) -> EvaluateConfig:
    """Return what every model of a run is asked, all in the template of the first of `trained` that has one, or named.

    A text, whose perplexity is measured, has no template.
    """
    if config.task == "perplexity":
        return config
    return config.model_copy(update={"template": template_of(config, *trained)})


def _write_figures(recipe: Recipe, folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what was measured into the cards of the run's models."""
    asked = {"task": summary["task"], "data": summary["data"]}
    figures = [{**asked, **row} for row in summary["models"]]
    write_card(folder / "sparse", figures[:2])
    if recipe.train:
        write_card(folder / FORMATS[recipe.export.format].folder, figures)


def _row(name: str, model: ModelRef, adapter: Path | None, config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    file = evaluation_file(folder, name)
    logger.info("evaluate %s", name)
    figures = _measurement(file, model, adapter, config) or _evaluated(folder, name, model, adapter, config)
    weights, extra = inspect(model.folder), inspect(adapter) if adapter else None
    return {
        "name": name,
        **{key: figures[key] for key in ("metric", "value", "n", "ci95")},
        "details": figures.get("details", {}),
        "sparsity": weights["sparsity"],
        "parameters": weights["parameters"],
        "nonzeros": weights["nonzeros"],
        "adapter_parameters": extra["parameters"] if extra else weights.get("adapter_parameters", 0),
    }


def _measurement(file: Path, model: ModelRef, adapter: Path | None, config: EvaluateConfig) -> dict[str, Any] | None:
    """Return the figures of one model where the very same measurement is there, else None."""
    if not file.is_file():
        return None
    before, asked = read_object(file), measured(model, adapter, config)
    own = config.model_copy(update={"template": None})
    if before.get("config") == as_data(own) and template_of(own, *parts_of(model, adapter)) == config.template:
        asked["config"]["template"] = None  # earlier versions asked each model in its own, here the same
    if any(before.get(key) != value for key, value in asked.items()):
        logger.info("%s is of another model, prompt, data or setting: measured again", file)
        return None
    journal_path(file).unlink(missing_ok=True)  # left by a kill between the figures and its removal
    return before


def _evaluated(
    folder: Path, name: str, model: ModelRef, adapter: Path | None, config: EvaluateConfig
) -> dict[str, Any]:
    """Return the figures of one model, measured now."""
    file = evaluation_file(folder, name)
    with timed(folder, f"evaluate {name}"):
        evaluate(model, file, adapter=str(adapter) if adapter else None, **as_data(config))
    figures: dict[str, Any] = read_json(file)
    return figures
