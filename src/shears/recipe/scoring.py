"""How examples are scored, by search and by evaluate."""

from typing import Literal

from pydantic import Field, model_validator

from shears.fields import Device, Dtype, StageConfig


class ScoringConfig(StageConfig):
    """How examples are scored; shared by search and evaluate."""

    limit: int | None = Field(None, gt=0)
    """Use only the first so many examples."""
    batch_size: int = Field(32, gt=0)
    """Examples in one forward."""
    max_new_tokens: int = Field(64, gt=0)
    """Longest generated answer, in tokens."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic: auto is bf16 autocast where the processor has it, else fp32."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""


class SearchConfig(ScoringConfig):
    """How to find the best sub-adapter; sees validation data only."""

    data: str
    """Validation examples, never the test split: a file, a hub id or the embedded arithmetic:validation."""
    objective: Literal["loss", "accuracy"] = "loss"
    """What to improve: loss per completion token (fast, exact) or the accuracy of a task."""
    task: Literal["choices", "number", "equation"] | None = None
    """Task whose accuracy is the objective."""
    strategy: Literal["heuristic", "hill-climbing", "nsga2", "random"] = "hill-climbing"
    """How rank configurations are proposed."""
    max_evaluations: int = Field(50, gt=0)
    """Rank configurations to evaluate, each once."""
    seeds: int = Field(0, ge=0)
    """Configurations evaluated first that the training log predicts to be good (sampling per-example or sandwich)."""
    storage: str | None = None
    """Optuna storage URL; by default a SQLite file in the output folder."""
    seed: int = 0
    """Seed of the proposals."""

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if self.objective == "accuracy" and self.task is None:
            raise ValueError("task must be given with objective accuracy: choices, number or equation, got none")
        return self


class EvaluateConfig(ScoringConfig):
    """What to measure, on which examples."""

    task: Literal["perplexity", "choices", "number", "equation"]
    """perplexity of a text; accuracy of choices (by log-likelihood), of a number or of an equation (generated)."""
    data: str
    """Test examples or text: a file, a hub id or the embedded arithmetic:test."""
    sequence_length: int = Field(1024, gt=1)
    """Tokens in one window of the perplexity."""
    template: Literal["question", "alpaca"] | None = None
    """Prompt template of instruction rows; by default the one the adapter was trained with, else question."""
    dtype: Dtype = "auto"
    """Number format of the model; auto keeps the model's own."""
