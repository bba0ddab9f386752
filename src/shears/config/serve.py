"""How text is made: sampling, a chat, a server, its speed."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shears.config.fields import Device, Dtype, Repeated, StageConfig


def _as_strings(value: object) -> object:
    """Read one string as a list of one; commas and spaces belong to it."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else value


Stops = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_strings), Repeated()]

MAX_WAITING = 32  # texts


class SamplingConfig(StageConfig):
    """How the next token is chosen, and where a text ends."""

    max_new_tokens: int = Field(128, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0.0, allow_inf_nan=False)
    """0 always takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int = Field(0, ge=0)
    """Sample among so many likeliest tokens only; 0 among all."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample among the fewest likeliest tokens that together are this probable."""
    repetition_penalty: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    """Above 1, tokens of the prompt and the answer become less likely: positive logits are divided by it."""
    stop: Stops = ()
    """Text that ends the answer and is not shown; may be repeated (a line break is $'\\n' in a shell)."""
    seed: int = 0
    """Seed of the sampling."""


class BackendConfig(StageConfig):
    """What runs a package."""

    backend: Literal["auto", "native", "drop-in"] = "auto"
    """For a package: native (our decoder), drop-in (transformers with packed linears), auto the faster that fits."""


class RunningConfig(BackendConfig):
    """What runs the model."""

    dtype: Dtype = "auto"
    """Number format of a model that is no package; auto keeps the model's own."""
    device: Device = "auto"
    """Where a model that is no package computes: auto, cpu, cuda or mps."""


class GenerateConfig(RunningConfig, SamplingConfig):
    """How to continue a prompt."""


class ChatConfig(RunningConfig, SamplingConfig):
    """How to hold a conversation."""

    system: str | None = None
    """What the model is told before the conversation; by default what its template says."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.7, ge=0.0, allow_inf_nan=False)
    """0 always takes the likeliest token; 1 samples from the model's own distribution."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Sample among the fewest likeliest tokens that together are this probable."""


class ServeConfig(RunningConfig):
    """How to answer requests."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets the whole network in (then give --api-key)."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    name: str | None = None
    """What the model is called; by default the name of its folder."""
    api_key: str | None = Field(None, min_length=1)
    """Key that every request must carry; by default $SHEARS_API_KEY, else none is asked for."""
    max_waiting: int = Field(MAX_WAITING, ge=0)
    """Requests that may wait for a place; beyond, 429 is answered."""
    max_request_bytes: int = Field(1_000_000, gt=0)
    """Largest request; beyond, 413 is answered."""
    max_new_tokens: int = Field(2048, gt=0)
    """Longest answer that may be asked for, in tokens; a request that names none gets it too."""
    shutdown_seconds: float = Field(10.0, ge=0.0)
    """How long answers may go on after SIGTERM."""


class BenchConfig(BackendConfig):
    """How to measure speed."""

    threads: int | None = Field(None, gt=0)
    """CPU threads; by default one a core."""
    against: str | None = None
    """Dense model to measure in the same run; by default the package's own, its zeros written out, no adapter."""
    prompt_tokens: int = Field(512, gt=0)
    """Tokens of the prompt that prefill reads."""
    new_tokens: int = Field(64, gt=1)
    """Tokens that are made behind a prompt of 64, the first of them for the time to the first token."""
    rounds: int = Field(5, gt=0)
    """Rounds; every round measures each contestant once, in another order. One more comes first and does not count."""
