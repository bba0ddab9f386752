"""How to find the best sub-adapter: strategy, goal, budget, storage."""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from shears.config.evaluate import ScoringConfig
from shears.config.fields import Names, Seed, Size, StageConfig, StorageURL

QUALITIES = ("loss", "accuracy")  # measured on validation examples
SIZES = ("parameters", "nonzeros", "macs")  # counted
FIGURES = (*QUALITIES, *SIZES, "latency")  # the last is measured with a clock
MAXIMISED = frozenset({"accuracy"})  # of all others, less is better
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*[kKMGT]?"


class Constraint(NamedTuple):
    """A bound on a figure, such as `parameters<=3M`."""

    figure: str
    relation: Literal["<=", ">="]
    limit: float

    def excess(self, value: int | float) -> float:
        """Return by how much a value breaks the bound, as a share of the limit (absolute for 0); negative inside."""
        over = value - self.limit if self.relation == "<=" else self.limit - value
        return over / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        size = next((size for size in "TGMk" if abs(self.limit) >= UNITS[size]), "")
        short = f"{self.limit / UNITS[size]:.12g}{size}"
        return f"{self.figure}{self.relation}{short if parse_number(short) == self.limit else repr(self.limit)}"


def parse_number(text: str) -> float:
    """Return the number a text such as 0.5, 1.5e6 or 3M stands for; ValueError if it stands for none."""
    if not re.fullmatch(NUMBER, text.strip(), re.ASCII):
        raise ValueError(f"must be a number such as 0.5, 1.5e6 or 3M, got {text!r}")
    digits = text.strip().rstrip("kKMGT")
    number = float(digits) * UNITS[text.strip()[len(digits) :]]
    if math.isinf(number):
        raise ValueError(f"must be a finite number, got {text!r}")
    return number


def parse_constraint(text: str) -> Constraint:
    """Return the constraint a text stands for; ValueError if it stands for none or its figure is unknown."""
    found = re.fullmatch(rf"\s*(\w+)\s*(<=|>=)\s*({NUMBER})\s*", text, re.ASCII)
    if not found:
        raise ValueError(f"constraint must be FIGURE<=NUMBER or FIGURE>=NUMBER such as parameters<=3M, got {text!r}")
    check_figure("constraint", found[1])
    try:
        limit = parse_number(found[3])
    except ValueError as error:
        raise ValueError(f"constraint {error}") from None
    return Constraint(found[1], "<=" if found[2] == "<=" else ">=", limit)


def parse_point(text: str, num_objectives: int) -> tuple[float, ...]:
    """Return a reference point such as `0.45:3M`, a coordinate an objective; ValueError if it is none."""
    try:
        point = tuple(map(parse_number, text.split(":")))
    except ValueError as error:
        raise ValueError(f"reference_points {error}") from None
    if len(point) != num_objectives:
        raise ValueError(
            f"reference_points must have {num_objectives} numbers joined by a colon, one an objective, got {text!r}"
        )
    return point


def check_figure(key: str, name: str) -> None:
    """Raise ValueError for a figure that cannot be measured."""
    if name not in FIGURES:
        raise ValueError(f"{key} must be of {', '.join(FIGURES)}, got {name!r}")


def complete(objectives: Sequence[str]) -> tuple[str, ...]:
    """Return the objectives, a quality alone joined by the parameters: of equal ones, the smaller is better."""
    if len(objectives) == 1 and objectives[0] in QUALITIES:
        return objectives[0], "parameters"
    return tuple(objectives)


def check_goal(objectives: Sequence[str], constraints: Sequence[Constraint]) -> None:
    """Raise ValueError unless there are one to three distinct objectives and a quality is among all figures."""
    for name in objectives:
        check_figure("objective", name)
    if not 1 <= len(objectives) <= 3 or len(set(objectives)) < len(objectives):
        raise ValueError(f"objective must name one to three distinct figures, got {','.join(objectives) or 'none'}")
    if not {*objectives, *(constraint.figure for constraint in constraints)} & {*QUALITIES}:
        raise ValueError(
            f"objective must hold loss or accuracy where no constraint does, got {','.join(objectives)}; "
            "the smallest configuration needs no search"
        )


StrategyName = Literal[
    "heuristic", "maximal", "minimal", "random", "exhaustive", "hill-climbing", "evolution", "nsga2", "rnsga2"
]
OWNERS: Mapping[str, tuple[StrategyName, ...]] = MappingProxyType(
    {
        "improvement": ("hill-climbing",),
        "restarts": ("hill-climbing",),
        "step": ("hill-climbing",),
        "changes": ("hill-climbing",),
        "order": ("hill-climbing",),
        "population": ("evolution", "nsga2", "rnsga2"),
        "tournament": ("evolution",),
        "reference_points": ("rnsga2",),
    }
)


class StrategyOptions(StageConfig):
    """What strategies can be told beside budget, seed and goal; each reads its own."""

    improvement: Literal["first", "best"] = "first"
    """hill-climbing: go on from the first better neighbour, or try all of them and take the best."""
    restarts: bool = False
    """hill-climbing: start again from a random configuration where no neighbour is better."""
    step: int = Field(1, gt=0)
    """hill-climbing: most places in its list that a rank moves at once."""
    changes: int = Field(1, gt=0)
    """hill-climbing: most groups that change at once."""
    order: Literal["random", "predicted"] = "random"
    """hill-climbing by loss: in which order neighbours are tried; predicted: the most promising first, as the slopes of
    the loss say, which one backward pass over the examples gives (it takes as long as one to two evaluations)."""
    population: int | None = Field(None, ge=2)
    """evolution, nsga2, rnsga2: configurations in a generation; by default a fifth of max_evaluations, 4 to 50."""
    tournament: int | None = Field(None, ge=1)
    """evolution: configurations drawn to find one parent; by default half of the population."""
    reference_points: Names = ()
    """rnsga2: wanted figures, a number an objective joined by colons, such as 0.45:3M,0.5:2M; by default those of the
    heuristic, and the best of each among heuristic, maximal and minimal."""

    def check_owner(self, strategy: str) -> None:
        """Raise ValueError for an option that is set and belongs to another strategy."""
        for name, owners in OWNERS.items():
            if strategy not in owners and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} must be left out with strategy {strategy}; it is of {', '.join(owners)}")


class SharingConfig(StageConfig):
    """Where evaluations are kept; with a storage of its own name, several workers share them."""

    storage: StorageURL | None = Field(None, repr=False)
    """Where workers share the evaluations: sqlite:///FILE, postgresql://USER@HOST/NAME, mysql://USER@HOST/NAME or
    journal:///FILE (for NFS); by default a SQLite file in the output folder, for one process."""
    study: str | None = Field(None, min_length=1)
    """Name of the search in a shared storage; by default one is made of the super-adapter's fingerprint."""
    stale_after: float = Field(60.0, ge=0.5)
    """Seconds without a sign of life from a worker after which others evaluate what it had begun."""
    storage_timeout: float = Field(300.0, ge=0.0)
    """Seconds for which a shared storage that does not answer is tried again."""


class SearchConfig(StrategyOptions, SharingConfig, ScoringConfig):
    """How to find the best sub-adapter; sees validation data only."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic: auto is fp32 for losses, since neighbours differ by less than bf16 rounds, and bf16 autocast for
    accuracies where the processor has it. In fp32 a 16-bit model takes twice its memory."""
    data: str
    """Validation examples, never the test split: a file, a hub id or the embedded arithmetic:validation."""
    objective: Names = ("loss",)
    """What to improve, one to three of: loss per completion token (fast, exact), accuracy of a task, parameters of the
    adapter, nonzeros (of base and adapter), macs (per token), latency (ms a token, of the packed model in the native
    decoder on this CPU). The first chooses, the next break ties; loss or accuracy
    alone is joined by parameters."""
    constraint: Names = ()
    """Bounds that the chosen configuration meets, such as parameters<=3M or accuracy>=0.6,macs<=100M."""
    task: Literal["choices", "number", "equation"] | None = None
    """Task whose accuracy is measured."""
    test: str | None = None
    """Test examples, which the search does not see: at its end the chosen configuration and the heuristic are measured
    on them, once (accuracy of the task where one is named, else loss), with a paired interval of the difference."""
    strategy: StrategyName = "hill-climbing"
    """How rank configurations are proposed."""
    max_evaluations: int = Field(50, gt=0)
    """Rank configurations to evaluate, each once; may be raised when resuming."""
    tie_layers: int = Field(1, gt=0)
    """Consecutive layers that share a rank, group by group: a smaller space for a big model."""
    cache_budget: Size = "2GB"
    """Memory for the incumbent's hidden states, from which a configuration's evaluation goes on where it first differs;
    changes time, no figure. 0: every evaluation is whole."""
    race_error: float = Field(0.0, ge=0.0, lt=0.5)
    """hill-climbing: drop a candidate that is worse than the incumbent on a part of the examples already, but for this
    chance of an error, such as 0.05 (up to three times that where a few examples differ by very much); 0 measures
    everything whole."""
    race_indifference: float = Field(0.0, ge=0.0)
    """With race_error: a difference of loss (nats a token) or accuracy (a share) that does not matter, such as 0.0005;
    a candidate that differs by less beyond doubt is not measured further either."""
    seed: Seed = 0
    """Seed of the proposals, and of the order in which a race asks the examples."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives, with the parameters that join a quality alone."""
        return complete(self.objective)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints as values."""
        return tuple(map(parse_constraint, self.constraint))

    @property
    def figures(self) -> tuple[str, ...]:
        """Every figure that the search needs of a configuration, each once."""
        return tuple(dict.fromkeys([*self.objectives, *(constraint.figure for constraint in self.constraints)]))

    @property
    def weights(self) -> Literal["auto", "fp32"]:
        """Number format in which the model is held: fp32 where that is the arithmetic, for 16 bits compute in 16."""
        return "fp32" if self.precision == "fp32" or (self.precision == "auto" and "loss" in self.figures) else "auto"

    @property
    def options(self) -> StrategyOptions:
        """What the strategy is told."""
        return StrategyOptions(**{name: getattr(self, name) for name in StrategyOptions.model_fields})

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        check_goal(self.objective, self.constraints)
        if "accuracy" in self.figures and self.task is None:
            raise ValueError("task must be given with objective accuracy: choices, number or equation, got none")
        self.check_owner(self.strategy)
        if self.test == self.data:
            raise ValueError(f"test must be other examples than data, which the search sees; both are {self.data}")
        if self.order == "predicted" and (self.objectives[0] != "loss" or self.changes > 1):
            raise ValueError(
                "order must be random but with objective loss first and changes 1: slopes predict losses, and pairs of "
                f"changes are too many to order; got {self.objectives[0]} and {self.changes}"
            )
        for point in self.reference_points:
            parse_point(point, len(self.objectives))
        if self.race_error and (
            self.strategy != "hill-climbing" or self.restarts or self.constraint or self.objectives[0] not in QUALITIES
        ):
            raise ValueError(
                "race_error must be left out but with hill-climbing by loss or accuracy, without restarts and "
                "constraints; others need whole figures of what is worse than the incumbent too"
            )
        if self.race_indifference and not self.race_error:
            raise ValueError(f"race_indifference must be left out without race_error, got {self.race_indifference}")
        if self.race_error and self.storage is not None:
            raise ValueError(
                "race_error must be left out with storage: what a race drops depends on the incumbents of one worker"
            )
        return self
