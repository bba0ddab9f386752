"""Options of `shears evaluate`, what to measure on which examples, and of `shears search`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from shears.config import fields

PaperTask = Literal[
    "gsm8k", "aqua", "mawps", "svamp",
    "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "obqa",
]  # fmt: skip
ExampleTask = Literal["choices", "number", "equation", "json", "exact"]
TaskName = Literal["perplexity", ExampleTask, "harness", PaperTask]
AnswerForm = Literal["number", "letter", "label"]

ANSWER_FORMS: Mapping[str, AnswerForm] = {
    **dict.fromkeys(get_args(PaperTask), "label"),
    **dict.fromkeys(("gsm8k", "mawps", "svamp"), "number"),
    "aqua": "letter",
}
"""The form of a right answer in each task of the paper."""
TEMPLATE: fields.TemplateName = "alpaca"  # how the Shears paper evaluates
PAPER_BEAMS = 4
WRITTEN_TASKS = ("number", "equation", "json", "exact")  # each answers with a text
NEVER_CHAT = ("equation", "harness")  # prompts ask for an equation only; lm-eval has own templates
LONG_ANSWER = 512  # tokens in a task that reasons, or whose answer is a whole text
BASELINES = ("dense-lora", "sparse-lora")  # plain LoRA on the dense and on the pruned model
Figure = Literal["loss", "accuracy", "parameters"]
MAXIMISED = frozenset({"accuracy"})  # less is better for the others
StrategyName = Literal["heuristic", "hill-climbing", "nsga2", "nsga3", "random", "exhaustive"]
BOUND = re.compile(r"\s*(loss|accuracy|parameters)\s*(<=|>=)\s*(\d+\.?\d*)\s*([kMG]?)\s*", re.ASCII)


def longest_answer(task: str | None, template: str | None) -> int:
    form = ANSWER_FORMS.get(str(task))
    reasons = template == fields.CHAT and (task == "number" or form in ("number", "letter"))
    if reasons or task in ("json", "exact"):
        return LONG_ANSWER
    if form is None:
        return 64
    return 32 if form == "label" else 256


class ScoringConfig(fields.OfRows, fields.OnDevice):
    """How examples are scored; search and evaluate share these options."""

    limit: int | None = Field(None, gt=0)
    """Use only this many examples from the start of the data."""
    batch_size: int = Field(32, gt=0)
    """Number of examples in one forward pass. It changes the time, not the results."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Longest generated answer, in tokens. The default depends on the task: 512 for json, exact and
    reasoning in chat form; 32 or 256 for tasks of the Shears paper; 64 for others."""
    precision: fields.DtypeName = "auto"
    """Number format of the arithmetic. auto uses bf16 autocast where that is faster, but fp32 for
    the losses of a search."""
    backend: Literal["auto", "native", "transformers"] = "auto"
    """Program that generates the answers: native is shears's CPU decoder (greedy decoding only)."""


class EvaluateConfig(ScoringConfig):
    """What to measure, on which examples."""

    task: TaskName
    """What to measure: the perplexity of a text, or the accuracy of choices (by log-likelihood) or
    of generated answers of the kind number, equation, json or exact. harness runs lm-eval; the
    other names are tasks of the Shears paper."""
    data: str
    """Test examples or text: a file, a hub id or arithmetic:test (built in). harness needs none."""
    num_beams: int | None = Field(None, gt=0)
    """Number of beams when generating. Default: 4 for the paper's tasks in its template, else 1."""
    sequence_length: int = Field(1024, gt=1)
    """Number of tokens in one window of a perplexity measurement. Other tasks ignore it."""
    template: fields.TemplateName | None = None
    """Prompt template of instruction rows; chat is the model's own chat template. Default: the
    template of the training; else chat if the model has one; else alpaca for the paper's tasks."""
    dtype: fields.DtypeName = "auto"
    """Number format in which the weights are loaded. bf16 also converts a .gguf file to bf16."""
    harness: fields.Names = ()
    """Tasks of lm-eval to run, such as hellaswag,arc_easy. Needs the extra `harness`."""

    @property
    def weights(self) -> fields.DtypeName:
        """Number format of the loaded model: fp32 arithmetic needs fp32 weights."""
        return "fp32" if self.precision == "fp32" and self.dtype == "auto" else self.dtype

    @property
    def generates(self) -> bool:
        """Whether answers are generated, one text per example."""
        return self.task in WRITTEN_TASKS or self.task in ANSWER_FORMS

    @property
    def beams(self) -> int:
        """Beams of the beam search: those of the paper in its prompt, unless others are given."""
        is_paper = self.task in ANSWER_FORMS and self.template != fields.CHAT
        return self.num_beams or (PAPER_BEAMS if is_paper else 1)

    @property
    def longest_answer(self) -> int:
        return self.max_new_tokens or longest_answer(self.task, self.template)

    def in_template(self, template: str | None) -> "EvaluateConfig":
        """Return these settings with a template, and the beams and answer length that follow."""
        settings = self.model_copy(update={"template": template})
        if not self.generates:
            return settings
        return settings.model_copy(update={"num_beams": settings.beams, "max_new_tokens": settings.longest_answer})

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Select task harness where tasks of lm-eval are named."""
        is_harness = isinstance(values, Mapping) and values.get("harness")
        return {"task": "harness", "data": ".", **values} if is_harness else values

    @model_validator(mode="after")
    def _check(self) -> "EvaluateConfig":
        if (self.task == "harness") != bool(self.harness):
            got = f"task {self.task} and harness {','.join(self.harness) or '(none)'}"
            raise ValueError(f"task harness and option harness must be given together, got {got}")
        if (self.num_beams or 1) > 1 and not self.generates:
            rule = "num_beams above 1 needs a task that generates answers"
            raise ValueError(f"{rule}, got {self.num_beams} beams with task {self.task}; leave num_beams out")
        if self.backend == "native" and (self.beams > 1 or not self.generates):
            rule = "backend native needs a task that generates answers, and num_beams 1"
            got = f"task {self.task} and {self.beams} beam{'s' * (self.beams > 1)}"
            raise ValueError(f"{rule}, got {got}; set num_beams=1 or leave backend out")
        if self.template == fields.CHAT and self.task in NEVER_CHAT:
            raise ValueError(f"template must be question or alpaca for task {self.task}, got chat; choose one of them")
        return self


class Constraint(NamedTuple):
    """A bound on a figure; its text is such as `parameters<=3M`."""

    text: str
    figure: str
    sign: int
    limit: float

    def excess(self, value: int | float) -> float:
        """Return the excess as a share of the limit (absolute for 0); 0 or less meets the bound."""
        return self.sign * (value - self.limit) / (abs(self.limit) or 1.0)


def parse_constraint(text: str) -> Constraint:
    match = BOUND.fullmatch(text)
    if match is None:
        rule = "loss, accuracy or parameters, then <= or >=, then a number, such as parameters<=3M"
        raise ValueError(f"constraint must be {rule}, got {text!r}")
    figure, relation, digits, unit = match.groups()
    sign = 1 if relation == "<=" else -1
    return Constraint(f"{figure}{relation}{digits}{unit}", figure, sign, float(digits) * fields.UNITS[unit])


class SearchConfig(ScoringConfig, fields.Seeded):
    """How to find the best sub-adapter on validation data."""

    data: str
    """Validation examples, not test ones: a file, a hub id or arithmetic:validation (built in)."""
    objective: Annotated[tuple[Figure, ...], fields.Split] = Field(("loss",), min_length=1)
    """Metrics to improve: loss (per completion token), accuracy (needs task) or parameters (size of
    the adapter). The first metric decides; the others break ties."""
    constraint: fields.Names = ()
    """Limits for the chosen ranks, such as parameters<=3M or accuracy>=0.6,parameters<=3M."""
    task: ExampleTask | None = None
    """Kind of answer that accuracy checks. Needed if objective, constraint or test use accuracy."""
    test: str | None = None
    """Test examples on which the chosen and the middle ranks are compared once after the search."""
    strategy: StrategyName = "heuristic"
    """How ranks are proposed. heuristic measures only the middle rank of every group."""
    max_evaluations: int = Field(50, gt=0)
    """Number of rank configurations to evaluate. You may raise it when you continue a search."""
    storage: fields.StorageURL | None = Field(None, repr=False)
    """Database in which several workers share one search, such as postgresql://USER@HOST/NAME.
    Default: a file in the output folder, for one process."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives; parameters join a single quality, so that the smaller of equals wins."""
        return tuple(dict.fromkeys([*self.objective, "parameters"] if len(self.objective) == 1 else self.objective))

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        return tuple(map(parse_constraint, self.constraint))

    @property
    def figures(self) -> tuple[str, ...]:
        """Every figure that the search needs of a configuration, each once."""
        return tuple(dict.fromkeys([*self.objectives, *(each.figure for each in self.constraints)]))

    @property
    def budget(self) -> int:
        return 1 if self.strategy == "heuristic" else self.max_evaluations

    @property
    def weights(self) -> Literal["auto", "fp32"]:
        """Number format of the loaded model: fp32 for fp32 arithmetic, else the model's own."""
        is_auto_for_loss = self.precision == "auto" and "loss" in self.figures
        return "fp32" if self.precision == "fp32" or is_auto_for_loss else "auto"

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if "accuracy" in self.figures and self.task is None:
            raise ValueError("task must be given to measure accuracy, got none; for example, set task=number")
        return self
