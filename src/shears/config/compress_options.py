"""Options of `shears compress`: the bound that a package must meet, and what is tried for it."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from shears.config.fields import UNITS, OfRows, Split
from shears.errors import InputError

EffortName = Literal["quick", "usual", "thorough"]
EFFORTS: tuple[EffortName, ...] = ("quick", "usual", "thorough")


@dataclass(frozen=True)
class Bound:
    """A bound: at most so many bits a weight or bytes, or at least so many tokens a second."""

    kind: Literal["bits", "bytes", "tokens/s"]
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Return the bound of a text: `3.3bits`, `1.0GB` or `40tok/s`; InputError for others."""
        found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(bits|tok/s|([kMG]?)B)\s*", text)
        if found is None or not float(found[1]):
            forms = "3.3bits (per weight), 1.0GB (package size) or 40tok/s (tokens per second)"
            raise InputError(f"must be a limit such as {forms}, got {text!r}")
        amount = float(found[1]) * UNITS[found[3] or ""]
        return cls("bits" if found[2] == "bits" else "tokens/s" if found[2] == "tok/s" else "bytes", amount)

    def holds(self, size: int | float, weights: int, tokens_per_second: int | float | None) -> bool:
        """Tell whether `size` bytes for `weights` meet the bound; an unknown speed meets none."""
        if self.kind == "tokens/s":
            return tokens_per_second is not None and tokens_per_second >= self.amount
        return (size if self.kind == "bytes" else 8 * size / weights) <= self.amount

    def __str__(self) -> str:
        if self.kind == "bytes":
            return f"at most {self.amount / 1e9:.3f} GB"
        at_most = f"at most {self.amount:g} bits per weight"
        return at_most if self.kind == "bits" else f"at least {self.amount:g} tokens/s"


def num_seconds(text: str) -> float:
    """Return the seconds of a time such as `90s`, `15min` or `1.5h`; InputError for others."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|min|h)", text.strip())
    if found is None or not float(found[1]):
        raise InputError(f"must be {', '.join(EFFORTS)} or a time such as 15min or 2h, got {text!r}")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]


class CompressConfig(OfRows):
    """How to reach a bound on size or speed with the least loss."""

    target: Annotated[str, AfterValidator(lambda text: Bound.parse(text) and text)]
    """Limit that the package must meet on this machine: a largest size, such as 1.0GB or 3.3bits
    (per weight), or a lowest speed, such as 40tok/s (tokens per second)."""
    time: Annotated[str, AfterValidator(lambda text: text if text in EFFORTS else num_seconds(text) and text)] = "usual"
    """Time limit for the whole command, such as 30min or 2h; or a level of effort without a limit:
    quick, usual or thorough."""
    data: str | None = None
    """Your examples. shears calibrates on them and trains an adapter on them."""
    test: str | None = None
    """Examples on which every model is tested. Default: the last tenth of data, which is then not
    trained on."""
    calibration: str | None = None
    """Use this instead of data if you have no examples: text like the text that the model will see
    (FILE.txt, a file of rows or a hub id). No adapter is trained then."""
    sparsities: Annotated[tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...], Split, Field(min_length=1)] = (
        0.0, 0.5, 0.6, 0.7
    )  # fmt: skip
    """Sparsities (shares of zeros) to try, such as 0,0.5,0.6."""
    dtypes: Annotated[tuple[Literal["bf16", "int8", "int4"], ...], Split, Field(min_length=1)] = (
        "bf16", "int8", "int4"
    )  # fmt: skip
    """Number formats in which the weights are stored; shears tries each of them."""
    embedding_dtypes: Annotated[tuple[Literal["keep", "int8", "int4"], ...], Split, Field(min_length=1)] = (
        "keep", "int8", "int4"
    )  # fmt: skip
    """Number formats in which the embeddings and the output head are stored; shears tries each of
    them. keep means bf16."""

    @model_validator(mode="after")
    def _check_texts(self) -> "CompressConfig":
        if (self.data is None) == (self.calibration is None):
            got = "neither" if self.data is None else "both"
            raise ValueError(
                f"data or calibration must be given, but not both, got {got}; --data takes "
                "your examples, --calibration a text if you have none"
            )
        return self

    @property
    def source(self) -> str:
        return self.data or str(self.calibration)

    @property
    def bound(self) -> Bound:
        return Bound.parse(self.target)

    @property
    def seconds(self) -> float | None:
        """The seconds of `time`; None for an effort by name."""
        return None if self.time in EFFORTS else num_seconds(self.time)
