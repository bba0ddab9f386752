"""How examples are scored, by search and by evaluate."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from shears.config.fields import Device, Dtype, Names, Seed, Size, StageConfig
from shears.config.goals import QUALITIES, Constraint, check_goal, complete, parse_constraint, parse_point
from shears.config.paper import ANSWER_FORMS, PaperTask, with_paper_defaults
from shears.config.sharing import SharingConfig
from shears.config.strategies import StrategyName, StrategyOptions


class ScoringConfig(StageConfig):
    """How examples are scored; shared by search and evaluate."""

    limit: int | None = Field(None, gt=0)
    """Use only the first so many examples."""
    batch_size: int = Field(32, gt=0)
    """Examples in one forward."""
    max_new_tokens: int = Field(64, gt=0)
    """Longest generated answer, in tokens."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic: auto is bf16 autocast where the processor has it, else that of the model's own number format; in fp32
    a 16-bit model takes twice its memory."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""


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


class EvaluateConfig(ScoringConfig):
    """What to measure, on which examples."""

    task: Literal["perplexity", "choices", "number", "equation", "harness", PaperTask]
    """perplexity of a text; accuracy of choices (by log-likelihood), of a number or of an equation (generated); or a
    task of the paper, whose name says prompt, protocol, length and how the answer is read; or harness (lm-eval)."""
    data: str
    """Test examples or text: a file, a hub id or the embedded arithmetic:test; for harness, the folder with the files
    of shears' own tasks."""
    protocol: Literal["generate", "choices"] | None = None
    """How a task of the paper is answered: generate (the paper's, the default: 4 beams, 256 or 32 new tokens) or
    choices (the likeliest one)."""
    num_beams: int = Field(1, gt=0)
    """Beams of generated answers; the paper's tasks have 4, and 1 is several times as fast."""
    sequence_length: int = Field(1024, gt=1)
    """Tokens in one window of the perplexity."""
    template: Literal["question", "alpaca"] | None = None
    """Prompt template of instruction rows; by default the one the adapter was trained with, else question, and alpaca
    for the paper's tasks."""
    dtype: Dtype = "auto"
    """Number format of the model; auto keeps the model's own, but for precision fp32."""
    harness: Names = ()
    """Tasks of lm-eval to run in place of a task, such as hellaswag,arc_easy (pip install 'shears[harness]')."""
    include_path: str | None = None
    """Folder with further YAML tasks of lm-eval; those of shears are known (shears_boolq, ...)."""

    @property
    def weights(self) -> Dtype:
        """Number format in which the model is held: fp32 where that is the arithmetic, for 16 bits compute in 16."""
        return "fp32" if self.precision == "fp32" and self.dtype == "auto" else self.dtype

    @property
    def generates(self) -> bool:
        """Say whether answers are generated, one text an example."""
        return self.task in ("number", "equation") or self.protocol == "generate"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Let the name of a task say what is not said; names for `harness` are a task."""
        if not isinstance(values, Mapping):
            return values
        return with_paper_defaults({"task": "harness", "data": ".", **values} if values.get("harness") else values)

    @model_validator(mode="after")
    def _check(self) -> "EvaluateConfig":
        if self.protocol is not None and self.task not in ANSWER_FORMS:
            raise ValueError(f"protocol is for the paper's tasks ({', '.join(ANSWER_FORMS)}), got task {self.task}")
        if self.task != "harness" and (self.harness or self.include_path):
            raise ValueError(f"harness and include_path are a task of their own, got task {self.task}; leave one out")
        if self.num_beams > 1 and not self.generates:
            asked = f"task {self.task}" if self.protocol is None else f"protocol {self.protocol}"
            raise ValueError(f"num_beams is of generated answers, got {self.num_beams} with {asked}; leave it out")
        if self.task == "harness" and not self.harness:
            raise ValueError("harness must name tasks of lm-eval for task harness, got none; such as hellaswag")
        return self
