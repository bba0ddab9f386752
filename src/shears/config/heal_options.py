"""Options of `shears heal`: how to train a sparse model to say what the dense one says."""

from typing import Literal

from pydantic import Field

from shears.config.fields import Count
from shears.config.loop import LoopConfig


class HealConfig(LoopConfig):
    """How to give a sparse model back what pruning took: it learns to predict what the dense model predicts."""

    data: str
    """Text to train on, of which every token counts: a .txt file, rows in JSON, JSONL, CSV or Parquet, a
    hub id, the embedded arithmetic:train, self (text that the dense model writes itself, see write),
    or self:FILE (the dense model's answers to the prompts of FILE)."""
    teacher: str | None = None
    """Dense model that says what is right, or the folder of an adapter that was trained on one;
    default: the model that SPARSE was pruned from."""
    kl: float = Field(1.0, ge=0)
    """Weight of the Kullback-Leibler divergence from the teacher's next-token distribution."""
    cross_entropy: float = Field(0.0, ge=0)
    """Weight of the loss on the text itself."""
    tokens: Count = 1_000_000
    """Tokens to train on, such as 50k or 1M: a shorter text is read several times, a longer one in
    evenly spaced sequences."""
    sequence_length: int = Field(512, gt=1)
    """Tokens of a sequence; the text is cut into such pieces."""
    recovery: bool = False
    """Train the recovery adapter of SPARSE (sparsify --recover-rank) with the weights and write
    OUT/recovery, for train --init recovery."""
    quantize_aware: Literal["none", "int4"] = "none"
    """int4: the forward sees the trained weights as a package of int4 values holds them, so that
    export --format package --values int4 loses little."""
    batch_size: int = Field(4, gt=0)
    """Sequences in an optimizer step."""

    @property
    def num_sequences(self) -> int:
        """The sequences that all steps read."""
        return -(-self.tokens // self.sequence_length)

    @property
    def num_steps(self) -> int:
        """The optimizer steps."""
        return -(-self.num_sequences // self.batch_size)
