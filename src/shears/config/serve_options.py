"""Options of `shears generate`, `chat`, `serve`, `write` and `bench`: sampling, and what runs the model."""

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
    """Return one string as a tuple of one; it is not split at commas or spaces."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else value


class SamplingConfig(StageConfig):
    """How the next token is chosen, and where a text ends."""

    max_new_tokens: int = Field(128, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0.0)
    """0: always the most likely token; 1: sample from the model's own distribution."""
    top_k: int = Field(0, ge=0)
    """Sample among the k most likely tokens only; 0: among all."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample among the smallest set of most likely tokens whose probabilities add up to top_p."""
    repetition_penalty: float = Field(1.0, gt=0.0)
    """Above 1: tokens of prompt and answer become less likely; positive logits are divided by it."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_strings), Repeated()] = ()
    """Text that ends the answer and is not shown; may be repeated (a line break is $'\\n' in a shell)."""
    seed: int = 0
    """Random seed of the sampling."""


class RunningConfig(OnDevice):
    """What runs a model or a package."""

    dtype: DtypeName = "auto"
    """Number format of a model that is not a package; bf16 also converts a .gguf file in bf16."""


class GenerateConfig(RunningConfig, SamplingConfig):
    """How to continue a prompt."""


class ChatConfig(RunningConfig, SamplingConfig):
    """How to hold a conversation."""

    system: str | None = None
    """System prompt; default: that of the model's chat template."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.7, ge=0.0)
    """0: always the most likely token; 1: sample from the model's own distribution."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Sample among the smallest set of most likely tokens whose probabilities add up to top_p."""


class ServeConfig(RunningConfig):
    """How to answer requests."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts the whole network (then set --api-key)."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0: any free port."""
    name: str | None = None
    """Name of the model in requests; default: the name of its folder."""
    api_key: str | None = Field(None, pattern=r"^[!-~]+$")
    """Key that every request must carry, in ASCII without spaces; default: $SHEARS_API_KEY."""
    max_new_tokens: int = Field(2048, gt=0)
    """Longest answer a request may ask for, in tokens; also the default of a request that sets none."""


class BenchConfig(StageConfig):
    """How to measure speed."""

    threads: int | None = Field(None, gt=0)
    """CPU threads; default: one per core."""
    prompt_tokens: int = Field(512, gt=0)
    """Tokens of the prompt whose reading is timed (prefill)."""
    new_tokens: int = Field(64, gt=1)
    """Tokens generated after a prompt of 64 tokens; the first one gives the time to the first token."""
    rounds: int = Field(5, gt=0)
    """Rounds, beside one to warm up; each measures every contestant once, in another order."""


def is_written(source: object) -> bool:
    return isinstance(source, str) and (source == WRITTEN or source.startswith(ANSWERED))


class WriteConfig(OfRows, Seeded, OnDevice):
    """How a model writes text."""

    tokens: Count | None = None
    """Tokens to write at least, such as 100k or 1M; default: 100k, or an answer to every prompt."""
    samples: int = Field(1, gt=0)
    """Answers to each prompt; more than one needs a temperature."""
    keep: Literal["all", "ended", "right"] = "all"
    """Answers that are kept: all, ended (not cut), or right (ended, and right by the row)."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest text, answer or turn of a chat, in tokens."""
    temperature: float | None = Field(None, ge=0.0)
    """1: sample from the model's own distribution; 0: the most likely token. Default: 1, and 0 with prompts."""

    def for_prompts(self, prompts: str | None) -> "WriteConfig":
        """Return the options with all defaults, for these prompts or without; InputError if they do not suit."""
        if prompts is None:
            own = [name for name in OF_PROMPTS if getattr(self, name) != type(self).model_fields[name].default]
            if own:
                raise InputError(f"write.{own[0]} needs prompts, got none; name them with --prompts FILE")
            if self.temperature == 0:
                rule = "write.temperature must be above 0 for texts behind random words"
                raise InputError(f"{rule}, got 0; raise it, or give --prompts FILE")
            return self.model_copy(update={"tokens": self.tokens or TOKENS, "temperature": self.temperature or 1.0})
        if self.samples > 1 and not self.temperature:
            rule = "several samples of a prompt need a temperature above 0"
            raise InputError(f"{rule}, got {self.samples} samples at temperature 0; add --temperature 0.8, for example")
        return self.model_copy(update={"temperature": self.temperature or 0.0})
