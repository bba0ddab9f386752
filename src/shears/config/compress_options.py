"""Options of `shears compress`: the bound that a package must meet, and what is tried for it."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from shears.config.fields import Columns, Count, Seed, Split, StageConfig
from shears.config.notation import num_bytes, num_seconds
from shears.config.sparsify_options import MethodName
from shears.config.write_options import is_written
from shears.errors import InputError

Kind = Literal["bits", "bytes", "tokens/s", "points"]
EffortName = Literal["quick", "usual", "thorough"]
EFFORTS: tuple[EffortName, ...] = ("quick", "usual", "thorough")
FORMS = "3.3bits (bits a weight), 1.0GB (size of the package) or 40tok/s (tokens a second)"


@dataclass(frozen=True)
class Bound:
    """A bound: at most so many bits a weight or bytes, or at least so many tokens a second.

    points: right answers in percent, at most so many below those of the dense fine-tuned model.
    """

    kind: Kind
    amount: int | float

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Return the bound of a text such as `3.3bits`, `1.0GB` or `40tok/s`; InputError for others."""
        number = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(bits?|tok/s|tokens/s)\s*", text)
        if number is not None:
            bound = cls("bits" if number[2].startswith("bit") else "tokens/s", float(number[1]))
        elif re.search(r"[kKMGT]i?B?\s*$|B\s*$", text):
            bound = cls("bytes", _size(text))
        else:
            raise InputError(f"must be {FORMS}, got {text!r}")
        if not bound.amount:
            raise InputError(f"must be above 0, got {text!r}")
        return bound

    def holds(self, size: int | float, weights: int, tokens_per_second: int | float | None) -> bool:
        """Tell whether a package of `size` bytes for `weights` numbers meets the bound.

        A `tokens_per_second` of None is unknown, and meets no bound on speed. Every size and speed
        meets a bound on answers.
        """
        if self.kind == "points":
            return True
        if self.kind == "tokens/s":
            return tokens_per_second is not None and tokens_per_second >= self.amount
        return (size if self.kind == "bytes" else 8 * size / weights) <= self.amount

    def __str__(self) -> str:
        """Return the bound in words."""
        if self.kind == "points":
            return f"the smallest at most {self.amount:g} points below the dense fine-tuned model"
        if self.kind == "bytes":
            return f"at most {self.amount / 1e9:.3f} GB"
        return f"at most {self.amount:g} bits a weight" if self.kind == "bits" else f"at least {self.amount:g} tokens/s"


def _size(text: str) -> float:
    try:
        return float(num_bytes(text))
    except InputError:
        raise InputError(f"must be {FORMS}, got {text!r}") from None


Sparsities = Annotated[
    tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, float) else value),
    Split,
    Field(min_length=1),
]
Values = Annotated[tuple[Literal["bf16", "int8", "int4"], ...], Split, Field(min_length=1)]
Embeddings = Annotated[tuple[Literal["keep", "int8", "int4"], ...], Split, Field(min_length=1)]


class CompressConfig(StageConfig):
    """How to reach a bound on size or speed with the least loss."""

    target: str | None = None
    """What the package must meet on this machine: 3.3bits (bits a weight at most, of the whole
    file), 1.0GB (size of the file at most) or 40tok/s (tokens a second at least, when it
    generates). Default: the smallest package whose right answers are within loss."""
    loss: float = Field(1.0, ge=0, le=100)
    """Points of right answers that the package may have below the dense fine-tuned model, without
    a target."""
    time: str | None = None
    """Time that all of it may take, such as 30min or 2h: steps, tokens and a teacher are planned to
    fit, by speeds measured on this machine. Or quick, usual or thorough. Default: usual."""
    calibration: str | None = None
    """Text like that which the model will see: FILE.txt, rows or chats (JSON, CSV, Parquet), a hub
    id, self (text that the model writes itself, see write), or self:FILE (its answers to the prompts
    of FILE). Its last tenth is held out: losses are measured there. Default: the rows of data, else
    arithmetic:train for the embedded model."""
    columns: Columns = Field({})
    """Columns of the calibration rows (without calibration: of data and test) that stand for those of
    a known form of row, such as user=ticket,assistant=json."""
    num_samples: int | None = Field(None, gt=0)
    """Number of calibration sequences, and the most windows of the held-out text; default: as the
    time allows."""
    sequence_length: int = Field(512, gt=1)
    """Tokens in a calibration sequence and in a held-out window; fewer for a short text. Rows that are
    longer, and longer than 512, are not trained on."""
    method: MethodName | None = None
    """Pruning method, as in sparsify; admm and sparsegpt with allocation sensitivity. Default:
    admm, or wanda where the time is too short for it."""
    heal: Count | None = None
    """Tokens of the calibration text to heal a sparse model on, such as 1M; default: none before a
    training, else as the time allows."""
    data: str | None = None
    """Rows to train an adapter of one rank on, merged into the package; default: none. Without test
    and calibration their last tenth is not trained on: every model answers it. self and self:FILE,
    for a model without rows, are calibrations and train nothing."""
    test: str | None = None
    """Rows that the dense model and the packages answer; default: the last tenth of data."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps of that training; default: by the rows and the time. Without effect without
    data."""
    teacher: str | None = None
    """Dense model that was trained for the task, or the folder of an adapter that was trained on
    MODEL: healing and training learn its predictions. Default: MODEL trained on the rows if the
    time allows it; else healing learns those of MODEL, training the rows alone."""
    sparsities: Sparsities = (0.0, 0.5, 0.6, 0.7)
    """Sparsities to try, such as 0,0.5,0.6."""
    values: Values = ("bf16", "int8", "int4")
    """Number formats of the weights to try."""
    embeddings: Embeddings = ("keep", "int8", "int4")
    """Number formats of embeddings and head to try; keep: bf16."""
    attempts: int = Field(3, gt=0)
    """Candidates to make and measure at most, until one meets the target."""
    threads: int | None = Field(None, gt=0)
    """CPU threads; default: one per core."""
    seed: Seed = 0
    """Random seed of calibration and training."""

    @field_validator("target")
    @classmethod
    def _check_target(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                Bound.parse(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("time")
    @classmethod
    def _check_time(cls, value: str | None) -> str | None:
        try:
            if value is not None and value not in EFFORTS:
                num_seconds(value)
        except InputError as error:
            raise ValueError(f"must be {', '.join(EFFORTS)} or a time: {error}") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _take_self_as_text(cls, values: Any) -> Any:
        """Take `data: self` as a calibration; ValueError beside one."""
        data = values.get("data") if isinstance(values, dict) else None
        if not is_written(data):
            return values
        if values.get("calibration") is not None:
            raise ValueError(f"data {data} is the calibration text, got {values['calibration']} too; leave one out")
        return {**values, "calibration": data, "data": None}

    @model_validator(mode="after")
    def _check_answers(self) -> "CompressConfig":
        if self.target is None and self.data is None:
            raise ValueError("target or data must be given, got neither: a bound such as 0.3GB, or rows to answer")
        if self.target is None and self.calibration is not None and self.test is None:
            raise ValueError("without target, rows must be kept apart to be answered: give test beside calibration")
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> "CompressConfig":
        if self.teacher is not None and self.heal is None and self.data is None:
            raise ValueError(f"teacher needs heal or data, which it teaches, got neither beside {self.teacher}")
        return self

    @property
    def bound(self) -> Bound:
        """The target, parsed; without one, the points of right answers that may be lost."""
        return Bound("points", self.loss) if self.target is None else Bound.parse(self.target)

    @property
    def seconds(self) -> float | None:
        """The seconds of `time`; None for an effort by name, or none."""
        return None if self.time is None or self.time in EFFORTS else num_seconds(self.time)
