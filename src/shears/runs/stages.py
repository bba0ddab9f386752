"""The stages of a recipe: what each makes, from what, and when it is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shears.adapt.groups import with_auto
from shears.adapt.super_adapter import ranks_file
from shears.adapt.train import train
from shears.checkpoints.without_code import empty_model
from shears.config import HealConfig, Recipe, SearchConfig, TrainConfig
from shears.config.evaluate_options import BASELINES
from shears.config.export_options import FORMATS
from shears.config.fields import TemplateName
from shears.data.calibration import check_text, text_template
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


class StageInput(NamedTuple):
    """A text or rows that a stage reads (None without any), and the check of a file before work."""

    name: str | None
    check: Callable[..., None]
    options: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One step of a run: its artifact, configuration and inputs, and the function that makes it.

    `record` is a file in `output`; `models` returns the fingerprints of models and adapters.
    """

    name: str
    output: Path
    record: str
    config: Mapping[str, Any]
    make: Callable[[], object]
    models: Callable[[], Mapping[str, str]]
    sources: Mapping[str, StageInput]

    def check(self) -> None:
        """Raise InputError, before any work, for an unusable source, device or teacher."""
        for source in self.sources.values():
            if source.name and is_path(source.name):
                source.check(source.name, *source.options)
        resolved_precision(self.config.get("precision", "auto"), pick_device(self.config["device"]))
        if self.config.get("teacher") is not None:
            find_teacher(self.config["teacher"])

    def is_done(self) -> bool:
        """Tell whether the artifact exists; InputError if damaged or of another configuration."""
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
        if section == "export" and config["sub_adapter"]:
            file = ranks_file(config["sub_adapter"])
            named["sub_adapter"] = file.name if file else Path(config["sub_adapter"]).name
        return {f"{section}.{key}": value for key, value in {**config, **named}.items()}

    def verify(self) -> None:
        """Raise InputError if the artifact was made from other inputs than the present ones."""
        record = artifacts.read_record(self.output, self.record)
        hashes = {f"{key}_sha256": source_fingerprint(each.name) for key, each in self.sources.items() if each.name}
        for key, fingerprint in {**self.models(), **hashes}.items():
            if fingerprint and (recorded := record.get(key)) is not None:  # embedded data have none
                name = key.removesuffix("_fingerprint").removesuffix("_sha256")
                artifacts.check_input(f"{name} of {self.output}", recorded, fingerprint)


def run_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the folder of a run; InputError, before any work, for a recipe that stages refuse."""
    target = recipe.output if output is None else output
    train, heals, export = recipe.train, recipe.heal, recipe.export
    starts = train is not None and train.init == "recovery"
    grid = train.quantize_aware if train else "none"
    packed_as = "gguf" if grid == "q4_0" else "package"
    is_other = grid == "q4_0" and export.format == "package"
    keeps_grid = FORMATS[export.format].is_model and export.dtype in ("auto", "int4") and not is_other
    mistakes = {
        "a run must have a model and an output folder; add `model:` and `output:` to the recipe":
            not recipe.model or not target,
        "search must use other data than evaluate, both have the same; give search validation data":
            recipe.search and recipe.evaluate and recipe.search.data == recipe.evaluate.data,
        "a run with a search must train first; add a `train:` section to the recipe": recipe.search and not train,
        f"a run that trains with quantize_aware {grid} must export dtype int4 in format "
        f"{packed_as} or a merged one; change `export:`":
            grid != "none" and not keeps_grid,
        "a run that heals must not train with init recovery, which fits the weights before healing; set init: lora":
            starts and heals,
        "a run that uses a recovery must make one; set sparsify.recover_rank, for example to 32":
            starts and not recipe.sparsify.recover_rank,
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
    """Return the training of each baseline by name: plain LoRA, the run's largest rank alone.

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

    def models() -> dict[str, str]:
        return {"base_fingerprint": resolve(model, config.dtype).fingerprint}

    make = partial(sparsify_for, model, output, config, template)
    sources = {"calibration": StageInput(config.calibration, check_text, (config.columns,))}
    return Stage("sparsify", output, artifacts.SPARSITY, as_data(config), make, models, sources)


def _heal_stage(config: HealConfig, folder: Path, template: TemplateName | None) -> Stage:
    sparse = folder / "sparse"
    output = folder / HEALED_FOLDER
    values = as_data(config)
    if config.template is None and template is not None:
        values["template"] = text_template(template)

    def models() -> dict[str, str]:
        base = resolve(sparse)
        teacher = teacher_of(base, config)
        return {"base_fingerprint": base.fingerprint, "teacher_fingerprint": teacher.fingerprint}

    sources = {"data": StageInput(config.data, check_text, (config.columns,))}
    return Stage("heal", output, artifacts.HEALED, values, partial(heal, sparse, output, **values), models, sources)


def _training(name: str, model: Callable[[], str | Path], output: Path, config: TrainConfig, sparse: Path) -> Stage:
    """Return a training on what `model` returns; `sparse` has its architecture and groups."""
    values = as_data(config)
    if (output / artifacts.SEARCH_SPACE).is_file() and sparse.is_dir():  # it names the groups
        values["groups"] = list(with_auto(config.groups, empty_model(sparse)))

    def models() -> dict[str, str]:
        taught = {"teacher_fingerprint": find_teacher(config.teacher).fingerprint} if config.teacher else {}
        return {"base_fingerprint": resolve(model()).fingerprint, **taught}

    read = {"data": config.data, "validation": config.validation_source}
    sources = {key: StageInput(source, check_rows, (config.columns,)) for key, source in read.items()}
    return Stage(
        name, output, artifacts.SEARCH_SPACE, values, lambda: train(model(), output, **values), models, sources
    )


def _search_stage(config: SearchConfig, folder: Path) -> Stage:
    adapter = folder / "super_adapter"
    output = folder / "search"
    values = as_data(config)

    def models() -> dict[str, str]:
        return {"super_adapter_fingerprint": artifacts.weights_fingerprint(adapter)}

    # `values` has the URL of the storage without the password
    make = partial(search, adapter, output, **{**values, "storage": config.storage})

    limits = {"data": (config.data, config.limit), "test": (config.test, None)}
    sources = {key: StageInput(source, check_rows, (config.columns, limit)) for key, (source, limit) in limits.items()}
    return Stage("search", output, artifacts.RESULT, values, make, models, sources)


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
        ranks = values["sub_adapter"] = recipe.export.sub_adapter or found

    def models() -> dict[str, str]:
        fingerprints = {key: artifacts.weights_fingerprint(source)}
        if ranks and (file := ranks_file(ranks)):
            fingerprints["ranks_fingerprint"] = file_fingerprint(file.path)
        return fingerprints

    make = partial(export_adapter, source, output, **values)
    sources = {"calibration": StageInput(recipe.export.calibration, check_text)}
    return Stage("export", output, form.record, values, make, models, sources)
