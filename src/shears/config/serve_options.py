"""Options of `generate`, `chat`, `serve`, `write` and `bench`: sampling and what runs the model."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shears.config.fields import Count, DtypeName, OfRows, OnDevice, Repeated, Seeded, StageConfig
from shears.errors import InputError

WRITTEN = "self"
"""In place of a text's source: text that the dense model writes."""
ANSWERED = f"{WRITTEN}:"
"""In front of a source of rows: the dense model's answers to them."""
TOKENS = 100_000  # that a text holds by default
OF_PROMPTS = ("columns", "samples", "keep")


def _as_strings(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else value


class SamplingConfig(StageConfig):
    """How the next token is chosen, and where a text ends."""

    max_new_tokens: int = Field(128, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0.0)
    """Sampling temperature. 0 always takes the most likely token; 1 samples from the model's own
    distribution."""
    top_k: int = Field(0, ge=0)
    """Sample only from the k most likely tokens; 0 samples from all."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample only from the most likely tokens whose probabilities add up to top_p."""
    repetition_penalty: float = Field(1.0, gt=0.0)
    """A value above 1 makes tokens less likely that the prompt or the answer already contains."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_strings), Repeated()] = ()
    """Text that ends the answer, not shown. May be repeated; a shell's line break is $'\\n'."""
    seed: int = 0
    """Random seed of the sampling."""


class RunningConfig(OnDevice):
    """What runs a model or a package."""

    dtype: DtypeName = "auto"
    """Number format in which the weights of a model folder are loaded; a package ignores it. bf16
    also converts a .gguf file to bf16."""


class GenerateConfig(RunningConfig, SamplingConfig):
    """How to continue a prompt."""


class ChatConfig(RunningConfig, SamplingConfig):
    """How to hold a conversation."""

    system: str | None = None
    """System prompt. Default: the one in the model's chat template."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.7, ge=0.0)
    """Sampling temperature. 0 always takes the most likely token; 1 samples from the model's own
    distribution."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Sample only from the most likely tokens whose probabilities add up to top_p."""


class ServeConfig(RunningConfig):
    """How to answer requests."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts requests from the whole network; set --api-key then."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes any free port."""
    name: str | None = None
    """Name of the model in requests. Default: the name of its folder."""
    api_key: str | None = Field(None, pattern=r"^[!-~]+$")
    """Key that requests must send, in ASCII without spaces. Default: $SHEARS_API_KEY, if set."""
    max_new_tokens: int = Field(2048, gt=0)
    """Longest answer to a request, in tokens. Requests without max_tokens get this limit."""


class BenchConfig(StageConfig):
    """How to measure speed."""

    threads: int | None = Field(None, gt=0)
    """Number of CPU threads. Default: one per core."""
    prompt_tokens: int = Field(512, gt=0)
    """Length of the prompt whose reading is timed (prefill), in tokens."""
    new_tokens: int = Field(64, gt=1)
    """Number of tokens to generate after a prompt of 64 tokens. The first one gives the time to the
    first token."""
    rounds: int = Field(5, gt=0)
    """Number of timed rounds after one warm-up round. Each round measures every model once."""


def is_written(source: object) -> bool:
    return isinstance(source, str) and (source == WRITTEN or source.startswith(ANSWERED))


class WriteConfig(OfRows, Seeded, OnDevice):
    """How a model writes text."""

    tokens: Count | None = None
    """Number of tokens to write, such as 100k or 1M. Default: 100k, or with prompts as many as it
    takes to answer all of them."""
    samples: int = Field(1, gt=0)
    """Number of answers to each prompt. More than one needs a temperature above 0."""
    keep: Literal["all", "ended", "right"] = "all"
    """Which answers to keep: all, ended (those not cut at the longest length) or right (those that
    also match the answer in the row)."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest text, answer or chat turn, in tokens."""
    temperature: float | None = Field(None, ge=0.0)
    """Sampling temperature. 0 always takes the most likely token; 1 samples from the model's own
    distribution. Default: 1 without prompts, 0 with prompts."""

    def for_prompts(self, prompts: str | None) -> "WriteConfig":
        """Return the options with defaults for `prompts` or none; InputError if they don't suit."""
        if prompts is None:
            own = [name for name in OF_PROMPTS if getattr(self, name) != type(self).model_fields[name].default]
            if own:
                raise InputError(f"write.{own[0]} needs prompts, got none; add --prompts FILE")
            if self.temperature == 0:
                rule = "write.temperature must be above 0 to write texts without prompts"
                raise InputError(f"{rule}, got 0; raise it, or add --prompts FILE")
            return self.model_copy(update={"tokens": self.tokens or TOKENS, "temperature": self.temperature or 1.0})
        if self.samples > 1 and not self.temperature:
            rule = "several samples per prompt need a temperature above 0"
            raise InputError(f"{rule}, got {self.samples} samples at temperature 0; for example, add --temperature 0.8")
        return self.model_copy(update={"temperature": self.temperature or 0.0})
