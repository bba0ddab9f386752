"""The stages of a recipe: what each makes, from what, and when it is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shears.adapt.groups import with_auto
from shears.adapt.super_adapter import ranks_file
from shears.adapt.train import train
from shears.checkpoints.without_code import empty_model
from shears.config import HealConfig, Recipe, SearchConfig, TrainConfig
from shears.config.evaluate_options import BASELINES
from shears.config.export_options import FORMATS
from shears.config.fields import TemplateName
from shears.config.train_options import LoopConfig
from shears.data.calibration import check_text, text_template_of
from shears.data.examples import check_rows
from shears.data.rows import source_fingerprint
from shears.errors import InputError, reading
from shears.export.peft import export_adapter
from shears.models.devices import pick_device, resolved_precision
from shears.models.ref import gguf_named, resolve
from shears.records import artifacts
from shears.records.artifacts import as_data
from shears.records.folders import named_folder
from shears.records.paths import expanded, file_fingerprint, is_path
from shears.searching.study import search
from shears.sparsity.sparsify import sparsify_for
from shears.training.heal import heal, teacher_of
from shears.training.teacher import find_teacher

DENSE_LORA, SPARSE_LORA = BASELINES
HEALED_FOLDER = "healed"  # in a run's folder


@dataclass(frozen=True)
class Stage:
    """One step of a run: its artifact, its configuration, its inputs and the function that makes it.

    `record` is a file in `output`; `inputs` returns fingerprints; `check` raises InputError before
    any work is done.
    """

    name: str
    output: Path
    record: str
    config: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, str]]
    make: Callable[[], object]
    check: Callable[[], object]

    def is_done(self) -> bool:
        """Tell whether the artifact exists; InputError if it was made with another configuration or is damaged."""
        path = self.output / self.record
        if not path.is_file():
            return False
        with reading(path):
            before = dict(artifacts.record_in(path)["config"])
        artifacts.refuse_changes(self.output, self._prefixed(before), self._prefixed(self.config))
        return True

    def _prefixed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        section = self.name if self.name in Recipe.model_fields else "train"  # of a baseline
        named = {}
        if section == "export" and config["ranks"]:
            file = ranks_file(config["ranks"])
            named["ranks"] = file.name if file else Path(config["ranks"]).name
        return {f"{section}.{key}": value for key, value in {**config, **named}.items()}

    def verify(self) -> None:
        """Raise InputError if the artifact was made from other inputs than the present ones."""
        record = artifacts.read_record(self.output, self.record)
        for key, fingerprint in self.inputs().items():
            if (recorded := record.get(key)) is not None:  # embedded data have no fingerprint
                name = key.removesuffix("_fingerprint").removesuffix("_sha256")
                artifacts.check_input(f"{name} of {self.output}", recorded, fingerprint)


def run_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the folder of a run; InputError, before any work is done, for a recipe that a later stage would refuse."""
    target = recipe.output if output is None else output
    train, heals, export = recipe.train, recipe.heal, recipe.export
    starts = train is not None and train.init == "recovery"
    recovers = heals is not None and heals.recovery
    grid = train.quantize_aware if train else "none"
    packed_as = "gguf" if grid == "q4_0" else "package"
    is_other = grid == "q4_0" and export.format == "package"
    keeps_grid = FORMATS[export.format].is_model and export.values in ("auto", "int4") and not is_other
    mistakes = {
        "a run must have a model and an output folder; add `model:` and `output:` to the recipe":
            not recipe.model or not target,
        "search must use other data than evaluate, and both have the same; give search validation data of its own":
            recipe.search and recipe.evaluate and recipe.search.data == recipe.evaluate.data,
        "a run with a search must train first; add a `train:` section to the recipe": recipe.search and not train,
        f"a run that trains with quantize_aware {grid} must export values int4 in format {packed_as} or a merged one; "
        "change `export:`":
            grid != "none" and not keeps_grid,
        "a run that heals and trains with init recovery must heal the recovery too; add `recovery: true` to `heal:`":
            starts and heals and not recovers,
        "a run that uses a recovery must make one; set sparsify.recover_rank, for example to 32":
            (recovers or starts) and not recipe.sparsify.recover_rank,
        "a run must train to have baselines, which take its settings; add a `train:` section":
            recipe.baselines and not train,
    }  # fmt: skip
    if wrong := next((rule for rule, is_broken in mistakes.items() if is_broken), None):
        raise InputError(wrong)
    folder = named_folder(expanded(str(target))).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output of a run must be a folder, got the file {folder}; choose another output")
    return folder


def with_calibration(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"sparsify": recipe.sparsify.for_model(str(recipe.model))})


def stages_of(recipe: Recipe, folder: Path) -> list[Stage]:
    """Return the stages of a recipe in order; each reads the artifact of the one before."""
    template = recipe.evaluate.template if recipe.evaluate else None
    if recipe.train is not None:
        template = recipe.train.template
    stages = [_sparsify_stage(recipe, folder, template)]
    if recipe.heal is not None:
        stages.append(_heal_stage(recipe.heal, folder, template))
    sparse = sparse_folder(recipe, folder)
    if recipe.train is not None:
        stages.append(_training("train", lambda: sparse, folder / "super_adapter", recipe.train, sparse))
        if recipe.search is not None:
            stages.append(_search_stage(recipe.search, folder))
    if recipe.exports:
        stages.append(_export_stage(recipe, folder))
    for name, config in baseline_configs(recipe).items():
        model = partial(baseline_model, recipe, name, folder)
        stages.append(_training(name, model, artifacts.baseline_folder(folder, name), config, sparse))
    return stages


def sparse_folder(recipe: Recipe, folder: Path) -> Path:
    return folder / (HEALED_FOLDER if recipe.heal is not None else "sparse")


def baseline_configs(recipe: Recipe) -> dict[str, TrainConfig]:
    """Return the training of each baseline of a recipe by name: plain LoRA, the run's largest rank alone.

    The dense model has no zeros to keep, no teacher, and nothing to recover.
    """
    if (train := recipe.train) is None:
        return {}
    one_rank = {**as_data(train), "ranks": train.ranks[:1], "sampling": "uniform"}
    plain = {"init": "lora", "sparse_adapter": False, "quantize_aware": "none", "teacher": None}
    changes = {SPARSE_LORA: one_rank, DENSE_LORA: {**one_rank, **plain}}
    return {name: TrainConfig.model_validate(changes[name]) for name in recipe.baselines}


def baseline_model(recipe: Recipe, name: str, folder: Path) -> str | Path:
    """Return the model that a baseline is trained on.

    A .gguf file that the run converts to bf16 gives its folder: its name means the fp32 conversion.
    """
    if name != DENSE_LORA:
        return sparse_folder(recipe, folder)
    model = str(recipe.model)
    if gguf_named(model) is None or recipe.sparsify.dtype != "bf16":
        return model
    return resolve(model, "bf16").folder


def _sparsify_stage(recipe: Recipe, folder: Path, template: TemplateName | None) -> Stage:
    model, config, output = str(recipe.model), recipe.sparsify, folder / "sparse"

    def inputs() -> dict[str, str]:
        fingerprint = resolve(model, config.dtype).fingerprint
        return {"base_fingerprint": fingerprint, **_hashes(calibration=config.calibration)}

    make = partial(sparsify_for, model, output, config, template)
    check = partial(_check, check_text, config.calibration, config.columns)
    return Stage("sparsify", output, artifacts.SPARSITY, as_data(config), inputs, make, check)


def _heal_stage(config: HealConfig, folder: Path, template: TemplateName | None) -> Stage:
    sparse = folder / "sparse"
    output = folder / HEALED_FOLDER
    values = as_data(config)
    if config.template is None and template is not None:
        values["template"] = text_template_of(template)

    def inputs() -> dict[str, str]:
        base = resolve(sparse)
        teacher = teacher_of(base, config)
        fingerprints = {"base_fingerprint": base.fingerprint, "teacher_fingerprint": teacher.fingerprint}
        if config.recovery:
            recovery = sparse / artifacts.RECOVERY_FOLDER
            fingerprints["recovery_fingerprint"] = artifacts.weights_fingerprint(recovery)
        return fingerprints | _hashes(data=config.data)

    def check() -> None:
        _check(check_text, config.data, config.columns)
        _check_loop(config)

    return Stage("heal", output, artifacts.HEALED, values, inputs, partial(heal, sparse, output, **values), check)


def _training(name: str, model: Callable[[], str | Path], output: Path, config: TrainConfig, sparse: Path) -> Stage:
    """Return a training on what `model` returns; `sparse` has the same architecture, and so the same groups."""
    values = as_data(config)
    if (output / artifacts.SEARCH_SPACE).is_file() and sparse.is_dir():  # its record names the groups
        values["groups"] = list(with_auto(config.groups, empty_model(sparse)))

    def inputs() -> dict[str, str]:
        hashes = _hashes(data=config.data, validation=config.validation_source)
        taught = {"teacher_fingerprint": find_teacher(config.teacher).fingerprint} if config.teacher else {}
        return {"base_fingerprint": resolve(model()).fingerprint, **taught, **hashes}

    def check() -> None:
        _check(check_rows, config.data, config.columns)
        _check(check_rows, config.validation_source, config.columns)
        _check_loop(config)

    return Stage(name, output, artifacts.SEARCH_SPACE, values, inputs, lambda: train(model(), output, **values), check)


def _search_stage(config: SearchConfig, folder: Path) -> Stage:
    adapter = folder / "super_adapter"
    output = folder / "search"
    values = as_data(config)

    def inputs() -> dict[str, str]:
        fingerprint = artifacts.weights_fingerprint(adapter)
        return {"super_adapter_fingerprint": fingerprint, **_hashes(data=config.data, test=config.test)}

    # `values` has the URL of the storage without the password
    make = partial(search, adapter, output, **{**values, "storage": config.storage})

    def check() -> None:
        _check(check_rows, config.data, config.columns, config.limit)
        _check(check_rows, config.test, config.columns)

    return Stage("search", output, artifacts.RESULT, values, inputs, make, check)


def _export_stage(recipe: Recipe, folder: Path) -> Stage:
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

    make = partial(export_adapter, source, output, **values)
    check = partial(_check, check_text, recipe.export.calibration)
    return Stage("export", output, form.record, values, inputs, make, check)


def _check(check: Callable[..., None], source: str | None, *options: Any) -> None:
    if source and is_path(source):
        check(source, *options)


def _check_loop(config: LoopConfig) -> None:
    resolved_precision(config.precision, pick_device(config.device))
    if config.teacher is not None:
        find_teacher(config.teacher)


def _hashes(**sources: str | None) -> dict[str, str]:
    hashes = {f"{name}_sha256": source_fingerprint(source) for name, source in sources.items() if source}
    return {key: value for key, value in hashes.items() if value}
