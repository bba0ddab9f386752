"""The front: accuracy over bytes and over tokens/s, our packages beside rivals' formats of the dense model.

    python -m benchmarks.front run --data FOLDER --work DIR --models 135m=smollm2-135m --task mawps
        [--rivals ENGINE=PYTHON,...] [--seeds 0,1,2] [--arms "ARM; ARM"]
    python -m benchmarks.front speed ... [--modes "1 thread; 2 processes"]   # last, on a quiet machine
    python -m benchmarks.front table --results FILE.jsonl ...
    python -m benchmarks.front pictures --results FILE.jsonl ... [--output docs/assets]

FOLDER holds the sets in LLM-Adapters' form. A cell (model, task, arm, seed) is a line of the first file of --results:
what the results hold is skipped, a killed training goes on from its last checkpoint, killed answers from the last one.
benchmarks.front_arms says what the arms are. Every arm answers the same questions greedily, each by its own kernels,
and one rule reads all answers; the model as it came is asked in its own chat form. `--decoder ours` reads the weights
of rivals' files into our decoder, in bf16, which is many times faster (many texts at once), and the line says so. Each
PYTHON has a rival's engine, in a process of its own; without it that rival's arms are skipped, and the table says so.
Of arc-easy's questions the likeliest answer counts, as a text, which `--decoder ours` alone can weigh for rivals.
Bytes are those of all files that answering reads: weights, tokenizer, settings.

`speed` continues a prompt of 16 tokens by 64, one text, all arms in turns: with one thread, with two, and in two
processes at once, each on a core of its own, so that they share the memory's bandwidth (tokens/s of one of them);
"prefill" reads 512 tokens with one thread; "4 texts" are decoded at once with one thread (tokens/s of all, without
the prompts). Engines are llama.cpp, ik_llama.cpp, OpenVINO. A table pools seeds by question; Holm corrects
the p values of the arms that decide.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple, get_args

import torch

import shears
from benchmarks.decode import NEW, PREFILL, PROMPT, Timing, measured, remote
from benchmarks.decode import Arm as Timed
from benchmarks.front_arms import ARMS, DECIDING, REFERENCES, TASKS, Arm, Maker, files_of, pareto
from benchmarks.pictures import Point, scatter
from benchmarks.report import (
    Pair,
    add_row,
    as_bits,
    as_text,
    begin,
    carry_out,
    environment,
    named,
    paired_table,
    parser_of,
    percent,
    points,
    quotients,
    rows_of,
    seeds,
    setting,
    spread,
)
from benchmarks.rival import ENGINES, Engine, Rival, RivalBackend, opened
from shears.checkpoints.without_code import build_causal_model, known_config
from shears.config import EvaluateConfig
from shears.data.examples import load_examples, prompts_of
from shears.data.templates import DEFAULT_TEMPLATE
from shears.errors import InputError
from shears.evaluation.evaluated import Evaluation, TextJournal, journal_path
from shears.evaluation.run import identity_of
from shears.evaluation.statistics import Bits, paired_difference, pooled_accuracy
from shears.evaluation.tasks import Subject, evaluate_task
from shears.models.ref import load_tokenizer, resolve
from shears.records.figures import CUT
from shears.records.paths import file_fingerprint
from shears.records.timing import processor
from shears.runtime.loading import generation_settings

Row = Mapping[str, Any]
Runs = Mapping[int, Bits]  # by seed
MB = 1e6
ENOUGH = 3  # seeds
Decoder = Literal["own", "ours"]
Mode = Literal["1 thread", "2 threads", "2 processes", "prefill", "4 texts", "8 texts", "16 texts"]
MODES: Sequence[Mode] = get_args(Mode)
TEXTS: Mapping[Mode, int] = {"4 texts": 4, "8 texts": 8, "16 texts": 16}


class Table(NamedTuple):
    """What the lines of a table share."""

    model: str
    task: str
    examples: int
    epochs: float
    limit: int
    rows: str | None = None

    def __str__(self) -> str:
        """Return the title."""
        rows = self.rows or (f"{self.examples:,} training rows" if self.examples else "all training rows")
        questions = f", the first {self.limit} questions" if self.limit else ""
        return f"{self.model}, {self.task}: {rows}, epochs {self.epochs:g}{questions}"


def main() -> None:
    """Run one of the commands; exit code 2 for wrong input."""
    arguments = _arguments()
    carry_out(COMMANDS[arguments.command], arguments)


def _run(arguments: argparse.Namespace) -> None:
    """Make and measure every cell that the results lack."""
    begin()
    for maker, name in _cells(arguments):
        if _is_measured(maker, name, arguments):
            continue
        print(f"{name}, seed {maker.seed} ...", flush=True)
        row = _key(maker, name, arguments) | answered(maker, ARMS[name], arguments.limit, arguments.decoder)
        add_row(arguments.results[0], row)
        print(f"  {row['right'].count('1')} of {len(row['right'])} right, {row['bytes'] / MB:.1f} MB", flush=True)
    print("\n".join(tables(rows_of(*arguments.results))))


def answered(maker: Maker, arm: Arm, limit: int, decoder: Decoder) -> dict[str, Any]:
    """Return the figures of an arm: its right answers as bits, how many were cut, the bytes of its files."""
    is_read = arm.is_rival and decoder == "ours"
    task = TASKS[maker.task]
    if arm.is_rival and not is_read and task.evaluation["task"] == "choices":
        raise InputError(f"a rival cannot weigh the answers of {maker.task}; take --decoder ours")
    file = maker.file(arm)
    output = (
        maker.folder / "answers" / f"{file.name}{'-ours' if is_read else ''}{f'-first{limit}' if limit else ''}.json"
    )
    form, rows = (task.untrained, "asked") if arm.training == "none" else (task.evaluation, "test")
    options = {**form, "data": str(maker.rows(rows)), "limit": limit or None}
    start = time.monotonic()
    if arm.is_rival and not is_read:
        evaluation = _by_rival(maker, arm.engine, file, output, EvaluateConfig(**options))
    else:
        evaluation = shears.evaluate(str(maker.readable(arm) if is_read else file), output, **options)
    return {
        "right": as_text(evaluation.records), "cut": int(evaluation.details.get(CUT, 0)),
        "bytes": maker.bytes(arm), "seconds": round(time.monotonic() - start, 1),
        "trained_with": maker.trained_with(arm), "environment": environment(),
        **({"decoder": decoder} if arm.is_rival else {}),
    }  # fmt: skip


def _by_rival(maker: Maker, engine: Engine, file: Path, output: Path, config: EvaluateConfig) -> Evaluation:
    """Return a rival's answers, kept one by one in a journal, read as those of every other arm."""
    ref = resolve(maker.merged())
    with torch.device("meta"):
        model = build_causal_model(known_config(ref.folder))
    model.generation_config = generation_settings(ref.folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    weights = max(files_of(file), key=lambda path: path.stat().st_size)
    journal = TextJournal(
        journal_path(output), {**identity_of(ref, None, config), "file_sha256": file_fingerprint(weights)}
    )
    with opened(maker.program(engine), file) as process:
        backend = RivalBackend(process, model.config.vocab_size)
        return evaluate_task(Subject(model, load_tokenizer(ref), backend, journal), config)


def _speed(arguments: argparse.Namespace) -> None:
    """Time the measured arms of the first seed, and rivals, whose files are quickly made, in turns."""
    begin()
    cells = [(maker, name) for maker, name in _cells(arguments) if maker.seed == arguments.seeds[0]]
    for model in arguments.models:
        mine = [(maker, name) for maker, name in cells if maker.name == model]
        makers = {name: maker for maker, name in mine if ARMS[name].is_rival or _is_measured(maker, name, arguments)}
        for mode in arguments.modes if makers else ():
            for name, figures in speeds(makers, mode, arguments.rounds).items():
                key = _key(makers[name], name, arguments)
                about = {"processor": processor(), "environment": environment()}
                add_row(
                    arguments.results[0], {**key, "kind": "speed", "mode": mode, "tokens_per_second": figures, **about}
                )
                print(f"{mode}, {name}: {spread(figures, 1)} tokens/s", flush=True)


def speeds(makers: Mapping[str, Maker], mode: Mode, rounds: int) -> dict[str, list[float]]:
    """Return tokens/s of the arms of one model in every round."""
    maker = next(iter(makers.values()))
    tokenizer = load_tokenizer(resolve(maker.merged()))
    template = TASKS[maker.task].evaluation.get("template", DEFAULT_TEMPLATE)
    examples = load_examples(str(maker.rows("test")), template, tokenizer, 1)
    count, new = (PREFILL, 0) if mode == "prefill" else (PROMPT, NEW)
    texts = TEXTS.get(mode, 1)
    prompt = (prompts_of(examples, tokenizer)[0] * count)[:count]
    with ExitStack() as stack:

        def process(name: str, threads: int = 1, core: int | None = None) -> Rival:
            arm = ARMS[name]
            return stack.enter_context(opened(makers[name].program(arm.engine), makers[name].file(arm), threads, core))

        if mode == "2 processes":
            cores = sorted(os.sched_getaffinity(0))[:2]
            arms = {name: at_once([process(name, 1, core) for core in cores]) for name in makers}
        else:
            arms = {name: remote(process(name, 2 if mode == "2 threads" else 1), texts) for name in makers}
        timings = measured(arms, prompt, new, rounds)
    tokens = texts * (new - 1) if texts > 1 else new or count  # the prompt's last logits give the first token
    return {name: [tokens / timing.wall for timing in values] for name, values in timings.items()}


def at_once(processes: Sequence[Rival]) -> Timed:
    """Return the arm of processes that all continue the same prompt at the same time: the mean of their seconds."""

    def run(prompt: Sequence[int], new: int) -> tuple[Timing, list[int]]:
        for process in processes:
            process.begin(prompt, new)
        answers = [process.answer() for process in processes]
        wall, cpu = (fmean(answer[clock] for answer in answers) for clock in ("seconds", "cpu"))
        return Timing(wall, cpu), answers[0]["tokens"]

    return Timed(run)


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of every table."""
    for table in _tables_of(rows):
        yield from _table(table, [row for row in rows if _table_of(row) == table])


def _table(table: Table, rows: Sequence[Row]) -> Iterator[str]:
    runs = runs_of(rows)
    yield f"\n## {table}\n"
    yield "| arm | seeds | accuracy | cut | MB |\n" + "| --- " * 5 + "|"
    for name, of_arm in runs.items():
        last = _last(rows, name)
        cut = sum(row["cut"] for row in rows if row["kind"] == "test" and row["arm"] == name)
        accuracy = percent(pooled_accuracy(list(of_arm.values())))
        yield f"| {name} | {len(of_arm)} | {accuracy} | {cut} | {last['bytes'] / MB:.1f} |"
    yield f"\n{_asked(runs)}"
    yield "\n| points | minus " + " | minus ".join(REFERENCES) + " |\n" + "| --- " * (1 + len(REFERENCES)) + "|"
    for name in runs:
        yield f"| {name} | " + " | ".join(_difference(runs, name, other) for other in REFERENCES) + " |"
    yield from paired_table(list(_deciding(runs)))
    yield from _speed_table(rows)


def _speed_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield tokens/s in every mode, and how many times as fast the first sparse arm is, round by round."""
    timed = {(mode, name): _last(rows, name, mode).get("tokens_per_second", []) for mode in MODES for name in ARMS}
    modes = [mode for mode in MODES if any(timed[mode, name] for name in ARMS)]
    ours = next((name for name in ARMS if ARMS[name].sparsity and any(timed[mode, name] for mode in modes)), "")
    cells: Sequence[tuple[str, Callable[[Mode, str], str]]] = (
        ("tokens/s", lambda mode, name: spread(timed[mode, name], 1)),
        (f"{ours}, times as fast as", lambda mode, name: spread(quotients(timed[mode, ours], timed[mode, name]))),
    )
    for title, cell in cells if ours else ():
        yield f"\n| {title} | " + " | ".join(modes) + " |\n" + "| --- " * (1 + len(modes)) + "|"
        for name in ARMS:
            shown = [cell(mode, name) if timed[mode, name] and timed[mode, ours] else "" for mode in modes]
            if any(shown):
                yield f"| {name} | " + " | ".join(shown) + " |"


def _asked(runs: Mapping[str, Runs]) -> str:
    """Return what was asked, and what is missing."""
    num_questions = len(next(iter(next(iter(runs.values())).values())))
    most = max(map(len, runs.values()))
    few = "" if most >= ENOUGH else f" {most} of {ENOUGH} seeds: too few to decide."
    missing = [name for name in ARMS if name not in runs]
    lacks = f" Not measured: {'; '.join(missing)}." if missing else ""
    return f"{num_questions} questions; intervals of 95 % (Wilson; differences paired by question).{few}{lacks}"


def runs_of(rows: Sequence[Row]) -> dict[str, dict[int, Bits]]:
    """Return the answers of every arm by seed, in the order of ARMS; of a cell measured twice the last line counts."""
    found: dict[str, dict[int, Bits]] = {name: {} for name in ARMS}
    for row in rows:
        if row["kind"] == "test":
            found[row["arm"]][row["seed"]] = as_bits(row["right"])
    return {name: runs for name, runs in found.items() if runs}


def _difference(runs: Mapping[str, Runs], name: str, other: str) -> str:
    """Return the difference of two arms over the seeds that both have, with its interval."""
    both = sorted(runs[name].keys() & runs.get(other, {}).keys())
    if name == other or not both:
        return ""
    return points(paired_difference(*[[runs[arm][seed] for seed in both] for arm in (name, other)]))


def _deciding(runs: Mapping[str, Runs]) -> Iterator[Pair]:
    """Yield each pair of an arm that decides and a reference once."""
    for number, other in enumerate(REFERENCES):
        for name in DECIDING:
            if name not in REFERENCES[: number + 1] and name in runs and other in runs:
                one, two = ({seed: [bits] for seed, bits in runs[arm].items()} for arm in (name, other))
                yield f"{name} minus {other}", one, two


def _pictures(arguments: argparse.Namespace) -> None:
    """Write the pictures of every table, and of every task that several models have."""
    rows = rows_of(*arguments.results)
    arguments.output.mkdir(parents=True, exist_ok=True)
    tables = _tables_of(rows)
    drawn = {
        f"{table.model}-{table.task}-{name}": drawing
        for table in tables
        for name, drawing in pictures(table, [row for row in rows if _table_of(row) == table]).items()
    }
    for task in dict.fromkeys(table.task for table in tables):
        mine = {table.model: table for table in tables if table.task == task}  # the last table of a model counts
        if len(mine) > 1:
            drawn[f"{task}-bytes"] = of_models(list(mine.values()), rows)
    for name, drawing in drawn.items():
        path = arguments.output / f"front-{name}.svg"
        path.write_text(f"{drawing}\n", encoding="utf-8")
        print(path)


def pictures(table: Table, rows: Sequence[Row]) -> dict[str, str]:
    """Return the drawings of accuracy over MB and over tokens/s, the second if an arm was timed."""
    sizes = _sizes(rows)
    rates = {
        name: point._replace(x=median(timed["tokens_per_second"]))
        for name, point in sizes.items()
        if (timed := _last(rows, name, MODES[0]))
    }
    title = f"{table.model}, {table.task}: accuracy over"
    drawn = {"bytes": _drawing(f"{title} bytes", "MB", sizes, 1)}
    return drawn | ({"speed": _drawing(f"{title} speed", "tokens/s, one thread", rates, -1)} if rates else {})


def of_models(tables: Sequence[Table], rows: Sequence[Row]) -> str:
    """Return the drawing of accuracy over MB of several models on one task."""
    sizes, kinds = {}, {}
    for table in tables:
        for arm, point in _sizes([row for row in rows if _table_of(row) == table]).items():
            name = f"{table.model.rpartition('-')[2]} {arm.removesuffix(', trained')}"
            sizes[name], kinds[name] = point, ARMS[arm].kind
    front = list(pareto({name: (point.x, point.value) for name, point in sizes.items()}))
    names = ("MB, each step doubles", "right answers, %")
    return scatter(f"{tables[0].task}: accuracy over bytes", names, sizes, kinds, front, doubling=True)


def _sizes(rows: Sequence[Row]) -> dict[str, Point]:
    """Return the accuracy over MB of every arm of a table."""
    sizes = {}
    for name, runs in runs_of(rows).items():
        value, low, high = (100 * each for each in pooled_accuracy(list(runs.values())))
        sizes[name] = Point(_last(rows, name)["bytes"] / MB, value, low, high)
    return sizes


def _drawing(title: str, name: str, found: Mapping[str, Point], sign: int) -> str:
    """Return a drawing of all arms; `sign` is -1 where more is better."""
    front = list(pareto({arm: (sign * each.x, each.value) for arm, each in found.items()}))
    return scatter(title, (name, "right answers, %"), found, {arm: ARMS[arm].kind for arm in found}, front)


def _last(rows: Sequence[Row], name: str, mode: Mode | None = None) -> Row:
    """Return the last answers of an arm, or its last speed in a mode; an empty line if there is none."""
    wanted = {"arm": name, **({"kind": "speed", "mode": mode} if mode else {"kind": "test"})}
    return next((row for row in reversed(rows) if wanted.items() <= row.items()), {})


def _tables_of(rows: Sequence[Row]) -> list[Table]:
    """Return the tables that have answers, in the order of the lines."""
    return list(dict.fromkeys(_table_of(row) for row in rows if row["kind"] == "test"))


def _table_of(row: Row) -> Table:
    return Table(**{name: row[name] for name in Table._fields if name in row})


def _cells(arguments: argparse.Namespace) -> Iterator[tuple[Maker, str]]:
    """Yield every cell, the first seed of all arms first; those of a rival only where it is."""
    pythons = {engine: Path(python).absolute() for engine, python in arguments.rivals.items()}
    skipped = [name for name in arguments.arms if _needed(ARMS[name]) - pythons.keys()]
    if skipped:
        print(f"skipped, because --rivals names no Python of theirs: {'; '.join(skipped)}", flush=True)
    for seed in arguments.seeds:
        for name, model in arguments.models.items():
            maker = Maker(
                model, name, arguments.task, seed, arguments.data, arguments.work, arguments.examples,
                arguments.epochs, dict(arguments.set), dict(arguments.prune), pythons, arguments.rows,
            )  # fmt: skip
            yield from ((maker, arm) for arm in arguments.arms if arm not in skipped)


def _needed(arm: Arm) -> set[Engine]:
    """Return the engines that make and run an arm's file; OpenVINO reads one of llama.cpp's."""
    if not arm.is_rival:
        return set()
    return {arm.engine, "llama.cpp"} if arm.engine == "OpenVINO" else {arm.engine}


def _key(maker: Maker, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "kind": "test", "model": maker.name, "task": maker.task, "arm": name, "seed": maker.seed,
        "examples": maker.examples, "epochs": maker.epochs, "limit": arguments.limit,
        "rows": maker.given.name if maker.given else None,
    }  # fmt: skip


def _is_measured(maker: Maker, name: str, arguments: argparse.Namespace) -> bool:
    key = _key(maker, name, arguments)
    return any(all(row.get(name) == value for name, value in key.items()) for row in rows_of(*arguments.results))


COMMANDS = {
    "run": _run,
    "speed": _speed,
    "table": lambda arguments: print("\n".join(tables(rows_of(*arguments.results)))),
    "pictures": _pictures,
}


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("front.jsonl")])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/front"), help="keeps all files")
    parser.add_argument("--models", type=named, default={"smollm2-135m": "smollm2-135m"}, help="NAME=MODEL,...")
    parser.add_argument("--task", choices=list(TASKS), default="mawps")
    parser.add_argument("--arms", type=partial(_among, list(ARMS)), default=list(ARMS), help="separated by '; '")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=0, help="training rows, the first ones; 0: all")
    parser.add_argument("--rows", type=Path, help="training rows in place of the set's, such as own right answers")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--limit", type=int, default=0, help="test questions, the first ones; 0: all")
    parser.add_argument("--rivals", type=_rivals, default={}, help="ENGINE=PYTHON,...")
    parser.add_argument("--set", type=setting, action="append", default=[], help="KEY=VALUE of every shears train")
    parser.add_argument("--prune", type=setting, action="append", default=[], help="KEY=VALUE of every sparsify")
    parser.add_argument("--decoder", choices=get_args(Decoder), default="own", help="of llama.cpp's files in run")
    parser.add_argument("--rounds", type=int, default=7, help="of speed")
    parser.add_argument("--modes", type=partial(_among, MODES), default=list(MODES), help="of speed")
    parser.add_argument("--output", type=Path, default=Path("docs/assets"), help="folder of the pictures")
    return parser.parse_args()


def _among(known: Sequence[str], text: str) -> list[str]:
    given = text.split("; ")
    if unknown := [name for name in given if name not in known]:
        raise argparse.ArgumentTypeError(f"must be among {'; '.join(known)}, got {'; '.join(unknown)}")
    return given


def _rivals(text: str) -> dict[str, str]:
    given = named(text)
    _among([engine for engine in ENGINES if engine != "shears"], "; ".join(given))
    return given


if __name__ == "__main__":
    main()
