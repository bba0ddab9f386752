"""Options of `shears write`: text that a model writes, to calibrate and to heal on."""

from typing import Literal

from pydantic import Field

from shears.config.fields import Count, Device, DtypeName, Seed, StageConfig

WRITTEN = "self"
"""In place of a text's source: text that the dense model writes."""


class WriteConfig(StageConfig):
    """How a model writes text."""

    tokens: Count = 100_000
    """Tokens to write at least, such as 100k or 1M; the templates of chats do not count."""
    chats: float = Field(0.5, ge=0.0, le=1.0)
    """Share of the texts that are chats, where the tokenizer has a chat template: the model writes
    the user's turn too."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest text or turn of a chat, in tokens."""
    temperature: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    """1: sample from the model's own distribution; lower: more likely and less varied text."""
    backend: Literal["auto", "native", "transformers"] = "auto"
    """What computes: native (our decoder), transformers, or auto (native where it covers the model)."""
    precision: DtypeName = "auto"
    """Arithmetic; auto: bf16 where the processor supports it, else fp32."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps (the last two experimental)."""
    seed: Seed = 0
    """Random seed of the first words and of the sampling."""
