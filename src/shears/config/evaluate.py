"""What to measure, on which examples."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from shears.config.fields import Device, Dtype, Names, StageConfig

PaperTask = Literal[
    "gsm8k", "aqua", "mawps", "svamp",
    "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "obqa",
]  # fmt: skip
AnswerForm = Literal["number", "letter", "label"]

_LABELS = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "obqa")
ANSWER_FORMS: Mapping[str, AnswerForm] = MappingProxyType(
    {"gsm8k": "number", "mawps": "number", "svamp": "number", "aqua": "letter", **dict.fromkeys(_LABELS, "label")}
)
NEW_TOKENS: Mapping[AnswerForm, int] = MappingProxyType({"number": 256, "letter": 256, "label": 32})
NUM_BEAMS = 4
TEMPLATE = "alpaca"


def with_paper_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an evaluation with what the name of a paper's task says and the keys leave open."""
    form = ANSWER_FORMS.get(str(values.get("task")))
    if form is None:
        return dict(values)
    filled = {**values, "protocol": values.get("protocol") or "generate"}
    if filled["protocol"] != "generate":
        return filled
    return {"max_new_tokens": NEW_TOKENS[form], "num_beams": NUM_BEAMS, **filled}


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
