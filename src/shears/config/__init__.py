"""The configuration of every verb; each default is written here and nowhere else.

A recipe is a YAML file with a section per stage. A field is a flag of the command line, a key of
the recipe and a keyword of the library: `--max-steps`, `train.max_steps`, `train(max_steps=...)`.
"""

from typing import Annotated, Literal

from pydantic import Field

from shears.config.compress_options import CompressConfig
from shears.config.evaluate_options import EvaluateConfig, ScoringConfig, SearchConfig
from shears.config.export_options import FORMATS, ExportConfig
from shears.config.fields import Split, StageConfig
from shears.config.serve_options import (
    BenchConfig,
    ChatConfig,
    GenerateConfig,
    SamplingConfig,
    ServeConfig,
    WriteConfig,
)
from shears.config.sparsify_options import SparsifyConfig
from shears.config.train_options import HealConfig, TrainConfig

__all__ = ["BenchConfig", "ChatConfig", "CompressConfig", "EvaluateConfig", "ExportConfig", "GenerateConfig",
           "HealConfig", "Recipe", "SamplingConfig", "ScoringConfig", "SearchConfig", "ServeConfig",
           "SparsifyConfig", "TrainConfig", "WriteConfig"]  # fmt: skip


class Recipe(StageConfig):
    """A run: a model, an output folder, and a section for each stage that is not skipped."""

    model: str | None = None
    """Base model: smollm2-135m, a Hugging Face hub id, a model folder or a .gguf file."""
    output: str | None = None
    """Folder that the run writes to."""
    baselines: Annotated[tuple[Literal["dense-lora", "sparse-lora"], ...], Split] = ()
    """Plain LoRA adapters to train as well and to compare with: dense-lora on the original model,
    sparse-lora on the pruned one. They train for the same number of steps at the largest rank."""
    sparsify: SparsifyConfig = Field(default_factory=SparsifyConfig)
    """How to prune."""
    heal: HealConfig | None = None
    """How to restore what pruning took from the model."""
    train: TrainConfig | None = None
    """How to train the super-adapter."""
    search: SearchConfig | None = None
    """How to find the best sub-adapter."""
    export: ExportConfig = Field(default_factory=ExportConfig)
    """Which sub-adapter to write, and in what format."""
    evaluate: EvaluateConfig | None = None
    """How to measure every model of the run."""

    @property
    def exports(self) -> bool:
        """Whether a run exports: what it trained, or the sparse model as one packed file."""
        return self.train is not None or FORMATS[self.export.format].is_packed
