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

Out = Annotated[str, argument("OUT", "Folder to write. It must not exist yet.")]
BaseModel = Annotated[str, argument("MODEL", "A hub id, a model folder, a .gguf file, or smollm2-135m (built in).")]
FIELDS = ("columns", "template", "max_length")  # of train: they decide what it sees of the data
Package = Annotated[str, argument("PACKAGE", "Package that export or compress wrote.")]
Output = Annotated[str | None, option("FILE", "Also write metrics and answers to this JSON file.")]


def _print_done(path: Path, text: str, *rest: object) -> None:
    words = " ".join(tables.quoted(word) if isinstance(word, Path) else str(word) for word in rest)
    tables.print_line(f"{path}: {text}. Next: shears {words}")


@app.command(rich_help_panel="Start")
def init(
    name: Annotated[str, argument("NAME", "Recipe to write, or smollm2-135m to download that model.")] = "quickstart",
) -> None:
    """Write an example recipe into this folder, or download the built-in model.

    A recipe holds the settings of every stage. Change what you like, then run it. An existing file
    is never overwritten.

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
        raise InputError(f"{name}.yaml must not exist yet; rename it, or use it with shears run {name}.yaml")
    shutil.copyfile(recipes[name], f"{name}.yaml")
    tables.print_line(f"Next: shears run {name}.yaml --dry-run. All recipes: {', '.join(recipes)}")


@app.command(rich_help_panel="Stages")
@with_stage_options("write", config.WriteConfig)
def write(
    model: BaseModel,
    out: Out,
    prompts: Annotated[str | None, option("FILE", "Answer the prompts in this file.")] = None,
    adapter: Adapter = None,
    *,
    values: Values,
) -> None:
    """Let a model write text, or answer prompts, as data for calibration and training.

    Without --prompts the model continues random first words and, if it has a chat template, also
    writes whole chats. With --prompts it answers each row: the column prompt, instruction or
    question, or the last user turn of a chat. The texts are in OUT/text.jsonl. Run the same command
    again to continue an interrupted one.

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

    transformers can load OUT. OUT/sparsity.json records the zeros of every layer.

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
    """Train a sparse model to predict what the original dense model predicts.

    OUT is an ordinary model folder with exactly the zeros of SPARSE. Use it in place of SPARSE with
    every other verb.

    shears heal sparse healed --teacher smollm2-135m --data text.txt --tokens 1M
    """
    refuse_taken(expanded(out))
    folder = shears.heal(sparse, out, **values)
    _print_done(folder, f"healed; {tables.sparsity_line(folder)}", "train", folder, "adapter --data FILE")


@app.command(rich_help_panel="Stages")
@with_stage_options("train", config.TrainConfig)
def train(
    sparse: Annotated[str, argument("SPARSE", "Sparse or dense model to train on. It is frozen.")],
    out: Out,
    *,
    values: Values,
) -> None:
    """Train an adapter on a sparse model.

    OUT is an ordinary PEFT adapter. With several --ranks it is a super-adapter, which search and
    export can cut to smaller ranks.

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
    model: Annotated[str | None, option("FOLDER", "Sparse base model, if you moved it.")] = None,
    *,
    values: Values,
) -> None:
    """Search for the best ranks on validation data.

    OUT/result.json lists every evaluated configuration, the chosen one and the Pareto front.

    shears search adapter search --data validation.jsonl
    """
    refuse_taken(expanded(out))
    folder = shears.search(super_adapter, out, model=model, **values)
    tables.print_search(folder / RESULT)
    words = f"{tables.quoted(super_adapter)} sub_adapter --sub-adapter {tables.quoted(folder / RESULT)}"
    tables.print_line(f"Next: shears export {words}")


@app.command(rich_help_panel="Stages")
@with_stage_options("export", config.ExportConfig)
def export(
    super_adapter: Annotated[
        str,
        argument(
            "SUPER",
            "Adapter that train wrote. All formats but peft and padded also take an adapter that "
            "export wrote; package and gguf also take a model; unpacked takes a package.",
        ),
    ],
    out: Out,
    model: Annotated[str | None, option("FOLDER", "Sparse base model, if you moved it.")] = None,
    *,
    values: Values,
) -> None:
    """Export an adapter for PEFT, merge it or pack it.

    OUT is an ordinary PEFT adapter, a model with the adapter merged in, a package that holds both,
    or a .gguf file for llama.cpp and Ollama. Format unpacked turns a package into an ordinary model
    folder.

    \b
    shears export adapter sub_adapter --sub-adapter search/result.json
    shears export adapter merged --sub-adapter search/result.json --format merged-sparse
    shears export adapter package --sub-adapter search/result.json --format package
    shears export adapter gguf --format gguf --dtype int8
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
    elif form.is_model:
        _print_done(folder, form.called, "evaluate", folder, task)
    else:
        _print_done(folder, "PEFT adapter", "evaluate SPARSE --adapter", folder, task)


@app.command(rich_help_panel="Measure")
@with_stage_options("evaluate", config.EvaluateConfig)
def evaluate(model: BaseModel, adapter: Adapter = None, output: Output = None, *, values: Values) -> None:
    """Measure a model, with or without an adapter.

    Prints every metric with its 95 % interval and the number of examples.

    \b
    shears evaluate sparse --adapter sub_adapter --task equation --data test.jsonl
    """
    result = shears.evaluate(model, output, adapter=adapter, **values)
    tables.print_evaluation(f"{model}{f' + {adapter}' if adapter else ''}", result.as_data())


@app.command(rich_help_panel="Measure")
def inspect(
    path: Annotated[str | None, argument("PATH", "Folder of an artifact or a run, or a JSON or .gguf file.")] = None,
    gpu_check: Annotated[
        bool, switch("--gpu-check", "Try the main verbs on this machine's GPU; takes minutes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe a model, an adapter, a search or a run.

    Prints the sparsity of each layer and kind of linear, the ranks of each group, parameters,
    non-zeros, size and fingerprints. For a .gguf file it prints the architecture, the types of
    quantization and the tokenizer. Without PATH it describes this machine and the speed of the
    kernels.

    shears inspect sub_adapter
    """
    if gpu_check:
        from shears.runs.gpu_check import gpu_check as check

        checked = check()
        tables.print_data(checked, as_json, tables.print_gpu_check)
        raise typer.Exit(int(any(row["result"] != "ok" for row in checked["verbs"])))
    if path is None:
        tables.print_data(shears.environment(), as_json, tables.print_environment)
        return
    data = shears.inspect(path)
    try:
        tables.print_data(data, as_json, tables.print_inspection)
    except RECORD_ERRORS as error:
        message = f"{path} must be as shears wrote it, got {error!r}; --json prints it unchanged"
        raise InputError(message) from None


@app.command(rich_help_panel="Stages")
def run(
    recipe: Annotated[str, argument("FILE", "YAML file with model, output and stage sections.")],
    output: Annotated[str | None, option("FOLDER", "Overrides output in the recipe.")] = None,
    set_: SET = None,
    dry_run: Annotated[bool, switch("--dry-run", "Only plan tokens, memory and disk.")] = False,
) -> None:
    """Run all stages of a recipe.

    Finished stages are skipped and interrupted ones continue. If the settings of a finished stage
    have changed, shears stops with an error.

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
    dry_run: Annotated[bool, switch("--dry-run", "Only measure this machine and plan.")] = False,
    *,
    values: Values,
) -> None:
    """Make a small, fast package of a model, fine-tuned on your examples.

    shears measures the speed of this machine and plans what fits the time. It makes the package
    that should meet the target with the least loss, and compares it with the original model in
    size, speed and accuracy. It computes on the CPU only. Run the same command again to continue an
    interrupted one.

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
    """Compare the speed and memory of a package with those of the dense model.

    Prints tokens per second when generating (decode) and when reading a prompt (prefill), seconds
    to the first token after a prompt of 64 tokens, and the memory of the weights. The dense model
    runs in shears's own kernels and in transformers. All of them take turns.

    shears bench package --threads 1
    """
    tables.print_data(shears.bench(package, **values), as_json, tables.print_bench)


@app.command("data", rich_help_panel="Measure")
@with_stage_options("train", config.TrainConfig, only=FIELDS)
def data(
    file: Annotated[str, argument("FILE", "A JSON, JSONL, CSV or Parquet file, or a hub id.")],
    model: Annotated[str, option("NAME", "Model whose tokenizer and chat template are used.")] = next(iter(EMBEDDED)),
    limit: Annotated[int | None, option("INTEGER", "Read at most this many rows.", min=1)] = None,
    show: Annotated[int, option("INTEGER", "Number of rows to show (default: 3).", min=0)] = 3,
    as_json: Json = False,
    *,
    values: Values,
) -> None:
    """Show training data as the model will see it.

    Prints some rows as the model reads them, with the text that it learns to write in brackets.
    Then prints how many rows train would use, leave out or refuse, and how long they are. The exit
    code is 2 if train would use no row.

    shears data train.jsonl --model sparse --template alpaca --max-length 256
    """
    from shears.data.examples import preview
    from shears.models.ref import load_tokenizer, resolve

    settings = build(config.TrainConfig, "train", {**values, "data": file})
    content = {"data": file, "model": model, **preview(settings, load_tokenizer(resolve(model)), limit, show)}
    tables.print_data(content, as_json, tables.print_preview)
    if not content["used"]:
        rule = f"data must have at least one row that train can use, {file} has none in {content['rows']:,} rows"
        raise InputError(f"{rule}; raise --max-length or correct the rows")


@app.command(rich_help_panel="Measure")
def compare(
    runs: Annotated[
        list[str], argument("RUN...", "Run folders, or files that evaluate wrote. NAME=FILE,FILE pools several seeds.")
    ],
    against: Annotated[str | None, option("NAME", "Run or NAME to compare with (default: the first).")] = None,
    output: Annotated[str | None, option("FILE", "Write the result to this .json file.")] = None,
) -> None:
    """Compare evaluations on the same examples.

    Prints accuracies with 95 % intervals and paired differences with p values.

    \b
    shears compare lora=lora-0.json,lora-1.json nls=nls-0.json,nls-1.json \\
        --output compare.json
    """
    tables.print_comparison(shears.compare(runs, against=against, output=output))


@app.command(rich_help_panel="Measure")
def report(
    run: Annotated[str, argument("RUN", "Output folder of run or compress.")],
    output: Annotated[str | None, option("FILE", "HTML file. Default: RUN/report.html.")] = None,
) -> None:
    """Write the report of a run as one web page.

    The page shows metrics, charts, examples and the recipe. It loads nothing from the network.

    shears report runs/quickstart
    """
    tables.print_line(f"Wrote {shears.write_report(run, output)}. Open it in a browser.")


@app.command(rich_help_panel="Use")
def push(
    folder: Annotated[str, argument("FOLDER", "Folder of a model, an adapter or a package.")],
    repo: Annotated[str, argument("OWNER/NAME", "Repository on the hub, created if needed.")],
    base: Annotated[str | None, option("OWNER/NAME", "Repository of the adapter's model.")] = None,
    private: Annotated[bool, switch("--private", "Create a private repository.")] = False,
    dry_run: Annotated[bool, switch("--dry-run", "Only list files and sizes.")] = False,
) -> None:
    """Upload an artifact to the Hugging Face hub.

    Its README.md becomes the model card. Log in first: hf auth login

    \b
    shears push runs/quickstart/sub_adapter me/sub-adapter \\
        --base me/sparse --dry-run
    """
    files = shears.push(folder, repo, base=base, private=private, dry_run=dry_run)
    rows = [{"file": file.name, "bytes": f"{file.size:,}"} for file in files]
    tables.print_rows(rows, f"{'Would be uploaded' if dry_run else 'Uploaded'} to {repo}")
    tables.print_line(f"{len(files)} files, {sum(file.size for file in files):,} bytes")
