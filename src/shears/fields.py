"""The kinds of fields that stages are configured by: sizes, lists of names, shares by name, as people write them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int) else value


Ranks = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_split_commas), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


def _split_shares(value: object) -> object:
    """Read `down_proj=0.4,o_proj=0.6`; a regex may hold an = of its own."""
    if not isinstance(value, str):
        return value
    return dict(part.strip().rpartition("=")[::2] for part in value.split(",") if part.strip())


Shares = Annotated[dict[str, Annotated[float, Field(ge=0.0, lt=1.0)]], BeforeValidator(_split_shares)]
Size = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*([kKMGT]i?)?B?$")]


class StageConfig(BaseModel):
    """A section of a recipe; immutable, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
