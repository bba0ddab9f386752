"""Every stage's configuration: the only place a default is written.

A recipe is a YAML file with one section a stage. The command line's flags, the YAML keys and the keyword arguments of
the library are the same fields under the same names (`--max-steps`, `train.max_steps`, `train(max_steps=...)`).
"""

from pydantic import Field

from shears.config.evaluate import EvaluateConfig, ScoringConfig
from shears.config.export import ExportConfig
from shears.config.fields import StageConfig
from shears.config.search import SearchConfig
from shears.config.serve import BenchConfig, ChatConfig, GenerateConfig, SamplingConfig, ServeConfig
from shears.config.sparsify import SparsifyConfig
from shears.config.train import TrainConfig

__all__ = ["BenchConfig", "ChatConfig", "EvaluateConfig", "ExportConfig", "FetchConfig", "GenerateConfig",
           "InspectConfig", "Recipe", "SamplingConfig", "ScoringConfig", "SearchConfig", "ServeConfig",
           "SparsifyConfig", "TrainConfig"]  # fmt: skip


class FetchConfig(StageConfig):
    """Where the embedded model goes."""

    output: str | None = None
    """Folder to write; by default the user's cache."""


class InspectConfig(StageConfig):
    """What to compare an artifact with."""

    against: str | None = None
    """Another artifact: say whether the two belong together."""


class Recipe(StageConfig):
    """A whole run: the model and one section a stage; a section left out is a stage left out."""

    model: str | None = None
    """Base model: smollm2-135m, a hub id, a folder or a .gguf file."""
    output: str | None = None
    """Folder of the run."""
    threads: int | None = Field(None, gt=0)
    """CPU threads; by default one a core. More threads than free cores are many times slower."""
    fetch: FetchConfig = FetchConfig()
    """Where the embedded model goes."""
    sparsify: SparsifyConfig = SparsifyConfig()
    """How to prune."""
    train: TrainConfig | None = None
    """How to train the super-adapter."""
    search: SearchConfig | None = None
    """How to find the best sub-adapter."""
    export: ExportConfig = ExportConfig()
    """Which sub-adapter to write."""
    evaluate: EvaluateConfig | None = None
    """What to measure."""
    generate: GenerateConfig = GenerateConfig()
    """How to continue a prompt."""
    chat: ChatConfig = ChatConfig()
    """How to hold a conversation."""
    serve: ServeConfig = ServeConfig()
    """How to answer requests."""
    bench: BenchConfig = BenchConfig()
    """How to measure speed."""
    inspect: InspectConfig = InspectConfig()
    """What to compare an artifact with."""
