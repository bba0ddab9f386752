"""Options of `shears write`: text that a model writes, to calibrate, to heal and to train on."""

from typing import Literal

from pydantic import Field

from shears.config.fields import Columns, Count, Seed, StageConfig
from shears.errors import InputError

WRITTEN = "self"
"""In place of a text's source: text that the dense model writes."""
ANSWERED = f"{WRITTEN}:"
"""In front of a source of rows: the dense model's answers to them."""
TOKENS = 100_000  # that a text holds by default
OF_PROMPTS = ("columns", "samples", "keep")


def is_written(source: object) -> bool:
    """Tell whether a source of text stands for text that a model has to write."""
    return isinstance(source, str) and (source == WRITTEN or source.startswith(ANSWERED))


class WriteConfig(StageConfig):
    """How a model writes text."""

    tokens: Count | None = None
    """Tokens to write at least, such as 100k or 1M; default: 100k, and with prompts an answer to
    every one of them. Fewer answers than that are to prompts that are drawn."""
    columns: Columns = Field({})
    """Columns of the prompts that stand for those of a known form of row, such as prompt=question."""
    samples: int = Field(1, gt=0)
    """Answers to each prompt; more than one needs a temperature."""
    keep: Literal["all", "ended", "right"] = "all"
    """Which answers are kept: all; ended (not cut at max_new_tokens); right (ended, and right by the
    row's answer)."""
    chats: float = Field(0.5, ge=0.0, le=1.0)
    """Share of the texts that are chats, where the tokenizer has a chat template: the model writes
    the user's turn too; without effect on prompts."""
    max_new_tokens: int = Field(512, gt=0)
    """Longest text, answer or turn of a chat, in tokens."""
    temperature: float | None = Field(None, ge=0.0, allow_inf_nan=False)
    """1: sample from the model's own distribution; lower: more likely and less varied text; 0: the
    most likely token. Default: 1, and 0 with prompts."""
    seed: Seed = 0
    """Random seed of the first words and of the sampling."""

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
