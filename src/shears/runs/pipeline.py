"""Run all stages of a recipe in one folder: finished stages are skipped, interrupted ones continue."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from shears.adapt.groups import resolved_groups
from shears.adapt.ranks import ranks_file, ranks_name
from shears.adapt.train import train
from shears.checkpoints.inspection import inspect
from shears.config import (
    EvaluateConfig,
    HealConfig,
    Recipe,
    RunEvaluateConfig,
    SearchConfig,
    SparsifyConfig,
    TrainConfig,
)
from shears.config.export import FORMATS
from shears.config.resolve import build, section_class
from shears.data.calibration import check_text
from shears.data.example import OWN_NAMES
from shears.data.examples import check_rows
from shears.data.rows import source_fingerprint
from shears.errors import InputError, memory_of
from shears.evaluation.comparison import lead
from shears.evaluation.contamination import check_apart
from shears.evaluation.records import journal_path
from shears.evaluation.run import answered_as_asked, evaluate, measured, parts_of, template_of
from shears.evaluation.tasks.registry import check_data
from shears.export.stage import export_adapter
from shears.healing.prepare import teacher_of
from shears.healing.stage import heal
from shears.models.devices import pick_device, resolved_precision, set_threads
from shears.models.ref import ModelRef, resolve
from shears.records import artifacts
from shears.records.artifacts import as_data
from shears.records.card import write_card
from shears.records.folders import named_folder, partial_folder, refuse_full_disk, run_lock
from shears.records.paths import expanded, file_fingerprint, is_path
from shears.records.timing import timed
from shears.runs.baselines import HEALED_FOLDER, baseline_configs, baseline_model, dense_model, sparse_folder
from shears.searching.stage import search
from shears.sparsity.stage import sparsify
from shears.training.step_log import check_trackers
from shears.training.teacher import find_teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of a run: its artifact, its configuration, its inputs and the function that makes it."""

    name: str
    output: Path
    record: str
    """Name of the record in `output`."""
    config: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, str]]
    """Returns the fingerprints of the inputs."""
    make: Callable[[], object]

    @property
    def section(self) -> str:
        """The section of the recipe that configures the stage; the names of baselines are none."""
        return self.name if self.name in Recipe.model_fields else "train"

    def is_done(self) -> bool:
        """Tell whether the artifact exists.

        InputError if it was made with another configuration or is damaged. `StageConfig.of_record`
        reads the record, so that options that this version does not have are ignored.
        """
        if not (self.output / self.record).is_file():
            return False
        before = _prefixed(self.section, self._recorded_config())
        artifacts.refuse_changes(self.output, before, _prefixed(self.section, self.config))
        return True

    def _recorded_config(self) -> dict[str, Any]:
        """Return the configuration in the record; InputError for any other content."""
        record = artifacts.read_json(self.output / self.record)
        config = record.get("config") if isinstance(record, dict) else None
        if not isinstance(config, dict):
            raise InputError(
                f"{self.output / self.record} must hold the configuration of {self.name}, got "
                f"{config!r:.40}; the file is damaged or belongs to another tool: delete {self.output} "
                "or choose another output"
            )
        kind = section_class(Recipe, [self.section])
        try:
            return as_data(build(kind, self.section, kind.of_record(config)))
        except InputError as error:
            raise InputError(
                f"{self.output} was made by version {record.get('shears_version')} with an option that "
                f"this version does not have, or its record is damaged: {error}; delete it or choose "
                "another output"
            ) from None

    def verify(self) -> None:
        """Raise InputError if the artifact was made from other inputs than the present ones."""
        record = artifacts.read_record(self.output, self.record)
        for key, fingerprint in self.inputs().items():
            if (recorded := record.get(key)) is not None:  # embedded data have no fingerprint
                name = key.removesuffix("_fingerprint").removesuffix("_sha256")
                artifacts.check_input(f"{name} of {self.output}", recorded, fingerprint)


def _prefixed(section: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration under keys such as `export.ranks`, with ranks by their name."""
    named = {"ranks": ranks_name(config["ranks"])} if section == "export" and config["ranks"] else {}
    return {f"{section}.{key}": value for key, value in {**config, **named}.items()}


def run(recipe: Recipe, output: str | Path | None = None) -> dict[str, Any]:
    """Run every stage of a recipe in the folder `output`; return the content of evaluation.json.

    InputError for an incomplete recipe, a stage that was made with another configuration, or a
    folder that another process uses.
    """
    folder = run_folder(recipe, output)
    recipe = with_calibration(recipe)
    set_threads(recipe.threads)
    if recipe.search and recipe.evaluate:
        columns = (recipe.search.columns, recipe.evaluate.columns)
        check_apart(recipe.search.data, recipe.evaluate.data, recipe.search.limit, recipe.evaluate.limit, columns)
    with run_lock(folder):
        stages = stages_of(recipe, folder)
        done = [stage.is_done() for stage in stages]  # raises before any work is done
        _check_rows(recipe, {stage.name for stage, is_done in zip(stages, done, strict=True) if is_done})
        _check_trainings(recipe)
        _refuse_full_disk(recipe, folder)
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        artifacts.write_text(folder / artifacts.RECIPE, text)
        total = len(stages) + (recipe.evaluate is not None)
        for number, (stage, is_done) in enumerate(zip(stages, done, strict=True), start=1):
            if is_done:
                stage.verify()
                logger.info("[%d/%d] %s: done before with this configuration, skipped", number, total, stage.name)
            else:
                logger.info("[%d/%d] %s", number, total, stage.name)
                with timed(folder, stage.name), memory_of(stage.name):
                    stage.make()
        return _evaluate_models(recipe, folder) if recipe.evaluate else {"models": []}


def _check_rows(recipe: Recipe, done: Collection[str]) -> None:
    """Raise InputError, before any work is done, for data and packages that a stage could not use.

    Data sets of the hub that are not here yet are left to their stage.
    """
    sources = list[tuple[str | None, Mapping[str, str], int | None]]()
    if (training := recipe.train) and "train" not in done:
        sources += [(source, training.columns, None) for source in (training.data, training.validation_source)]
    if (search := recipe.search) and "search" not in done:
        sources += [(search.data, search.columns, search.limit), (search.test, search.columns, None)]
    for text, columns in _texts(recipe, done):
        if text and is_path(text):
            check_text(text, columns)
    for source, columns, limit in sources:
        if source and is_path(source):
            check_rows(source, columns, limit)
    if recipe.evaluate and (recipe.evaluate.task == "harness" or is_path(recipe.evaluate.data)):
        check_data(recipe.evaluate)


def _texts(recipe: Recipe, done: Collection[str]) -> list[tuple[str | None, Mapping[str, str]]]:
    """Return the texts that the stages to come read, each with its columns."""
    texts: dict[str, tuple[str | None, Mapping[str, str]]] = {"export": (recipe.export.calibration, OWN_NAMES)}
    if recipe.sparsify.needs_calibration:
        texts["sparsify"] = (recipe.sparsify.calibration, recipe.sparsify.columns)
    if recipe.heal:
        texts["heal"] = (recipe.heal.data, recipe.heal.columns)
    return [text for name, text in texts.items() if name not in done]


def _check_trainings(recipe: Recipe) -> None:
    """Raise InputError, before any work is done, for trackers, devices and teachers that are not there."""
    for stage in (recipe.heal, recipe.train):
        if stage is not None:
            check_trackers(stage.report_to)
            resolved_precision(stage.precision, pick_device(stage.device))
            if stage.teacher is not None:
                find_teacher(stage.teacher)


def _refuse_full_disk(recipe: Recipe, folder: Path) -> None:
    from shears.runs.plan import plan  # it is made of this module's stages

    refuse_full_disk(folder, plan(recipe, folder).bytes_to_write)


def run_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the folder of a run; InputError for a recipe that lacks what a run needs."""
    target = recipe.output if output is None else output
    if not recipe.model or not target:
        raise InputError("a run must have a model and an output folder; add `model:` and `output:` to the recipe")
    if recipe.search and recipe.evaluate and recipe.search.data == recipe.evaluate.data:
        rule = "search must use validation data, never the test split"
        raise InputError(f"{rule}; search and evaluate both have {recipe.search.data}")
    if recipe.search and not recipe.train:
        raise InputError("a run with a search must train first; add a `train:` section to the recipe")
    if recipe.train and recipe.train.quantize_aware != "none":
        _check_rounded(recipe)
    _check_recovery(recipe)
    if recipe.evaluate and not recipe.train:
        _check_untrained(recipe.evaluate)
    folder = named_folder(expanded(target)).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output of a run must be a folder, got the file {folder}; choose another output")
    return folder


def _check_untrained(config: RunEvaluateConfig) -> None:
    """Raise InputError for measurements that need a training, in a run without one."""
    if config.ranks:
        raise InputError("a run must train to be measured at all ranks, got no `train:` section; drop evaluate.ranks")
    if config.baselines:
        raise InputError(
            "a run must train to have baselines, which take its settings; got "
            f"{', '.join(config.baselines)} and no `train:` section: add one or drop evaluate.baselines"
        )


def _check_recovery(recipe: Recipe) -> None:
    """Raise InputError, before any work is done, for a recovery that a later stage would miss."""
    heals = recipe.heal is not None and recipe.heal.recovery
    starts = recipe.train is not None and recipe.train.init == "recovery"
    if starts and recipe.heal is not None and not heals:
        raise InputError(
            "a run that heals and trains with init recovery must heal the recovery too; add "
            "`recovery: true` to the `heal:` section, or set train.init to lora"
        )
    if (heals or starts) and not recipe.sparsify.recover_rank:
        rule = "a run that uses a recovery must make one"
        raise InputError(f"{rule}, got sparsify.recover_rank 0; set it, such as to 32")


def _check_rounded(recipe: Recipe) -> None:
    """Raise InputError, before any work is done, for an export that refuses a quantize_aware adapter."""
    export = recipe.export
    if not FORMATS[export.format].is_model or export.values not in ("auto", "int4"):
        raise InputError(
            "a run that trains with quantize_aware must export format package with values int4 (or a "
            f"merged format), got format {export.format} with values {export.values}; change the "
            "`export:` section"
        )


def with_calibration(recipe: Recipe) -> Recipe:
    """Return a recipe with the calibration text of its model; InputError where it must be given."""
    return recipe.model_copy(update={"sparsify": recipe.sparsify.for_model(str(recipe.model))})


def stages_of(recipe: Recipe, folder: Path) -> list[Stage]:
    """Return the stages of a recipe in order; each reads the artifact of the one before."""
    assert recipe.model is not None
    stages = [_sparsify_stage(recipe.sparsify, recipe.model, folder)]
    if recipe.heal is not None:
        stages.append(_heal_stage(recipe.heal, folder))
    sparse = sparse_folder(recipe, folder)
    if recipe.train is not None:
        stages.append(_training("train", lambda: sparse, folder / "super_adapter", recipe.train, sparse))
        if recipe.search is not None:
            stages.append(_search_stage(recipe.search, folder))
    if recipe.train is not None or FORMATS[recipe.export.format].holds == "package":
        stages.append(_export_stage(recipe, folder))
    for name, config in baseline_configs(recipe).items():
        model = partial(baseline_model, recipe, name, folder)
        stages.append(_training(name, model, artifacts.baseline_folder(folder, name), config, sparse))
    return stages


def _sparsify_stage(config: SparsifyConfig, model: str, folder: Path) -> Stage:
    output = folder / "sparse"
    values = as_data(config)

    def inputs() -> dict[str, str]:
        fingerprint = resolve(model, config.dtype).fingerprint
        return {"base_fingerprint": fingerprint, **_hashes(calibration=config.calibration)}

    return Stage("sparsify", output, artifacts.SPARSITY, values, inputs, lambda: sparsify(model, output, **values))


def _heal_stage(config: HealConfig, folder: Path) -> Stage:
    sparse = folder / "sparse"
    output = folder / HEALED_FOLDER
    values = as_data(config)

    def inputs() -> dict[str, str]:
        base = resolve(sparse)
        teacher = teacher_of(base, config)
        fingerprints = {"base_fingerprint": base.fingerprint, "teacher_fingerprint": teacher.fingerprint}
        if config.recovery:
            recovery = sparse / artifacts.RECOVERY_FOLDER
            fingerprints["recovery_fingerprint"] = artifacts.weights_fingerprint(recovery)
        return fingerprints | _hashes(data=config.data)

    def make() -> Path:
        return heal(sparse, output, resume=partial_folder(output).exists(), **values)

    return Stage("heal", output, artifacts.HEALED, values, inputs, make)


def _training(name: str, model: Callable[[], str | Path], output: Path, config: TrainConfig, sparse: Path) -> Stage:
    """Return a stage that trains on the model that `model` returns, which may convert a file first.

    `sparse` is a model of the same architecture; its groups are those of the training.
    """
    values = as_data(config)
    if (output / artifacts.SEARCH_SPACE).is_file() and sparse.is_dir():  # its record names the groups
        values["groups"] = list(resolved_groups(config.groups, sparse))

    def inputs() -> dict[str, str]:
        hashes = _hashes(data=config.data, validation=config.validation_source)
        taught = {"teacher_fingerprint": find_teacher(config.teacher).fingerprint} if config.teacher else {}
        return {"base_fingerprint": resolve(model()).fingerprint, **taught, **hashes}

    def make() -> Path:
        return train(model(), output, resume=partial_folder(output).exists(), **values)

    return Stage(name, output, artifacts.SEARCH_SPACE, values, inputs, make)


def _search_stage(config: SearchConfig, folder: Path) -> Stage:
    adapter = folder / "super_adapter"
    output = folder / "search"
    values = as_data(config)

    def inputs() -> dict[str, str]:
        fingerprint = artifacts.weights_fingerprint(adapter)
        return {"super_adapter_fingerprint": fingerprint, **_hashes(data=config.data, test=config.test)}

    def make() -> Path:  # `values` has the URL of the storage without the password
        return search(adapter, output, resume=True, **{**values, "storage": config.storage})

    return Stage("search", output, artifacts.RESULT, values, inputs, make)


def _export_stage(recipe: Recipe, folder: Path) -> Stage:
    """Return the stage that exports a sub-adapter; in a run without training, the sparse model."""
    form = FORMATS[recipe.export.format]
    output = folder / form.folder
    values = as_data(recipe.export)
    source = sparse_folder(recipe, folder)
    key = "base_fingerprint"
    ranks = None
    if recipe.train is not None:
        source = folder / "super_adapter"
        key = "super_adapter_fingerprint"
        found = str(folder / "search" / artifacts.RESULT) if recipe.search else "heuristic"
        ranks = values["ranks"] = recipe.export.ranks or found

    def inputs() -> dict[str, str]:
        fingerprints = {key: artifacts.weights_fingerprint(source)}
        if ranks and (file := ranks_file(ranks)):
            fingerprints["ranks_fingerprint"] = file_fingerprint(file.path)
        return fingerprints | _hashes(calibration=recipe.export.calibration)

    return Stage("export", output, form.record, values, inputs, lambda: export_adapter(source, output, **values))


def _hashes(**sources: str | None) -> dict[str, str]:
    """Return the sha256 of the sources that are local files, under the keys of records."""
    hashes = {f"{name}_sha256": source_fingerprint(source) for name, source in sources.items() if source}
    return {key: value for key, value in hashes.items() if value}


def _models_of(recipe: Recipe, folder: Path) -> dict[str, tuple[ModelRef, Path | None]]:
    """Return the dense, sparse, baseline and exported models, each with its adapter, by name."""
    assert recipe.evaluate is not None
    dense = dense_model(recipe)
    models: dict[str, tuple[ModelRef, Path | None]] = {
        "dense": (dense, None),
        "sparse": (resolve(folder / "sparse"), None),
    }
    sparse = resolve(sparse_folder(recipe, folder))
    if recipe.heal is not None:
        models["healed"] = (sparse, None)
    for name in recipe.evaluate.baselines:
        base = resolve(baseline_model(recipe, name, folder))
        models[name] = (base, artifacts.baseline_folder(folder, name))
    form = FORMATS[recipe.export.format]
    if recipe.train or form.holds == "package":
        if form.is_model:
            models[form.folder] = (resolve(folder / form.folder), None)
        else:
            models["sparse + sub-adapter"] = (sparse, folder / form.folder)
    return models


def _evaluate_models(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Evaluate all models of a run; return the summary and write it."""
    assert recipe.evaluate is not None
    models = _models_of(recipe, folder)
    (folder / "evaluation").mkdir(exist_ok=True)
    config = recipe.evaluate.measurement
    if config.task != "perplexity":  # the same template for all models: the recipe's or the training's
        adapter = folder / "super_adapter" if recipe.train else None
        template = template_of(config, *parts_of(models["dense"][0], adapter))
        config = config.model_copy(update={"template": template})
    number = len(stages_of(recipe, folder)) + 1
    rows = []
    for done, (name, parts) in enumerate(models.items(), start=1):
        logger.info("[%d/%d] evaluate (%d of %d): %s", number, number, done, len(models), name)
        with memory_of("evaluate"):
            rows.append(_row(name, *parts, config, folder))
    if (ranks := recipe.evaluate.ranks) is not None:
        _measure_ranks(models["sparse"][0], config.model_copy(update={"ranks": ranks}), folder)
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
    if recipe.train or FORMATS[recipe.export.format].holds == "package":
        write_card(folder / FORMATS[recipe.export.format].folder, figures)
    return summary


def _measure_ranks(sparse: ModelRef, config: EvaluateConfig, folder: Path) -> None:
    """Measure the super-adapter at all of its ranks for the report, unless an earlier run did."""
    file = artifacts.evaluation_file(folder, artifacts.ALL_RANKS)
    adapter = folder / "super_adapter"
    if _earlier_figures(file, sparse, adapter, config) is None:
        logger.info("evaluate: the super-adapter at all ranks")
        with timed(folder, "evaluate ranks"), memory_of("evaluate"):
            evaluate(sparse, file, adapter=str(adapter), **as_data(config))


def _row(name: str, model: ModelRef, adapter: Path | None, config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """Return the figures and sizes of one model, from an earlier run if it measured the same."""
    file = artifacts.evaluation_file(folder, name)
    figures = _earlier_figures(file, model, adapter, config)
    if figures is None:
        with timed(folder, f"evaluate {name}"):
            evaluate(model, file, adapter=str(adapter) if adapter else None, **as_data(config))
        figures = artifacts.read_object(file)
    weights = inspect(model.folder)
    adapter_parameters = inspect(adapter)["parameters"] if adapter else weights.get("adapter_parameters", 0)
    return {
        "name": name,
        **{key: figures[key] for key in ("metric", "value", "n", "ci95")},
        "details": figures.get("details", {}),
        **{key: weights[key] for key in ("sparsity", "parameters", "nonzeros")},
        "adapter_parameters": adapter_parameters,
    }


def _earlier_figures(
    file: Path, model: ModelRef, adapter: Path | None, config: EvaluateConfig
) -> dict[str, Any] | None:
    """Return the figures in a file if they are of this model, data and configuration, else None."""
    if not file.is_file():
        return None
    record = artifacts.read_object(file)
    expected = measured(model, adapter, config)
    settings = record.get("config")
    before = {**record, "config": EvaluateConfig.of_record(settings if isinstance(settings, dict) else {})}
    expected["config"] = EvaluateConfig.of_record(expected["config"])
    is_same = all(before.get(key) == value for key, value in expected.items())
    if not (is_same and answered_as_asked(record, config)):
        logger.info("%s is of another model, prompt, data or setting: measuring again", file)
        return None
    journal_path(file).unlink(missing_ok=True)  # of a run that was killed before it deleted it
    return record
