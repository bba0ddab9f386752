"""Options of `shears search`: data, goal, strategy, budget, and where workers share a study."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from shears.config.evaluate_options import ExampleTask, ScoringConfig
from shears.config.fields import Columns, DtypeName, Names, Seed, Split, StorageURL
from shears.config.notation import UNITS

Figure = Literal["loss", "accuracy", "parameters"]
MAXIMISED = frozenset({"accuracy"})  # less is better for the others
StrategyName = Literal["heuristic", "hill-climbing", "nsga2", "nsga3", "random", "exhaustive"]
BOUND = re.compile(r"\s*(loss|accuracy|parameters)\s*(<=|>=)\s*(\d+\.?\d*)\s*([kMG]?)\s*", re.ASCII)


class Constraint(NamedTuple):
    """A bound on a figure; its text is such as `parameters<=3M`."""

    text: str
    figure: str
    sign: int
    limit: float

    def excess(self, value: int | float) -> float:
        """Return the excess over the bound as a share of the limit (absolute for 0), 0 or less if it is met."""
        return self.sign * (value - self.limit) / (abs(self.limit) or 1.0)


def parse_constraint(text: str) -> Constraint:
    """Return the constraint that a text stands for; ValueError for another form or figure."""
    match = BOUND.fullmatch(text)
    if match is None:
        rule = "FIGURE<=NUMBER or FIGURE>=NUMBER with loss, accuracy or parameters, such as parameters<=3M"
        raise ValueError(f"constraint must be {rule}, got {text!r}")
    figure, relation, digits, unit = match.groups()
    sign = 1 if relation == "<=" else -1
    return Constraint(f"{figure}{relation}{digits}{unit}", figure, sign, float(digits) * UNITS[unit])


class SearchConfig(ScoringConfig):
    """How to find the best sub-adapter on validation data."""

    precision: DtypeName = "auto"
    """Arithmetic; auto: fp32 for losses, whose small differences bf16 rounds away, and bf16
    autocast for accuracies where the processor supports it. With fp32, a 16-bit model takes twice
    its memory."""
    data: str
    """Validation examples, never the test split: a file, a hub id or arithmetic:validation."""
    columns: Columns = Field({})
    """Columns of data and test by the names that shears knows: prompt=question,completion=answer."""
    objective: Annotated[tuple[Figure, ...], Split] = Field(("loss",), min_length=1)
    """Figures to improve: loss (per completion token), accuracy (of a task), parameters (of the
    adapter). The first one decides, the others break ties; a single loss or accuracy is joined by
    parameters."""
    constraint: Names = ()
    """Bounds that the choice must meet, such as parameters<=3M or accuracy>=0.6,parameters<=3M."""
    task: ExampleTask | None = None
    """Task whose accuracy is measured; without effect where neither a figure nor test needs one."""
    test: str | None = None
    """Test examples, unseen by the search: the choice and the heuristic are measured on them once
    (accuracy if a task is given, else loss), with a paired interval of the difference."""
    strategy: StrategyName = "heuristic"
    """How rank configurations are proposed; heuristic: only the middle ranks are measured."""
    max_evaluations: int = Field(50, gt=0)
    """Rank configurations to evaluate, each once; may be raised when an interrupted search is continued.
    Without effect on heuristic, which evaluates one."""
    seed: Seed = 0
    """Random seed of the proposals; without effect on heuristic."""
    storage: StorageURL | None = Field(None, repr=False)
    """Database where several workers share the search, such as postgresql://USER@HOST/NAME; default:
    a file in the output folder, for one process."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives; a single quality is joined by parameters, so that of equals the smaller wins."""
        return tuple(dict.fromkeys([*self.objective, "parameters"] if len(self.objective) == 1 else self.objective))

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints as values."""
        return tuple(map(parse_constraint, self.constraint))

    @property
    def figures(self) -> tuple[str, ...]:
        """Every figure that the search needs of a configuration, each once."""
        return tuple(dict.fromkeys([*self.objectives, *(bound.figure for bound in self.constraints)]))

    @property
    def budget(self) -> int:
        """The rank configurations that are evaluated at most."""
        return 1 if self.strategy == "heuristic" else self.max_evaluations

    @property
    def weights(self) -> Literal["auto", "fp32"]:
        """Number format of the loaded model: fp32 for fp32 arithmetic, else the model's own."""
        is_auto_for_loss = self.precision == "auto" and "loss" in self.figures
        return "fp32" if self.precision == "fp32" or is_auto_for_loss else "auto"

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if "accuracy" in self.figures and self.task is None:
            raise ValueError("task must be given with accuracy, such as equation or choices, got none")
        return self
