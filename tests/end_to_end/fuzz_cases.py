"""Drawn calls of the command line: a verb with what it needs, some of it replaced by what nobody should give it.

`make_pool(folder)` writes tiny artifacts, whole and damaged; `draw(random)` returns a call that names them.
"""

import json
import random
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors.torch import load_file, save_file

from shears import config
from shears.adapt.train import train
from shears.cli import application
from shears.config.fields import StageConfig
from shears.export.stage import export_adapter
from shears.sparsity.stage import sparsify
from tests.export.made import half_sparse
from tests.export.packages import package
from tests.models.gguf_files import write_gguf
from tests.tiny import save_tiny

RUN = {
    "torn.yaml": "model: [model\n", "list.yaml": "- model\n", "empty.yaml": "", "nul.yaml": "model: a\0b\n",
    "unknown.yaml": "model: model\noutput: new\nprune: {}\n", "twice.yaml": "model: model\nmodel: sparse\n",
    "recipe.yaml": (
        "model: model\noutput: new\nsparsify: {method: magnitude}\n"
        "train: {data: rows.jsonl, ranks: [4, 2], max_steps: 1, batch_size: 2, device: cpu}\n"
    ),
}  # fmt: skip
ROWS = [{"prompt": f"Question: {one} + 1? Answer:", "completion": f" {one + 1}"} for one in range(12)]
SETTINGS: dict[str, type[StageConfig]] = {
    "data": config.TrainConfig, "write": config.WriteConfig, "sparsify": config.SparsifyConfig,
    "heal": config.HealConfig, "train": config.TrainConfig, "search": config.SearchConfig,
    "export": config.ExportConfig, "evaluate": config.EvaluateConfig, "compress": config.CompressConfig,
    "bench": config.BenchConfig, "generate": config.GenerateConfig, "chat": config.ChatConfig,
    "serve": config.ServeConfig,
}  # fmt: skip
CALLS = {
    "init": "nothing", "fetch": "nothing", "env": "--threads x",
    "data": "rows.jsonl --model model --max-length 64 --show 1",
    "write": "model OUT --tokens 40 --max-new-tokens 8",
    "sparsify": "model OUT --calibration text.txt --num-samples 2 --sequence-length 16",
    "heal": "sparse OUT --teacher model --data text.txt --tokens 64 --sequence-length 16 --warmup-steps 0 "
    "--batch-size 2",
    "train": "sparse OUT --data rows.jsonl --ranks 4,2 --max-steps 1 --batch-size 2 --warmup-steps 0",
    "search": "adapter OUT --data rows.jsonl --max-evaluations 2 --batch-size 4",
    "export": "adapter OUT --num-samples 2 --sequence-length 16",
    "unpack": "package OUT",
    "evaluate": "sparse --task number --data rows.jsonl --max-new-tokens 2 --limit 2 --sequence-length 16",
    "inspect": "sparse",
    "run": "recipe.yaml --dry-run",
    "compress": "model OUT --target 8bits --calibration text.txt --num-samples 2 --sequence-length 16 "
    "--sparsities 0.5 --values int8 --embeddings keep --attempts 1 --dry-run",
    "bench": "package --rounds 1 --prompt-tokens 4 --new-tokens 2",
    "generate": "package --prompt 1+1= --max-new-tokens 3",
    "chat": "model --max-new-tokens 3",
    "serve": "package --port 0",
    "compare": "figures.json figures.json", "report": "sparse", "push": "sparse me/it --dry-run",
}  # fmt: skip
"""A small whole call of every verb; those that would measure a machine or download are wrong from the start."""
RARE = ("init", "fetch", "env", "compare", "report", "push", "bench")
DAMAGED = ("torn_weights", "torn_config", "unknown_type", "empty", "torn.gguf", "text.txt", "missing", "loop",
           "no_weights", "half_adapter", "torn_package", "torn_record", "", "nobody/nothing",
           "rows.jsonl/x")  # fmt: skip
"""Nothing that any verb can load."""
STRANGE = ("no_tokenizer", "torn_tokenizer", "nan", "adapter", "sub", "package", "tiny.gguf", "model", "sparse")
DATA = ("torn.jsonl", "empty.jsonl", "nul.jsonl", "binary.jsonl", "binary.parquet", "missing.jsonl", "torn.csv",
        "list.json", "numbers.jsonl", "loop", "", "nobody/nothing", "rows.jsonl/x")  # fmt: skip
"""No rows that can be read."""
STRANGE_DATA = ("bom.jsonl", "rows.csv", "text.txt", "twice.jsonl", "long.jsonl", "model", "rows.jsonl")
OUTS = ("model", "text.txt", "loop", "", ".", "..", "/dev/null", "/proc/new", "text.txt/new", "new" * 99, "new.partial")
"""Outputs that cannot be written."""
STRANGE_OUTS = ("missing/parent/new", "new folder", "new\N{SNOWMAN}", "empty", "./new/", "new")
LONG = {"tokens", "heal", "epochs", "max_steps", "rounds", "prompt_tokens", "new_tokens", "max_evaluations",
        "attempts", "shutdown_seconds", "stale_after", "threads", "port", "limit"}  # fmt: skip
"""Options whose large values mean work that takes long, or processors that are not there."""
NO_NUMBERS = ("", "x", "nan", "1e309", "1.5.2", "0x10", "[1]", "None", "\N{SNOWMAN}", "--", "9" * 5000 + "x")
NO_CHOICES = ("", "x", "\N{SNOWMAN}", "a" * 5000)
TEXTS = ("", " ", "x", "\x1b[31m", "\N{SNOWMAN}" * 50, "a" * 20_000, "%s{}", "a\nb", "=", ",", "[bold]", "1e309", "-0",
         "1", "4,2", "0.5", "q_proj", "q_proj=0.5", "prompt=question", "heuristic", "half.json", "loss")  # fmt: skip
ENVIRONMENT: tuple[dict[str, str | None], ...] = (
    {"WORLD_SIZE": "garbage"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "x"}, {"LOCAL_RANK": "x"},
    {"SHEARS_CACHE": "text.txt"}, {"SHEARS_CACHE": ""}, {"HOME": None}, {"HOME": "/missing"}, {"OMP_NUM_THREADS": "x"},
    {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"TMPDIR": "/missing"},
    {"SHEARS_API_KEY": "a\nb"}, {"SHEARS_TUNING": "x"}, {"CUDA_VISIBLE_DEVICES": "x"}, {"TERM": ""}, {"PATH": None},
)  # fmt: skip


Words = tuple[str, ...]
ROWS_OF: tuple[Words, Words] = (DATA, STRANGE_DATA)
MODELS: tuple[Words, Words] = ((), (*DAMAGED, *STRANGE))
POOLS: dict[str, tuple[Words, Words]] = {
    **dict.fromkeys(("data", "validation", "test"), ROWS_OF),
    **dict.fromkeys(("MODEL", "FOLDER", "adapter", "model", "teacher", "against"), MODELS),
    "calibration": (("missing.txt", "loop", "", "empty.jsonl", "binary.parquet"), (*STRANGE_DATA, "self", *DATA[:4])),
    "output": ((), (*OUTS, *STRANGE_OUTS, "new.json", "new.html", "missing/new.json")),
    "config": (tuple(name for name in RUN if name not in ("recipe.yaml", "empty.yaml")), ("recipe.yaml", "half.json")),
    "SIZE": ((*NO_NUMBERS, "-1", "1XB", "1e3"), ("0", "1", "1kB", "999999999999999999T")),
}
"""By the name of an option, or by its kind of value: what it must refuse, and what else it is given."""
READ: tuple[Words, Words] = (
    ("missing", "loop", "", "rows.jsonl/x"),
    tuple(name for name in (*MODELS[1], "half.json", "figures.json") if name not in ("missing", "nobody/nothing")),
)
"""What verbs are given that read any file."""


@dataclass
class Case:
    """A drawn call: its words and surroundings, and what is known of how it must end."""

    verb: str
    words: list[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    stdin: str | None = "/dev/null"
    """What the process reads; None: standard input is closed."""
    stdout: bool = True
    """Whether standard output is open."""
    signals: tuple[tuple[float, int], ...] = ()
    """Signals, each with the seconds before it is sent."""
    hostile: int = 0
    """Parts that were replaced; with one at most, wrong input gets exactly one line."""
    doomed: set[int] = field(default_factory=set)
    """Places of words that cannot work with any verb."""

    def __str__(self) -> str:
        """Return the call as a shell would take it, long words cut."""
        import shlex

        words = [word if len(word) < 99 else f"{word[:20]}...({len(word)})" for word in self.words]
        changed = [f"{name}={'(unset)' if value is None else value!r}" for name, value in self.environment.items()]
        ends = [f"<{self.stdin or '&-'}"] * (self.stdin != "/dev/null") + [">&-"] * (not self.stdout)
        return " ".join([*changed, "shears", *map(shlex.quote, words), *ends, *map(str, self.signals)])


def make_pool(folder: Path) -> None:
    """Write the artifacts that the calls name."""
    save_tiny(folder / "model")
    text = "".join(f"The sum of {one} and {one + 1} is {2 * one + 1}.\n" for one in range(40))
    (folder / "text.txt").write_text(text)
    sparsify(str(folder / "model"), folder / "sparse", method="magnitude", device="cpu")
    half_sparse(folder / "half")
    _write_data(folder)
    train(
        str(folder / "sparse"), folder / "adapter", data=str(folder / "rows.jsonl"), ranks=(4, 2), max_steps=1,
        batch_size=2, warmup_steps=0, device="cpu",
    )  # fmt: skip
    export_adapter(str(folder / "adapter"), folder / "sub")
    package(folder / "half", folder / "package", values="int8")
    write_gguf(folder / "tiny.gguf")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    _damage(folder)
    for name, content in RUN.items():
        (folder / name).write_text(content)


def _damage(folder: Path) -> None:
    for copy, source, name, share in (
        ("torn_weights", "model", "model.safetensors", 0.5), ("torn_config", "model", "config.json", 0.5),
        ("torn_tokenizer", "model", "tokenizer.json", 0.5), ("torn_package", "package", "package.json", 0.5),
        ("torn_record", "adapter", "search_space.json", 0.5), ("no_tokenizer", "model", "tokenizer.json", 0),
        ("no_weights", "model", "model.safetensors", 0), ("half_adapter", "adapter", "adapter_model.safetensors", 0.5),
    ):  # fmt: skip
        shutil.copytree(folder / source, folder / copy)
        content = (folder / copy / name).read_bytes()
        (folder / copy / name).write_bytes(content[: int(share * len(content))])
        if not share:
            (folder / copy / name).unlink()
    (folder / "no_tokenizer" / "tokenizer_config.json").unlink()
    (folder / "torn.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:999])
    for copy in ("unknown_type", "nan"):
        shutil.copytree(folder / "model", folder / copy)
    settings = json.loads((folder / "model" / "config.json").read_text())
    (folder / "unknown_type" / "config.json").write_text(json.dumps(settings | {"model_type": "martian"}))
    weights = load_file(folder / "nan" / "model.safetensors")
    first = next(iter(weights))
    weights[first] = torch.full_like(weights[first], torch.nan)
    save_file(weights, folder / "nan" / "model.safetensors", {"format": "pt"})


def _write_data(folder: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    binary = random.Random(0).randbytes(999)
    files: dict[str, str | bytes] = {
        "rows.jsonl": rows, "torn.jsonl": rows[:-9], "empty.jsonl": "", "nul.jsonl": "\0" * 99, "binary.jsonl": binary,
        "bom.jsonl": "\ufeff" + rows, "binary.parquet": binary, "list.json": "[1, 2", "numbers.jsonl": "1\n2\n",
        "twice.jsonl": rows + '{"prompt": "a", "prompt": "b", "completion": "c"}\n',
        "rows.csv": "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS),
        "torn.csv": 'prompt,completion\na,b\n"c', "long.jsonl": json.dumps({"prompt": "a" * 9999, "completion": "b"}),
        "figures.json": "{}", "lines.txt": "Hello\n/reset\n\\\nHow are you?\n", "half.json": '{"a": ',
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@cache
def commands() -> dict[str, Any]:
    """Return what typer knows of every verb."""
    found: dict[str, Any] = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
    return found


def draw(rng: random.Random) -> Case:
    """Return one call."""
    verbs = [verb for verb in CALLS for _ in range(1 if verb in RARE else 4)]
    verb = rng.choice(verbs)
    case = Case(verb, [verb, *CALLS[verb].replace("OUT", "new").split()])
    command = commands()[verb]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        rng.choice((_argument, _option, _option, _option, _option))(rng, case, command)
    if rng.random() < 0.2:
        case.environment = rng.choice(ENVIRONMENT)
        case.hostile += 1
    if rng.random() < 0.1:
        case.stdout = False
    case.stdin = rng.choice(["/dev/null", "lines.txt", "nul.jsonl", "binary.jsonl", None] if verb == "chat" else
                            ["/dev/null"] * 9 + [None])  # fmt: skip
    if verb == "serve" or rng.random() < 0.05:
        delays = sorted(rng.uniform(0.05, 1.5) for _ in range(rng.choice((1, 1, 2))))
        case.signals = tuple((delay, rng.choice((2, 15))) for delay in delays)
    return case


def _argument(rng: random.Random, case: Case, command: Any) -> None:
    """Replace a word without a name."""
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if not arguments:
        return
    place = rng.randrange(len(arguments))
    pools: dict[str, tuple[Words, Words]] = {
        "OUT": (OUTS, STRANGE_OUTS),
        "data": ROWS_OF,
        "run": (tuple(name for name in RUN if name != "recipe.yaml"), MODELS[1]),
        **dict.fromkeys(("inspect", "report", "compare", "push", "init", "fetch"), READ),
    }
    kind = arguments[place].metavar
    _replace(rng, case, place + 1, *(pools.get(kind) or pools.get(case.verb) or (DAMAGED, STRANGE)))


def _option(rng: random.Random, case: Case, command: Any) -> None:
    """Add an option, or replace its value."""
    options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
    if case.verb in ("init", "unpack"):
        return
    chosen = rng.choice(options)
    flag = rng.choice([*chosen.opts, *chosen.secondary_opts])
    if chosen.name == "dry_run":
        return
    if chosen.is_flag:
        case.words.append(flag)
        case.hostile += 1
        return
    doomed, strange = values_of(chosen, SETTINGS.get(case.verb))
    if flag not in case.words:
        case.words += [flag, ""]
    _replace(rng, case, case.words.index(flag) + 1, doomed, strange)


def _replace(rng: random.Random, case: Case, place: int, doomed: Words, strange: Words) -> None:
    is_doomed = bool(doomed) and rng.random() < 0.5
    case.words[place] = rng.choice(doomed if is_doomed else strange)
    case.doomed = case.doomed - {place} | ({place} if is_doomed else set())
    case.hostile += 1


def values_of(option: Any, settings: type[StageConfig] | None) -> tuple[Words, Words]:
    """Return values that an option must refuse, and others, at the edges of what it takes."""
    metavar = option.metavar or "TEXT"
    if metavar in ("INTEGER", "NUMBER", "COUNT"):
        return _numbers(option, settings, metavar)
    if "|" in metavar and option.name not in ("target", "pattern"):
        return NO_CHOICES, tuple(metavar.split("|"))
    return POOLS.get(option.name) or POOLS.get(metavar) or ((), TEXTS)


def _numbers(option: Any, settings: type[StageConfig] | None, metavar: str) -> tuple[Words, Words]:
    """Return values beyond the bounds of the field and on them."""
    field = (settings.model_fields if settings else {}).get(option.name)
    bounds = {type(mark).__name__: mark for mark in (field.metadata if field else ())}
    beyond, edges = list(NO_NUMBERS), ["1", "2", "-0", "0"]
    for name, step in (("Gt", 0), ("Ge", -1), ("Lt", 0), ("Le", 1)):
        if name in bounds:
            limit = getattr(bounds[name], name.lower())
            beyond.append(f"{limit + step}")
            edges.append(f"{limit}")
    beyond += ["1.5"] if metavar == "INTEGER" else []
    large = ["1e300", "1e-300"] if metavar == "NUMBER" else [str(10**12), str(10**30)]
    return tuple(beyond), (*edges, *([] if option.name in LONG else large))
