"""The verbs that make, measure and describe artifacts: each calls the library once."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

import shears
from shears import config
from shears.cli import tables
from shears.cli.options import SET, Adapter, Json, Values, app, argument, option, switch, with_stage_options
from shears.config.export_options import FORMAT_OF_RECORD
from shears.config.resolve import build, load_recipe
from shears.config.sparsify_options import EMBEDDED
from shears.data.forms import UNKNOWN, trained_form
from shears.errors import RECORD_ERRORS, InputError
from shears.records.artifacts import COMPRESS, RESULT, read_json
from shears.records.folders import refuse_taken
from shears.records.paths import expanded
from shears.records.timing import real_seconds

Out = Annotated[str, argument("OUT", "Folder to write; must not exist.")]
BaseModel = Annotated[str, argument("MODEL", "smollm2-135m, a hub id, a model folder or a .gguf file.")]
Package = Annotated[str, argument("PACKAGE", "Package that export wrote.")]
Output = Annotated[str | None, option("FILE", "Also write figures and records to this JSON file.")]


def _print_done(path: Path, text: str, *following: object) -> None:
    words = " ".join(tables.quoted(word) if isinstance(word, Path) else str(word) for word in following)
    tables.print_line(f"{path}: {text}. Next: shears {words}")


@app.command(rich_help_panel="Start")
def init(
    name: Annotated[str, argument("NAME", "Recipe to write, or smollm2-135m to download it.")] = "quickstart",
) -> None:
    """Write a recipe to begin with into this folder, or download the embedded model.

    A recipe holds the settings of every stage; change what you like, then run it. No file is
    overwritten.

    \b
    shears init
    shears run quickstart.yaml
    """
    recipes = {path.stem: path for path in sorted((Path(shears.__file__).parent / "recipes").rglob("*.yaml"))}
    if name in EMBEDDED:
        from shears.models.fetching import fetch

        print(fetch(name))
        return
    if name not in recipes:
        raise InputError(f"the recipe must be one of {', '.join(recipes)}, got {name!r}")
    if Path(f"{name}.yaml").exists():
        raise InputError(f"{name}.yaml must not exist yet; rename it, or run it: shears run {name}.yaml")
    shutil.copyfile(recipes[name], f"{name}.yaml")
    tables.print_line(f"next: shears run {name}.yaml; other recipes: {', '.join(recipes)}")


@app.command(rich_help_panel="Stages")
@with_stage_options("write", config.WriteConfig)
def write(
    model: BaseModel,
    out: Out,
    prompts: Annotated[str | None, option("FILE", "Let the model answer these rows or chats.")] = None,
    adapter: Adapter = None,
    *,
    values: Values,
) -> None:
    """Let a model write text, or answer prompts, to calibrate, to heal or to train on.

    OUT/text.jsonl holds texts that the model samples behind random first words and, with a chat
    template, whole chats. With --prompts it holds the model's answers, in its chat template or in the
    form of its training, to rows of prompt, instruction or question, or to the last user's turn of
    chats. The same command continues an interrupted one.

    \b
    shears write smollm2-135m written --tokens 100k
    shears write MODEL answers --prompts questions.jsonl --samples 4 \\
        --temperature 0.8 --keep right
    """
    refuse_taken(expanded(out))  # here and below before the library's imports, which take seconds
    build(config.WriteConfig, "write", values).for_prompts(prompts)
    file = shears.write(model, out, prompts, adapter, **values)
    _print_done(file, tables.written_line(file), "sparsify", tables.quoted(model), "sparse --calibration", file)


@app.command(rich_help_panel="Stages")
@with_stage_options("sparsify", config.SparsifyConfig)
def sparsify(model: BaseModel, out: Out, *, values: Values) -> None:
    """Prune a model and write it as an ordinary model folder.

    transformers loads OUT. OUT/sparsity.json records the zeros of every layer.

    shears sparsify smollm2-135m sparse --calibration text.txt --sparsity 0.5
    """
    refuse_taken(expanded(out))
    build(config.SparsifyConfig, "sparsify", values).for_model(model)
    folder = shears.sparsify(model, out, **values)
    _print_done(folder, tables.sparsity_line(folder), "train", folder, "adapter --data FILE")


@app.command(rich_help_panel="Stages")
@with_stage_options("heal", config.HealConfig)
def heal(
    sparse: Annotated[str, argument("SPARSE", "Sparse model that sparsify wrote.")], out: Out, *, values: Values
) -> None:
    """Train a sparse model to predict what the dense one predicts.

    OUT is an ordinary model folder whose zeros are exactly those of SPARSE: it takes the place of
    SPARSE in every other verb.

    shears heal sparse healed --teacher smollm2-135m --data text.txt --tokens 1M
    """
    refuse_taken(expanded(out))
    folder = shears.heal(sparse, out, **values)
    _print_done(folder, f"healed, {tables.sparsity_line(folder)}", "train", folder, "adapter --data FILE")


@app.command(rich_help_panel="Stages")
@with_stage_options("train", config.TrainConfig)
def train(
    sparse: Annotated[str, argument("SPARSE", "Model to train on, sparse or dense; it stays frozen.")],
    out: Out,
    *,
    values: Values,
) -> None:
    """Train an adapter on a sparse model.

    OUT is an ordinary PEFT adapter of one rank or, with several --ranks, a super-adapter whose ranks
    can be cut afterwards.

    \b
    shears train sparse adapter --data train.jsonl
    shears train sparse elastic --data train.jsonl --ranks 32,24,16
    """
    refuse_taken(expanded(out))
    folder = shears.train(sparse, out, **values)
    if len(build(config.TrainConfig, "train", values).ranks) > 1:
        _print_done(folder, "super-adapter", "search", folder, "search --data VALIDATION")
    else:
        _print_done(folder, "adapter of one rank", "export", folder, "package --format package")


@app.command(rich_help_panel="Stages")
@with_stage_options("search", config.SearchConfig)
def search(
    super_adapter: Annotated[str, argument("SUPER", "Super-adapter that train wrote.")],
    out: Out,
    model: Annotated[str | None, option("FOLDER", "Sparse model of the super-adapter, if it was moved.")] = None,
    *,
    values: Values,
) -> None:
    """Search the best ranks on validation data.

    OUT/result.json lists every configuration evaluated, the chosen one and the Pareto front.

    shears search adapter search --data validation.jsonl
    """
    refuse_taken(expanded(out))
    folder = shears.search(super_adapter, out, model=model, **values)
    tables.print_search(folder / RESULT)
    words = f"{tables.quoted(super_adapter)} sub_adapter --ranks {tables.quoted(folder / RESULT)}"
    tables.print_line(f"Next: shears export {words}")


@app.command(rich_help_panel="Stages")
@with_stage_options("export", config.ExportConfig)
def export(
    super_adapter: Annotated[
        str,
        argument(
            "SUPER",
            "Super-adapter that train wrote. All formats but peft and padded also take a sub-adapter, package "
            "and gguf also take a model, and unpacked takes a package.",
        ),
    ],
    out: Out,
    model: Annotated[str | None, option("FOLDER", "Sparse model of the adapter, if it was moved.")] = None,
    *,
    values: Values,
) -> None:
    """Write a sub-adapter for PEFT, or merge or pack it.

    OUT is an ordinary PEFT adapter, one model with the adapter merged in, a package with both, or a
    .gguf file for llama.cpp and Ollama. Format unpacked makes an ordinary model folder of a package.

    \b
    shears export adapter sub_adapter --ranks search/result.json
    shears export adapter merged --ranks search/result.json --format merged-sparse
    shears export adapter package --ranks search/result.json --format package
    shears export adapter gguf --format gguf --values int8
    shears export package unpacked --format unpacked
    """
    refuse_taken(expanded(out))
    folder = shears.export_adapter(super_adapter, out, model=model, **values)
    form = next(form for record, form in FORMAT_OF_RECORD.items() if (folder / record).is_file())
    trained = trained_form(folder) or UNKNOWN
    task = "--task ... --data TEST"
    if form.holds == "package":
        _print_done(folder, tables.package_line(folder), trained.ask(tables.quoted(folder)))
    elif form.holds == "gguf":
        size = f"one .gguf file, {read_json(folder / form.record)['file_bytes'] / 1e6:.1f} MB"
        _print_done(folder, size, "evaluate", folder, task)
    elif form.holds == "unpacked":
        adapter = ["--adapter", folder / "adapter"] if (folder / "adapter").is_dir() else []
        _print_done(folder, "unpacked", "evaluate", folder, *adapter, task)
    elif form.holds == "model":
        zeros = f"one model, {read_json(folder / form.record)['sparsity']['after']:.1%} zeros"
        _print_done(folder, zeros, "evaluate", folder, task)
    else:
        _print_done(folder, "PEFT adapter", "evaluate SPARSE --adapter", folder, task)


@app.command(rich_help_panel="Measure")
@with_stage_options("evaluate", config.EvaluateConfig)
def evaluate(model: BaseModel, adapter: Adapter = None, output: Output = None, *, values: Values) -> None:
    """Measure a model, with or without an adapter.

    Prints every figure with its number of examples and 95 % interval.

    \b
    shears evaluate sparse --adapter sub_adapter --task equation --data test.jsonl
    """
    result = shears.evaluate(model, output, adapter=adapter, **values)
    tables.print_evaluation(f"{model}{f' + {adapter}' if adapter else ''}", result.as_data())


@app.command(rich_help_panel="Measure")
def inspect(
    path: Annotated[str | None, argument("PATH", "Folder of an artifact or a run; or a JSON or .gguf file.")] = None,
    against: Annotated[str | None, option("FOLDER", "Another artifact; tells whether the two belong together.")] = None,
    gpu_check: Annotated[bool, switch("--gpu-check", "Try the main verbs on this machine's GPU, for minutes.")] = False,
    as_json: Json = False,
) -> None:
    """Describe a model, an adapter, a search or a run; without PATH this machine and the speed of its kernels.

    Prints sparsity per layer and kind of linear, ranks per group, parameters, non-zeros, size and
    fingerprints; of a .gguf file its architecture, types of quantization and tokenizer.

    shears inspect sub_adapter --against sparse
    """
    if gpu_check:
        from shears.runs.gpu_check import gpu_check as check

        checked = check()
        tables.print_data(checked, as_json, tables.print_gpu_check)
        raise typer.Exit(int(any(row["result"] != "ok" for row in checked["verbs"])))
    if path is None:
        tables.print_data(shears.environment(), as_json, tables.print_environment)
        return
    data = shears.inspect(path, against)
    try:
        tables.print_data(data, as_json, tables.print_inspection)
    except RECORD_ERRORS as error:
        message = f"{path} must be as shears wrote it, got {error!r}; --json prints it unchanged"
        raise InputError(message) from None


@app.command(rich_help_panel="Stages")
def run(
    recipe: Annotated[str, argument("FILE", "Recipe: model, output and one section per stage.")],
    output: Annotated[str | None, option("FOLDER", "Folder of the run; overrides the recipe's.")] = None,
    set_: SET = None,
    dry_run: Annotated[bool, switch("--dry-run", "Only print the plan: tokens, memory, disk.")] = False,
) -> None:
    """Run all stages of a recipe.

    Finished stages are skipped and interrupted ones continue. A stage made with another configuration
    is an error.

    shears run quickstart.yaml --output runs/longer --set train.epochs=2
    """
    loaded = load_recipe(recipe, set_ or [])
    if dry_run:
        tables.print_plan(shears.plan(loaded, output))
        return
    summary = shears.run(loaded, output)
    tables.print_summary(summary, expanded(str(output or loaded.output)))


@app.command(rich_help_panel="Stages")
@with_stage_options("compress", config.CompressConfig)
def compress(
    model: BaseModel,
    out: Out,
    dry_run: Annotated[bool, switch("--dry-run", "Only measure what is needed for a plan, and print it.")] = False,
    *,
    values: Values,
) -> None:
    """Make a small, fast package for your rows or text.

    Measures this machine, plans what fits the time, makes the package that should lose least and meet
    the target, and compares it with the dense model: size, speed, right answers. All of it runs on the
    CPU. The same command continues an interrupted one.

    \b
    shears compress MODEL small --data rows.jsonl --target 0.25GB --dry-run
    shears compress MODEL small --data rows.jsonl --target 0.25GB --time 2h
    shears compress MODEL fast --calibration text.txt --target 40tok/s
    """
    if not dry_run:
        refuse_taken(expanded(out), record=COMPRESS)
    record = shears.compress(model, out, dry_run=dry_run, **values)
    tables.print_candidates(record)
    if dry_run:
        tables.print_costs(record)
        return
    folder = expanded(out)
    tables.print_compressed(record, real_seconds(folder, record))
    for line in (f"report: {shears.write_report(folder)}", *tables.closing_lines(record, out)):
        tables.print_line(line)


@app.command(rich_help_panel="Measure")
@with_stage_options("bench", config.BenchConfig)
def bench(package: Package, as_json: Json = False, *, values: Values) -> None:
    """Measure a package's speed and memory beside the dense model's.

    Prints tokens per second when generating (decode) and when reading the prompt (prefill),
    milliseconds to the first token after a prompt of 64 tokens, and memory of the weights. The same
    model also runs dense in our kernels and in transformers; all of them take turns.

    shears bench package --threads 1
    """
    tables.print_data(shears.bench(package, **values), as_json, tables.print_bench)
