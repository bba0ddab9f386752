"""The types of configuration fields and how text is parsed; the base classes of all sections."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from shears.errors import InputError

CHAT_TURNS = ("system", "user", "assistant")  # columns that make a chat, each one turn
FORMS = (("prompt", "completion"), ("instruction", "input", "output"), ("messages",), ("text",), CHAT_TURNS)
"""The columns of each form of row that is known; a row has one form."""
TemplateName = Literal["question", "alpaca", "chat"]
CHAT: Literal["chat"] = "chat"  # rows of instructions as turns, in the model's own chat template
SEEDS = 2**32  # the largest seed of numpy's and transformers' generators, plus one
BESIDE_FORMS = ("choices", "answer")  # columns that a row of any form may have
UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def whole_number(text: object) -> object:
    """Return a count such as `50k`, `1M` or `1.5G`; other values as they are."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([kKMG])", text.strip()) if isinstance(text, str) else None
    number = float(match[1]) * UNITS[match[2]] if match else 0.5
    return int(number) if number == int(number) else text


def kept_of_every(pattern: str) -> tuple[int, int] | None:
    """Return N and M of a pattern `N:M`, None for any other text; InputError unless 0 < N < M."""
    match = re.fullmatch(r"(\d+):(\d+)", pattern, re.ASCII)
    if match is None:
        return None
    kept, size = int(match[1]), int(match[2])
    if not 0 < kept < size:
        raise InputError(f"must be N:M with 0 < N < M, got {pattern}; for example, 2:4 keeps two of every four weights")
    return kept, size


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _split_pairs(value: object) -> object:
    """Parse `prompt=question,completion=answer`."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in filter(None, map(str.strip, value.split(",")))]
    if any(not text.strip() for _, _, text in pairs):
        raise ValueError(f"must be pairs such as prompt=question,completion=answer, got {value!r}")
    return {name.strip(): text.strip() for name, _, text in pairs}


def _check_columns(value: dict[str, str]) -> dict[str, str]:
    """Return the columns; ValueError for an unknown name, or for names of several forms of row."""
    named = value.keys() - {*BESIDE_FORMS}
    if named and not any(named <= {*form} for form in FORMS):
        known = " or ".join(", ".join(form) for form in FORMS)
        raise ValueError(f"must name columns of one form of row ({known}), got {', '.join(value)}")
    if named & {*CHAT_TURNS} and "user" not in named:
        raise ValueError(f"must name the column of the user's turn, got only {', '.join(named)}; add user=COLUMN")
    return value


def _check_pattern(value: str) -> str:
    if value != "row" and kept_of_every(value) is None:
        raise ValueError(f"must be row or N:M such as 2:4, got {value!r}")
    return value


def hide_passwords(text: str) -> str:
    """Return a text with *** for the password of every URL; in doubt it hides more."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|sslpassword)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
Ranks = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_split_commas), Field(min_length=1)]
Split = BeforeValidator(_split_commas)
"""For fields that hold several values: text is split at its commas."""
Names = Annotated[tuple[str, ...], Split]
Count = Annotated[int, BeforeValidator(whole_number), Field(gt=0, le=10**12)]
"""A whole number that may be written with a unit, such as 50k or 1M."""
Source = Annotated[str, BeforeValidator(lambda x: str(x) if type(x) in (int, float) else x)]
"""A source of rows, or a number that YAML parsed, such as a share of other rows, as text."""
Pattern = Annotated[str, AfterValidator(_check_pattern)]
StorageURL = Annotated[str, PlainSerializer(hide_passwords, when_used="json")]
"""The URL of a database; JSON and YAML are written without its password."""


class Repeated:
    """Marks a field whose flag may be repeated, each time with one string that may hold commas."""


class StageConfig(BaseModel):
    """A section of a recipe: immutable, and without keys that it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class OfRows(StageConfig):
    """A section of a stage that reads rows."""

    columns: Annotated[dict[str, str], BeforeValidator(_split_pairs), AfterValidator(_check_columns)] = Field({})
    """Names of the columns in your file, if they differ from those that shears expects, such as
    prompt=question,completion=answer."""


class OnDevice(StageConfig):
    """A section of a stage that computes with torch."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """Device to compute on: auto, cpu, cuda or mps. cuda and mps are experimental."""


class Seeded(StageConfig):
    """A section of a stage that draws at random."""

    seed: int = Field(0, ge=0, lt=SEEDS)
    """Random seed."""


class Sampled(OnDevice, Seeded):
    """A section of a stage that measures on a calibration text; the seed chooses the sequences."""

    num_samples: int = Field(32, gt=0)
    """Number of calibration sequences."""
    sequence_length: int = Field(512, gt=1)
    """Number of tokens in a calibration sequence."""
