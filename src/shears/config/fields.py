"""The kinds of fields that stages are configured by: sizes, lists of names, shares by name, as people write them."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import to_jsonable_python

from shears.config.notation import kept_of_every, num_bytes
from shears.errors import InputError

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


Ranks = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_split_commas), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


def _split_shares(value: object) -> object:
    """Read `down_proj=0.4,o_proj=0.6`; a regex may hold an = of its own."""
    if not isinstance(value, str):
        return value
    shares = {}
    for part in filter(None, map(str.strip, value.split(","))):
        name, _, share = part.rpartition("=")
        if not name:
            raise ValueError(f"must be NAME=SHARE, got {part!r}; for example down_proj=0.4")
        shares[name.strip()] = share.strip()
    return shares


def _as_text(value: object) -> object:
    """A number of bytes, as YAML reads `0`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_size(value: str) -> str:
    try:
        num_bytes(value)
    except InputError as error:
        raise ValueError(str(error).removeprefix("a size ")) from None
    return value


def _check_pattern(value: str) -> str:
    try:
        is_known = value in ("row", "layer", "global") or kept_of_every(value) is not None
    except InputError as error:
        raise ValueError(str(error).removeprefix("a pattern N:M ")) from None
    if not is_known:
        raise ValueError(f"must be row, layer, global or N:M such as 2:4, got {value!r}")
    return value


def hide_passwords(text: str) -> str:
    """Return a text with *** for the password of any URL in it; rather too much is hidden than too little."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|sslpassword)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


StorageURL = Annotated[str, PlainSerializer(hide_passwords, when_used="json")]
"""A database's URL; whatever is written of it (JSON, YAML) lacks the password."""
Shares = Annotated[dict[str, Annotated[float, Field(ge=0.0, lt=1.0)]], BeforeValidator(_split_shares)]
Size = Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_size)]
SEEDS = 2**32  # what random generators of numpy and transformers take
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]


class Repeated:
    """Marks a field whose flag may be given several times: one string each, commas and all."""


class StageConfig(BaseModel):
    """A section of a recipe; immutable, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True,
                              allow_inf_nan=False)  # fmt: skip

    REMOVED: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Keys that only earlier versions have, and the default of each: a record may still hold them at that value."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every default as plain JSON data, by key; those of removed keys too."""
        fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
        return {
            **cls.REMOVED,
            **{
                name: to_jsonable_python(field.get_default(call_default_factory=True)) for name, field in fields.items()
            },
        }

    @classmethod
    def without_removed(cls, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recorded configuration without the removed keys that have their default."""
        return {key: value for key, value in recorded.items() if key not in cls.REMOVED or value != cls.REMOVED[key]}
