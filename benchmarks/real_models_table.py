"""The tables of benchmarks.real_models: accuracies, differences paired by question, the paper's figures beside them.

Seeds are pooled by question. Questions that stand in the training data of any line of a table are left out of all its
lines. The p values of one call are corrected together (Holm), those of the table of accuracies and those of the claims
each on their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.real_models_cells import ALPACA, ARMS, DENSE
from benchmarks.real_models_data import TESTS
from benchmarks.report import Pair, paired_table, percent, points
from shears.evaluation.statistics import (
    Bits,
    bootstrap_difference,
    holm,
    paired_difference,
    pooled_accuracy,
)

Row = Mapping[str, Any]
SEEN = "-"


class Arm(NamedTuple):
    """What a line of the table measures; its runs are seeds."""

    arm: str
    base: str
    sparsity: float
    ranks: str


class Table(NamedTuple):
    """The part of the results whose lines are compared: one model on one test set with one budget."""

    model: str
    test: str
    trained: str
    examples: int
    epochs: float
    limit: int
    template: str


Runs = Mapping[int, Bits]
AS_IT_CAME = Arm("dense-0shot", DENSE, 0.0, "none")
DENSE_LORA = Arm("dense-lora", DENSE, 0.0, "heuristic")
LLAMA = {
    0.0: {"gsm8k": 37.5, "aqua": 18.9, "mawps": 79.0, "svamp": 52.1},
    0.4: {"gsm8k": 36.8, "aqua": 19.7, "mawps": 83.2, "svamp": 47.7},
    0.5: {"gsm8k": 36.1, "aqua": 22.0, "mawps": 78.6, "svamp": 44.5},
}
"""LLaMA-7B in the paper (arXiv 2404.10934): dense LoRA at 0, NLS at the heuristic's ranks else; percent."""
MPT = {0.0: 36.1, 0.4: 35.7, 0.5: 33.4, 0.6: 30.4, 0.7: 22.8}
"""MPT-7B on GSM8K with NLS, percent by sparsity."""
ORDER = tuple(ARMS)
NAMES = {
    "0shot": "untrained", "lora": "LoRA 32", "nls": "NLS", "nls-taught": "NLS beside a teacher", "nested": "nested",
    "sparsepeft": "SparsePEFT, merged",
}  # fmt: skip


def print_tables(rows: Sequence[Row]) -> None:
    """Print the choices, the accuracies of every test set, and the claims."""
    tables = {table: arms for table, arms in arms_by_table(rows).items() if arms}
    _print_choices(rows)
    corrected = iter(holm([line.p for arms in tables.values() for line in _against_dense(arms).values()]))
    for table, arms in tables.items():
        _print_accuracies(table, arms, corrected, lines_of(rows, table))
    lines = list(paired_table(list(_claims(tables))))
    print("\n".join(["\n### Claims", *lines] if lines else []))


def arms_by_table(rows: Sequence[Row]) -> dict[Table, dict[Arm, dict[int, Bits]]]:
    """Return the right and wrong answers of every arm by seed, in the order of the tables.

    Untrained dense models belong to all tables of their test set, models pruned on a text to those trained on it. Of a
    cell measured twice the last line counts.
    """
    tests = [row for row in rows if row["kind"] == "test"]
    tables = {}
    for table in _tables_of(tests):
        lines = lines_of(tests, table)
        arms: dict[Arm, dict[int, str]] = {}
        for row in sorted(lines, key=_place):
            arms.setdefault(arm_of(row), {})[row["seed"]] = row["right"]
        tables[table] = _without_seen(arms)
    return tables


def lines_of(rows: Sequence[Row], table: Table) -> list[Row]:
    """Return the lines of a table; of the dense model as it came, that of the form with the most right answers."""
    lines = [row for row in rows if row["kind"] == "test" and _belongs(row, table)]
    came = [row for row in lines if arm_of(row) == AS_IT_CAME]
    best = max(came, key=lambda row: str(row["right"]).count("1"), default=None)
    return [row for row in lines if arm_of(row) != AS_IT_CAME or form_of(row) == form_of(best or row)]


def form_of(row: Row) -> str:
    """Return the form in which the questions of a line were asked."""
    return str(row.get("template", ALPACA))


def _tables_of(tests: Sequence[Row]) -> list[Table]:
    """Return the tables in the order of the test sets: those of trained models, and others where there are none."""
    found = {table_of(row) for row in tests}
    most: dict[tuple[str, str, int], tuple[bool, bool]] = {}
    for each in found:
        place = (each.model, each.test, each.limit)
        most[place] = max(most.get(place, (False, False)), _trained(each))
    kept = [each for each in found if _trained(each) == most[each.model, each.test, each.limit]]
    return sorted(kept, key=lambda table: (table.model, list(TESTS).index(table.test), table))


def _trained(table: Table) -> tuple[bool, bool]:
    """Tell whether the models of a table are trained, and whether they are pruned on the text of a training set."""
    return table.epochs > 0, bool(table.trained)


def arm_of(row: Row) -> Arm:
    """Return the arm that a line measures."""
    return Arm(row["arm"], row["base"], row["sparsity"], row["ranks"])


def table_of(row: Row) -> Table:
    """Return the table of a line."""
    return Table(row["model"], row["test"], row["trained"], row["examples"], row["epochs"], row["limit"], form_of(row))


def name_of(arm: Arm) -> str:
    """Return an arm in words."""
    where, _, kind = arm.arm.partition("-")
    base = where if arm.base == DENSE else f"{arm.sparsity:.0%} ({arm.base})"
    reading = f", {arm.ranks}" if len(ARMS[arm.arm].readings) > 1 else ""
    made = "as it came" if arm == AS_IT_CAME else NAMES[kind]
    return f"{base}, {made}{reading}"


def paper_figure(table: Table, arm: Arm) -> str:
    """Return what the paper measured on its models for a line, in percent; empty if it has no such line."""
    figures = []
    if arm in (DENSE_LORA, Arm("sparse-nls", arm.base, arm.sparsity, "heuristic")) and arm.sparsity in LLAMA:
        figures.append(f"LLaMA-7B {LLAMA[arm.sparsity][table.test]}")
    is_nls = arm.arm in ("dense-nls", "sparse-nls") and arm.ranks == "heuristic"
    if table.test == "gsm8k" and is_nls and arm.sparsity in MPT:
        figures.append(f"MPT-7B {MPT[arm.sparsity]}")
    return ", ".join(figures)


def claims(arms: Mapping[Arm, Runs]) -> Iterator[tuple[str, Arm, Arm]]:
    """Yield the comparisons beside those with dense LoRA: what is claimed, and the two arms that are compared."""
    for arm in arms:
        heuristic = arm._replace(arm="sparse-nls", ranks="heuristic")
        where = f"{arm.sparsity:.0%} ({arm.base})"
        if arm.arm == "sparse-nls" and arm.ranks == "heuristic":
            yield f"{where}: NLS, heuristic, minus LoRA 32", arm, arm._replace(arm="sparse-lora")
        elif arm.arm == "sparse-nls":
            yield f"{where}: NLS, {arm.ranks}, minus heuristic", arm, heuristic
        elif arm.arm in ("sparse-nls-taught", "sparse-nested"):
            kind = NAMES[arm.arm.partition("-")[2]]
            yield f"{where}: {kind} minus NLS, {arm.ranks}", arm, arm._replace(arm="sparse-nls")
        elif arm.arm == "sparse-sparsepeft":
            yield f"{where}: SparsePEFT, merged, minus NLS, heuristic", arm, heuristic
        elif arm.arm == "sparse-0shot" and arm.base != "wanda":
            yield f"{where}: untrained minus untrained of Wanda", arm, arm._replace(base="wanda")
        elif arm.arm == "dense-nls" and arm.ranks == "heuristic":
            yield "dense: NLS, heuristic, minus LoRA 32", arm, DENSE_LORA


def _print_choices(rows: Sequence[Row]) -> None:
    """Print the validation losses that rate and alpha were chosen by."""
    tuned = [row for row in rows if row["kind"] == "tune"]
    if not tuned:
        return
    print("### Rate and alpha, chosen on validation loss at seed 0 and a third of the epochs\n")
    print("| model | arm | trained on | rate, alpha: loss (lowest in bold) |")
    print("| --- | --- | --- | --- |")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in tuned:
        key = (
            row["model"],
            name_of(arm_of(row)),
            f"{row['trained']}, {row['examples'] or 'all'} x {row['epochs']:.3g}",
        )
        groups.setdefault(key, []).append(row)
    for (model, arm, trained), lines in groups.items():
        lowest = min(row["loss"] for row in lines)
        cells = [f"{row['learning_rate']:g}, {row['alpha']:g}: {row['loss']:.4f}" for row in lines]
        shown = "; ".join(
            f"**{cell}**" if row["loss"] == lowest else cell for cell, row in zip(cells, lines, strict=True)
        )
        print(f"| {model} | {arm} | {trained} | {shown} |")


class Difference(NamedTuple):
    """A difference to dense LoRA in shares, with its interval and its p value."""

    value: float
    low: float
    high: float
    p: float


def _against_dense(arms: Mapping[Arm, Runs]) -> dict[Arm, Difference]:
    """Return the difference of every other arm to dense LoRA, paired by question, over the seeds that both have.

    The one run of an untrained model is repeated for each seed.
    """
    dense = arms.get(DENSE_LORA, {})
    found = {}
    for arm, runs in arms.items():
        own = dict.fromkeys(dense, next(iter(runs.values()))) if arm.ranks == "none" else runs
        both = [seed for seed in dense if seed in own]
        if arm != DENSE_LORA and both:
            sides = [own[seed] for seed in both], [dense[seed] for seed in both]
            found[arm] = Difference(*paired_difference(*sides), bootstrap_difference(*sides).p)
    return found


def _print_accuracies(table: Table, arms: Mapping[Arm, Runs], corrected: Iterator[float], rows: Sequence[Row]) -> None:
    questions = len(next(iter(next(iter(arms.values())).values())))
    budget = f"trained on {table.trained}, {table.examples or 'all'} examples, {table.epochs:g} epochs"
    budget = budget if table.epochs else "untrained"
    asked = f"{questions} questions, asked in {table.template}"
    print(f"\n### {table.model}, {table.test}: {asked}; {budget}{_below(arms)}\n")
    print("| model | right | accuracy (95 %) | minus dense LoRA (95 %) | p (Holm) | cut | paper |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    forms = {arm_of(row): form_of(row) for row in rows}
    differences = _against_dense(arms)
    for arm, runs in arms.items():
        accuracy = percent(pooled_accuracy(list(runs.values())))
        right = f"{sum(map(sum, runs.values()))} of {questions} x {len(runs)}"
        line = differences.get(arm)
        gap = ["", ""] if line is None else [points(line[:3]), f"{next(corrected):.4f}"]
        name = name_of(arm) if forms[arm] == table.template else f"{name_of(arm)}, asked in {forms[arm]}"
        cells = [name, right, accuracy, *gap, _num_cut(rows, arm), paper_figure(table, arm)]
        print(f"| {' | '.join(cells)} |")


def _below(arms: Mapping[Arm, Runs]) -> str:
    """Return the part of a title that names the trained arms with fewer right answers than the model as it came."""
    if AS_IT_CAME not in arms:
        return ""
    values = {arm: pooled_accuracy(list(runs.values())).value for arm, runs in arms.items()}
    below = [name_of(arm) for arm in arms if arm.ranks != "none" and values[arm] < values[AS_IT_CAME]]
    return f"; training stays below the model as it came ({'; '.join(below)})" if below else ""


def _num_cut(rows: Sequence[Row], arm: Arm) -> str:
    """Return how many answers of an arm's runs the longest length cut; nothing for results that do not say."""
    known = [row["cut"] for row in rows if arm_of(row) == arm and "cut" in row]
    return str(sum(known)) if known else ""


def _claims(tables: Mapping[Table, Mapping[Arm, Runs]]) -> Iterator[Pair]:
    for table, arms in tables.items():
        for words, *pair in claims(arms):
            one, other = ({seed: [bits] for seed, bits in arms.get(arm, {}).items()} for arm in pair)
            yield f"{table.model}, {table.test}, {words}", one, other


def _belongs(row: Row, table: Table) -> bool:
    if (row["model"], row["test"], row["limit"]) != (table.model, table.test, table.limit):
        return False
    if arm_of(row) == AS_IT_CAME:
        return True
    if row["ranks"] == "none":
        return row["trained"] in ("", table.trained) and form_of(row) == table.template
    return table_of(row) == table


def _place(row: Row) -> tuple[Any, ...]:
    return ORDER.index(row["arm"]), row["sparsity"], row["base"] != "wanda", row["ranks"], row["seed"]


def _without_seen(arms: Mapping[Arm, Mapping[int, str]]) -> dict[Arm, dict[int, Bits]]:
    """Return answers as bits, without the questions that any line marks as seen."""
    texts = [text for runs in arms.values() for text in runs.values()]
    counted = [number for number, answers in enumerate(zip(*texts, strict=True)) if SEEN not in answers]
    return {
        arm: {seed: [text[number] == "1" for number in counted] for seed, text in runs.items()}
        for arm, runs in arms.items()
    }
