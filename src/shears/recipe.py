"""Every stage's configuration: the only place a default is written.

A recipe is a YAML file with one section a stage. The command line's flags, the YAML keys and the keyword arguments of
the library are the same fields under the same names (`--max-steps`, `train.max_steps`, `train(max_steps=...)`).
"""

from typing import Literal

from pydantic import Field, model_validator

from shears.fields import Device, Dtype, Names, Pattern, Ranks, Shares, Size, StageConfig


class FetchConfig(StageConfig):
    """Where the embedded model goes."""

    output: str | None = None
    """Folder to write; by default the user's cache."""


class InspectConfig(StageConfig):
    """What to compare an artifact with."""

    against: str | None = None
    """Another artifact: say whether the two belong together."""


class SparsifyConfig(StageConfig):
    """How to prune: method, share, where the zeros may lie, calibration text."""

    sparsity: float = Field(0.5, ge=0.0, lt=1.0)
    """Share of the pruned linears' weights that becomes zero, over all of them together."""
    method: Literal["wanda", "magnitude", "ria", "sparsegpt", "admm"] = "wanda"
    """Rule: wanda, magnitude and ria only drop weights; sparsegpt and admm also move the kept ones (better, slower)."""
    pattern: Pattern = "row"
    """Where weights compete: row (of a linear), layer (a linear), global (all linears; magnitude only), or N:M."""
    allocation: Literal["uniform", "owl", "sensitivity"] = "uniform"
    """Sparsity per linear: uniform, owl (less where a block has outliers), or sensitivity (by the loss's gradient)."""
    reconstruct: bool = False
    """Fit the kept weights to the dense linear's outputs on the calibration text, the zeros left where they are."""
    calibration: str = "arithmetic:train"
    """Text the inputs are measured on: FILE.txt, rows or chats (JSON, CSV, Parquet), a hub id, or arithmetic:train."""
    num_samples: int = Field(32, gt=0)
    """Number of calibration sequences."""
    sequence_length: int = Field(512, gt=1)
    """Tokens in a calibration sequence."""
    batch_size: int = Field(4, gt=0)
    """Calibration sequences in one forward."""
    targets: Names = ()
    """Names of the linears to prune, by suffix or regex, such as q_proj,down_proj; empty for all of every block."""
    skip: Names = ()
    """Names of linears that stay dense and do not count, by suffix or regex, such as o_proj or .*layers\\.0\\..*"""
    sparsity_of: Shares = Field({})
    """Sparsity of some linears, by suffix or regex, such as down_proj=0.4; the others make up for it."""
    damping: float = Field(0.01, gt=0)
    """What sparsegpt and reconstruct add to the diagonal of the inputs' second moments, as a share of its mean."""
    activation_budget: Size = "2GB"
    """Memory for hidden states between blocks; what does not fit waits on the disk."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forwards: auto is bf16 where the processor has it, else fp32. Statistics are always fp32."""
    dtype: Dtype = "auto"
    """Number format of the model on the disk; auto keeps the model's own."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: int = 0
    """Seed of the choice of calibration sequences."""

    @model_validator(mode="after")
    def _check_pattern(self) -> "SparsifyConfig":
        if self.pattern == "global" and (
            self.method != "magnitude" or self.allocation != "uniform" or self.sparsity_of
        ):
            raise ValueError(
                "pattern global needs method magnitude and says itself how sparse each linear is; use layer"
            )
        kept, colon, size = self.pattern.partition(":")
        if not colon:
            return self
        if not 0 < int(kept) < int(size):
            raise ValueError(f"pattern N:M must keep 0 < N < M weights, got {self.pattern}; 2:4 keeps two of four")
        if abs(self.sparsity - (1 - int(kept) / int(size))) > 1e-9 or self.allocation != "uniform" or self.sparsity_of:
            share = 1 - int(kept) / int(size)
            raise ValueError(
                f"pattern {self.pattern} is a sparsity of {share:g} everywhere; set sparsity={share:g} only"
            )
        return self


class TrainConfig(StageConfig):
    """How to train the super-adapter on the frozen sparse model."""

    data: str
    """Training examples: a JSON, JSONL, CSV or Parquet file, a hub id, or the embedded arithmetic:train."""
    ranks: Ranks = (32, 24, 16)
    """Allowed ranks of every group, largest first; a single one is plain LoRA."""
    groups: Names = ("q_proj+k_proj+v_proj", "up_proj", "down_proj")
    """Linears that carry an adapter; those joined by + share one rank in each decoder block."""
    alpha: float = Field(64.0, gt=0)
    """LoRA alpha; every rank is scaled by alpha / max_rank."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' inputs."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training examples."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps; overrides epochs."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate (AdamW, linear decay)."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises to its peak."""
    batch_size: int = Field(16, gt=0)
    """Examples in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Examples in one forward; a smaller one saves memory (gradients accumulate). Must divide batch_size."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    max_length: int = Field(512, gt=1)
    """Tokens in an example; longer ones are left out and counted."""
    train_on: Literal["completion", "all"] = "completion"
    """Tokens that carry the loss."""
    template: Literal["question", "alpaca"] = "question"
    """Prompt template of instruction/input/output rows, in training and in evaluation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic: auto is bf16 autocast where the processor has it, else fp32."""
    save_steps: int = Field(50, gt=0)
    """Optimizer steps between two checkpoints; an interruption loses no more than these."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: int = 0
    """Seed of the initial adapter, the order of the examples and the ranks drawn at every step."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if list(self.ranks) != sorted(set(self.ranks), reverse=True):
            raise ValueError(f"ranks must be distinct and largest first, got {','.join(map(str, self.ranks))}")
        if self.batch_size % self.forward_size:
            raise ValueError(
                f"micro_batch_size must divide batch_size ({self.batch_size}), got {self.micro_batch_size}"
            )
        return self

    @property
    def forward_size(self) -> int:
        """Examples in one forward."""
        return self.micro_batch_size or self.batch_size


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
    storage: str | None = None
    """Optuna storage URL; by default a SQLite file in the output folder."""
    seed: int = 0
    """Seed of the proposals."""

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if self.objective == "accuracy" and self.task is None:
            raise ValueError("task must be given with objective accuracy: choices, number or equation, got none")
        return self


class ExportConfig(StageConfig):
    """Which sub-adapter to write, and in what form."""

    ranks: str | None = None
    """heuristic, maximal, minimal, a RESULT.json of search or a RANKS.json {group: rank}; by default the searched
    one in a run, else heuristic."""
    format: Literal["peft", "padded"] = "peft"
    """peft: each tensor at its own rank; padded: all at the largest rank, zeros beyond (for llama.cpp)."""


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


class GenerateConfig(StageConfig):
    """How to continue a prompt."""

    max_new_tokens: int = Field(128, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0.0)
    """0 always takes the likeliest token; 1 samples from the model's own distribution."""
    dtype: Dtype = "auto"
    """Number format of the model; auto keeps the model's own."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: int = 0
    """Seed of the sampling."""


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
    inspect: InspectConfig = InspectConfig()
    """What to compare an artifact with."""
