"""The cells of benchmarks.real_models: which there are, which are finished, what validation loss chooses. Pure.

A cell is a line of the results; its key is all that its figures depend on. A cell of kind `tune` trains an arm for a
third of the epochs at seed 0 and gives its validation loss. A cell of kind `test` answers a test set with one reading
of an arm (heuristic, minimal or searched ranks) at one seed, with the rate and alpha that the arm's losses chose; they
are in its key, so a cell counts as finished only with the present choice.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from benchmarks.real_models_data import Task

TUNING_SHARE = 1 / 3
"""Share of the epochs that the cells of kind `tune` train."""
TUNING_SEED = 0
LORA = (32,)
NLS = (32, 24, 16)
"""Ranks of the paper. Plain LoRA has the largest rank; the heuristic's is 24, so LoRA is the larger adapter."""
READINGS = ("heuristic", "minimal", "searched")
BEST = "best"
DENSE = "dense"
ALPACA = "alpaca"  # the form of all results whose lines name none
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """How a model is made: on the dense or on the pruned model, with the ranks of its adapter, if it has one."""

    is_dense: bool = False
    ranks: tuple[int, ...] = ()
    merged: bool = False
    """Whether the adapter is masked by the zeros and merged into them (SparsePEFT)."""
    sampling: str = "uniform"
    taught: bool = False
    """Whether it also learns what an adapter of the dense model predicts (`--teachers`), one half of its loss."""
    bases: tuple[str, ...] = (BEST,)
    """The methods that prune its base: best is admm with the sensitivity allocation, wanda is the paper's."""

    @property
    def readings(self) -> tuple[str, ...]:
        """Return the ways to choose ranks that are measured: all of NLS un-merged, else one."""
        if not self.ranks:
            return ("none",)
        return READINGS if len(self.ranks) > 1 and not self.merged else ("heuristic",)


ARMS: Mapping[str, Arm] = {
    "dense-0shot": Arm(is_dense=True),
    "sparse-0shot": Arm(bases=("wanda", BEST)),
    "dense-lora": Arm(is_dense=True, ranks=LORA),
    "dense-nls": Arm(is_dense=True, ranks=NLS),
    "sparse-lora": Arm(ranks=LORA),
    "sparse-nls": Arm(ranks=NLS),
    "sparse-nls-taught": Arm(ranks=NLS, taught=True),
    "sparse-nested": Arm(ranks=NLS, sampling="nested"),
    "sparse-sparsepeft": Arm(ranks=NLS, merged=True),
}


@dataclass(frozen=True)
class Cell:
    """The key of a line of the results."""

    kind: str
    model: str
    test: str
    """The test set; empty in kind `tune`, whose choice serves all of them."""
    trained: str
    """The sets that are trained on and whose text calibrates the pruning; empty for the dense model untrained."""
    sparsity: float
    base: str
    arm: str
    ranks: str
    seed: int
    examples: int
    epochs: float
    limit: int
    """Test questions, the first ones, or validation examples in kind `tune`; 0: all."""
    evaluations: int
    """Evaluations of the search; 0 if there is none."""
    max_new_tokens: int
    """Longest answer; 0 in kind `tune`."""
    learning_rate: float = 0.0
    alpha: float = 0.0
    template: str = ALPACA
    """The form in which rows are trained on and asked."""

    @property
    def key(self) -> dict[str, Any]:
        """Return the fields as a line of the results holds them."""
        return asdict(self)

    @property
    def is_trained(self) -> bool:
        """Whether the cell has an adapter."""
        return bool(ARMS[self.arm].ranks)


@dataclass(frozen=True)
class Wanted:
    """What is asked for: models, tasks, arms, seeds, and the budget of all of them."""

    models: tuple[str, ...]
    tasks: tuple[Task, ...]
    arms: tuple[str, ...] = tuple(ARMS)
    sparsities: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = (0, 1, 2)
    readings: tuple[str, ...] = READINGS
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    alphas: tuple[float, ...] = (64.0, 128.0)
    examples: int = 2000
    epochs: float = 1.0
    limit: int = 0
    validation_limit: int = 200
    evaluations: int = 30
    max_new_tokens: int = 512
    template: str = "chat"
    tune_at: float | None = None
    """Sparsity whose choice of rate and alpha serves all sparsities; None: each has its own."""


@dataclass(frozen=True)
class Choice:
    """The rate and alpha of an arm, or None while cells are missing; the losses that chose, and the missing cells."""

    cell: Cell | None
    losses: Mapping[str, float]
    missing: tuple[Cell, ...]


def wanted_tests(wanted: Wanted) -> Iterator[Cell]:
    """Yield every test cell without rate and alpha, seed after seed, so that the first seed is complete first.

    The tests of one adapter follow each other. Untrained models have no seed: they are measured once.
    """
    for seed, model, sparsity, arm in product(wanted.seeds, wanted.models, wanted.sparsities, wanted.arms):
        kind = ARMS[arm]
        if (kind.is_dense and sparsity != wanted.sparsities[0]) or (not kind.ranks and seed != wanted.seeds[0]):
            continue
        readings = [name for name in kind.readings if name in (*wanted.readings, "none")]
        bases = (DENSE,) if kind.is_dense else kind.bases
        for base, ranks, task in product(bases, readings, wanted.tasks):
            yield Cell(
                kind="test", model=model, test=task.test,
                trained="" if kind.is_dense and not kind.ranks else task.trained,
                sparsity=0.0 if kind.is_dense else sparsity, base=base, arm=arm, ranks=ranks,
                seed=seed if kind.ranks else 0, examples=wanted.examples if kind.ranks else 0,
                epochs=wanted.epochs if kind.ranks else 0.0, limit=wanted.limit,
                evaluations=wanted.evaluations if ranks == "searched" else 0,
                max_new_tokens=wanted.max_new_tokens, template=wanted.template,
            )  # fmt: skip


def choose(cell: Cell, wanted: Wanted, rows: Sequence[Row]) -> Choice:
    """Return the choice for a cell's arm: the best rate at the first alpha, then the best alpha at that rate.

    With one rate and one alpha there is nothing to choose, and no cell is needed. A loss that is no number is the
    worst. Of equal losses the first candidate wins.
    """
    if not cell.is_trained:
        return Choice(cell, {}, ())
    start = tuning_cell(cell, wanted)
    if len(wanted.rates) * len(wanted.alphas) == 1:
        return Choice(_with(cell, wanted.rates[0], wanted.alphas[0]), {}, ())
    known = {_identity(row): float(row["loss"]) for row in rows if row["kind"] == "tune"}

    def losses_of(candidates: Sequence[Cell]) -> dict[Cell, float]:
        given = {each: known.get(_identity(each.key)) for each in candidates}
        return {each: loss if math.isfinite(loss) else math.inf for each, loss in given.items() if loss is not None}

    candidates = [_with(start, rate, wanted.alphas[0]) for rate in wanted.rates]
    losses = losses_of(candidates)
    if len(losses) == len(candidates):
        rate = min(candidates, key=losses.__getitem__).learning_rate
        candidates += [_with(start, rate, alpha) for alpha in wanted.alphas[1:]]
        losses = losses_of(candidates)
    missing = tuple(each for each in candidates if each not in losses)
    named = {f"rate {each.learning_rate:g}, alpha {each.alpha:g}": loss for each, loss in losses.items()}
    if missing:
        return Choice(None, named, missing)
    best = min(candidates, key=losses.__getitem__)
    return Choice(_with(cell, best.learning_rate, best.alpha), named, ())


def tuning_cell(cell: Cell, wanted: Wanted) -> Cell:
    """Return the cell of kind `tune` that serves a test cell, without rate and alpha."""
    sparsity = cell.sparsity if wanted.tune_at is None or ARMS[cell.arm].is_dense else wanted.tune_at
    return replace(
        cell, kind="tune", test="", ranks="heuristic", seed=TUNING_SEED, epochs=wanted.epochs * TUNING_SHARE,
        sparsity=sparsity, limit=wanted.validation_limit, evaluations=0, max_new_tokens=0,
    )  # fmt: skip


def pending(wanted: Wanted, rows: Sequence[Row]) -> Iterator[Cell]:
    """Yield the cells that can run now and that the results lack, each once: tuning before what it chooses for.

    A cell of kind `test` whose choice is not made yet is not among them; see `undecided`.
    """
    done = {_identity(row) for row in rows}
    for cell in wanted_tests(wanted):
        choice = choose(cell, wanted, rows)
        for each in choice.missing if choice.cell is None else (choice.cell,):
            if (identity := _identity(each.key)) not in done:
                done.add(identity)
                yield each


def undecided(wanted: Wanted, rows: Sequence[Row]) -> list[Cell]:
    """Return the test cells whose rate and alpha are not chosen yet."""
    return [cell for cell in wanted_tests(wanted) if choose(cell, wanted, rows).cell is None]


def choices(wanted: Wanted, rows: Sequence[Row]) -> dict[Cell, Choice]:
    """Return the choice of every trained arm, by its cell of kind `tune`."""
    return {tuning_cell(cell, wanted): choose(cell, wanted, rows) for cell in wanted_tests(wanted) if cell.is_trained}


def title(cell: Cell) -> str:
    """Return a cell in words."""
    words = [cell.kind, cell.model, *([f"on {cell.test}"] if cell.test else []), cell.arm]
    words += [f"{cell.base} {cell.sparsity:.0%}"] if cell.base != DENSE else []
    words += [f"trained on {cell.trained}", f"{cell.ranks} ranks", f"seed {cell.seed}"] if cell.is_trained else []
    words += [f"rate {cell.learning_rate:g}, alpha {cell.alpha:g}"] if cell.learning_rate else []
    return ", ".join(words)


def _with(cell: Cell, rate: float, alpha: float) -> Cell:
    return replace(cell, learning_rate=rate, alpha=alpha)


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple({"template": ALPACA, **row}.get(name) for name in Cell.__dataclass_fields__)
