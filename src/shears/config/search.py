"""Options of `shears search`: strategy, goal, budget, and where evaluations are stored."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, model_validator

from shears.config.evaluate import WRITTEN_TASKS, ExampleTask, ScoringConfig
from shears.config.fields import Columns, DtypeName, Names, Seed, Size, StageConfig, StorageURL
from shears.config.notation import UNITS

QUALITIES = ("loss", "accuracy")  # measured on validation examples
SIZES = ("parameters", "nonzeros", "macs")  # counted
FIGURES = (*QUALITIES, *SIZES, "latency")  # the last is timed
MAXIMISED = frozenset({"accuracy"})  # less is better for all others
QUANTITY = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*[kKMGT]?"
STRATEGIES: Mapping[str, str] = {
    "heuristic": "shears.searching.strategies.simple:heuristic",
    "maximal": "shears.searching.strategies.simple:maximal",
    "minimal": "shears.searching.strategies.simple:minimal",
    "random": "shears.searching.strategies.simple:RandomSearch",
    "exhaustive": "shears.searching.strategies.simple:Exhaustive",
    "hill-climbing": "shears.searching.strategies.hill_climb:HillClimbing",
    "nsga2": "shears.searching.strategies.nsga2:Nsga2",
    "rnsga2": "shears.searching.strategies.nsga2:rnsga2",
}
"""Functions from (SearchSpace, SearchPlan) to a strategy, as `module:name` (decision 44)."""
NUM_PROPOSALS: Mapping[str, int] = {"heuristic": 1, "maximal": 2, "minimal": 2}
"""Configurations that a strategy evaluates if it does not search."""
if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]

OWNERS: Mapping[str, str] = {"step": "hill-climbing", "reference_points": "rnsga2"}
"""The strategy that reads an option; the others refuse it."""


class Constraint(NamedTuple):
    """A bound on a figure, such as `parameters<=3M`."""

    figure: str
    relation: Literal["<=", ">="]
    limit: float

    def excess(self, value: int | float) -> float:
        """Return the excess over the bound as a share of the limit (absolute for 0), 0 or less if met."""
        over = value - self.limit if self.relation == "<=" else self.limit - value
        return over / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        unit = next((unit for unit in "TGMk" if abs(self.limit) >= UNITS[unit]), "")
        short = f"{self.limit / UNITS[unit]:.12g}{unit}"
        return f"{self.figure}{self.relation}{short if parse_number(short) == self.limit else repr(self.limit)}"


def parse_number(text: str) -> float:
    """Return the number that a text such as 0.5, 1.5e6 or 3M stands for; ValueError for others."""
    if not re.fullmatch(QUANTITY, text.strip(), re.ASCII):
        raise ValueError(f"must be a number such as 0.5, 1.5e6 or 3M, got {text!r}")
    digits = text.strip().rstrip("kKMGT")
    number = float(digits) * UNITS[text.strip()[len(digits) :]]
    if math.isinf(number):
        raise ValueError(f"must be a finite number, got {text!r}")
    return number


def parse_constraint(text: str) -> Constraint:
    """Return the constraint that a text stands for; ValueError for another form or figure."""
    match = re.fullmatch(rf"\s*(\w+)\s*(<=|>=)\s*({QUANTITY})\s*", text, re.ASCII)
    if not match:
        form = "FIGURE<=NUMBER or FIGURE>=NUMBER such as parameters<=3M"
        raise ValueError(f"constraint must be {form}, got {text!r}")
    check_figure("constraint", match[1])
    try:
        limit = parse_number(match[3])
    except ValueError as error:
        raise ValueError(f"constraint {error}") from None
    return Constraint(match[1], "<=" if match[2] == "<=" else ">=", limit)


def parse_point(text: str, num_objectives: int) -> tuple[float, ...]:
    """Return a reference point such as `0.45:3M`, a number for each objective, or ValueError."""
    try:
        point = tuple(map(parse_number, text.split(":")))
    except ValueError as error:
        raise ValueError(f"reference_points {error}") from None
    if len(point) != num_objectives:
        raise ValueError(
            f"reference_points must have {num_objectives} numbers joined by colons, one per objective, got {text!r}"
        )
    return point


def check_figure(key: str, name: str) -> None:
    """Raise ValueError for a figure that cannot be measured."""
    if name not in FIGURES:
        raise ValueError(f"{key} must be of {', '.join(FIGURES)}, got {name!r}")


class StrategyOptions(StageConfig):
    """Options of single strategies; each strategy reads its own."""

    step: int = Field(1, gt=0)
    """hill-climbing: most places that a rank moves at once in its list of allowed ranks."""
    reference_points: Names = ()
    """rnsga2: desired figures, one number per objective joined by colons, such as 0.45:3M,0.5:2M;
    default: the figures of the heuristic, and the best of each figure among heuristic, maximal and
    minimal."""


class SearchConfig(StrategyOptions, ScoringConfig):
    """How to find the best sub-adapter on validation data."""

    precision: DtypeName = "auto"
    """Arithmetic; auto: fp32 for losses, whose small differences bf16 rounds away, and bf16
    autocast for accuracies where the processor supports it. With fp32, a 16-bit model takes twice
    its memory."""
    data: str
    """Validation examples, never the test split: a file, a hub id or arithmetic:validation."""
    columns: Columns = Field({})
    """Columns of data and test by the names that shears knows: prompt=question,completion=answer."""
    objective: Names = ("loss",)
    """One to three figures to improve: loss (per completion token), accuracy (of a task),
    parameters (of the adapter), nonzeros (of base and adapter), macs (per token), latency (ms per
    token in the native decoder on this CPU). The first one decides, the others break ties; a single
    loss or accuracy is joined by parameters."""
    constraint: Names = ()
    """Bounds that the choice must meet, such as parameters<=3M or accuracy>=0.6,macs<=100M."""
    task: ExampleTask | None = None
    """Task whose accuracy is measured; without effect where neither a figure nor test needs one."""
    test: str | None = None
    """Test examples, unseen by the search: the choice and the heuristic are measured on them once
    (accuracy if a task is given, else loss), with a paired interval of the difference."""
    strategy: StrategyName = "heuristic"
    """How rank configurations are proposed; heuristic: only the middle ranks are measured."""
    max_evaluations: int = Field(50, gt=0)
    """Rank configurations to evaluate, each once; may be raised with --resume. Without effect on
    heuristic, maximal and minimal, which evaluate one or two."""
    tie_layers: int = Field(1, gt=0)
    """Consecutive layers that share a rank, per group: a smaller space for a big model."""
    cache_budget: Size = "2GB"
    """Memory for hidden states of the best configuration so far; an evaluation reuses them up to
    the first layer whose rank differs. It changes the time, never a figure; 0: none are kept."""
    seed: Seed = 0
    """Random seed of the proposals; without effect on the strategies that draw none (heuristic,
    maximal, minimal, exhaustive)."""
    storage: StorageURL | None = Field(None, repr=False)
    """Where several workers share the search: sqlite:///FILE, postgresql://USER@HOST/NAME,
    mysql://USER@HOST/NAME or journal:///FILE (for NFS); default: a file in the output folder, for
    one process."""
    study: str | None = Field(None, min_length=1)
    """Name of the search in a shared storage; default: made from the super-adapter's fingerprint.
    Without effect without storage."""
    stale_after: float = Field(60.0, ge=0.5)
    """Seconds without a heartbeat after which other workers take over what a worker began; without
    effect on figures. A storage that does not answer is tried again for five times as long."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives; a single quality is joined by parameters, so that of equals the smaller wins."""
        if len(self.objective) == 1 and self.objective[0] in QUALITIES:
            return self.objective[0], "parameters"
        return self.objective

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints as values."""
        return tuple(map(parse_constraint, self.constraint))

    @property
    def figures(self) -> tuple[str, ...]:
        """Every figure that the search needs of a configuration, each once."""
        return tuple(dict.fromkeys([*self.objectives, *(bound.figure for bound in self.constraints)]))

    @property
    def weights(self) -> Literal["auto", "fp32"]:
        """Number format of the loaded model: fp32 for fp32 arithmetic, else the model's own."""
        is_auto_for_loss = self.precision == "auto" and "loss" in self.figures
        return "fp32" if self.precision == "fp32" or is_auto_for_loss else "auto"

    @property
    def options(self) -> StrategyOptions:
        """The options of the strategy."""
        return StrategyOptions(**{name: getattr(self, name) for name in StrategyOptions.model_fields})

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        self._check_goal()
        if "accuracy" in self.figures and self.task is None:
            raise ValueError(
                f"task must be given with objective accuracy: choices, {', '.join(WRITTEN_TASKS)}, got none"
            )
        if self.backend == "native" and self.task not in WRITTEN_TASKS:
            raise ValueError(
                f"backend native needs generated answers ({', '.join(WRITTEN_TASKS)}), got task {self.task}"
            )
        for name, owner in OWNERS.items():
            if self.strategy != owner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} needs strategy {owner}, got {self.strategy}; drop {name}")
        if self.test == self.data:
            raise ValueError(f"test must be other examples than data, which the search sees; both are {self.data}")
        for point in self.reference_points:
            parse_point(point, len(self.objectives))
        return self

    def _check_goal(self) -> None:
        """Raise ValueError unless one to three distinct figures, one of them a quality, are sought."""
        for name in self.objective:
            check_figure("objective", name)
        names = ",".join(self.objective) or "none"
        if not 1 <= len(self.objective) <= 3 or len(set(self.objective)) < len(self.objective):
            raise ValueError(f"objective must name one to three distinct figures, got {names}")
        if not {*self.figures} & {*QUALITIES}:
            raise ValueError(
                f"objective must include loss or accuracy unless a constraint does, got {names}; "
                "the smallest configuration needs no search"
            )
