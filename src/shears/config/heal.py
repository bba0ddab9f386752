"""Options of `shears heal`: how to train a sparse model to say what the dense one says."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from shears.config.fields import Columns, Count, Device, DtypeName, Names, Seed, StageConfig
from shears.config.train import TrainConfig, known_trackers


class HealConfig(StageConfig):
    """How to give a sparse model back what pruning took: it is trained to predict what the dense model predicts."""

    data: str
    """Text to train on: a .txt file, rows in JSON, JSONL, CSV or Parquet, a hub id, the embedded arithmetic:train, or
    self (text that the dense model writes itself, see write). Every token counts, prompts too. Labels are not used
    unless cross_entropy is above 0."""
    columns: Columns = Field({})
    """Columns of the data that stand for those of a known form of row, such as prompt=question,completion=answer."""
    template: Literal["question", "alpaca"] = "question"
    """Prompt template of instruction/input/output rows."""
    teacher: str | None = None
    """Dense model that says what is right, or the folder of an adapter that was trained on one; default: the model that
    SPARSE was pruned from. Embeddings, norms and the head of SPARSE stay as they are."""
    teacher_top_k: int = Field(0, ge=0)
    """Likeliest words that are kept of each prediction of the teacher; the others count as one. They are computed once
    and kept beside the data, so that the teacher is not in memory while training. 0: it is, and all words count."""
    tokens: Count = 1_000_000
    """Tokens to train on, such as 50k or 1M: a shorter text is read several times, a longer one in evenly spaced
    sequences."""
    sequence_length: int = Field(512, gt=1)
    """Tokens of a sequence; the text is cut into such pieces."""
    train: Literal["weights", "lora"] = "weights"
    """What is trained: weights (the weights that pruning kept, in fp32) or lora (a LoRA product masked by the zeros
    and added to the weights at the end: less memory, gives back less)."""
    rank: int = Field(32, gt=0)
    """Rank of the product; has no effect on weights."""
    alpha: float = Field(64.0, gt=0)
    """LoRA alpha; the product is scaled by alpha / rank."""
    recovery: bool = False
    """Train the recovery adapter of SPARSE (sparsify --recover-rank) with the weights and write OUT/recovery, for train
    --init recovery. Needs train weights."""
    quantize_aware: Literal["none", "int4"] = "none"
    """int4: the forward sees the trained weights as a package of int4 values holds them, so that export --format
    package --values int4 loses little. Needs train weights."""
    kl: float = Field(1.0, ge=0)
    """Weight of the Kullback-Leibler divergence between the dense and the sparse model's next-token distributions."""
    cross_entropy: float = Field(0.0, ge=0)
    """Weight of the loss on the text itself."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw, or adamw-8bit: its two states in 8 bits, by bitsandbytes."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate; of weights, it is a share of the root mean square of each linear's kept weights. A model of
    135 M parameters gains more at 1e-3, at which one of 0.5 B is harmed."""
    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after warmup: linear (falls to 0 at the last step), cosine (half a cosine to 0) or
    constant."""
    weight_decay: float = Field(0.0, ge=0.0, lt=1.0)
    """AdamW's decay: each step shrinks what is trained by this share of the learning rate."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0 to its peak; must be below the number of steps."""
    batch_size: int = Field(4, gt=0)
    """Sequences in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Sequences in one forward pass; must divide batch_size. Fewer need less memory (gradients accumulate)."""
    recompute: bool = True
    """Keep only the results of matrix products for the backward pass and recompute the rest: much less memory, a
    seventh to a third more time."""
    precision: DtypeName = "auto"
    """Arithmetic; auto: bf16 autocast where the processor supports it, else fp32."""
    report_to: Names = ()
    """Trackers that receive loss and learning rate of every step: mlflow, tensorboard, trackio, wandb; default:
    none."""
    save_steps: int = Field(50, gt=0)
    """Optimizer steps between two checkpoints; an interruption loses at most this many."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: Seed = 0
    """Random seed of the order of the sequences, and of the product's start."""

    @field_validator("report_to")
    @classmethod
    def _check_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_trackers(value)

    @model_validator(mode="after")
    def _check(self) -> "HealConfig":
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"micro_batch_size must divide batch_size ({self.batch_size}), got {self.micro_batch_size}"
            )
        if self.recovery and self.train != "weights":
            raise ValueError(f"recovery is trained with weights and needs train weights, got {self.train}")
        if self.quantize_aware != "none" and self.train != "weights":
            raise ValueError(f"quantize_aware rounds trained weights and needs train weights, got {self.train}")
        if not self.kl + self.cross_entropy:
            raise ValueError("kl or cross_entropy must be above 0, got 0 for both; set one")
        return self

    @property
    def num_sequences(self) -> int:
        """The sequences that all steps read."""
        return -(-self.tokens // self.sequence_length)

    @property
    def num_steps(self) -> int:
        """The optimizer steps."""
        return -(-self.num_sequences // self.batch_size)

    @property
    def as_training(self) -> TrainConfig:
        """What the training loop must know, in its own configuration."""
        others = {"columns", "template", "teacher", "teacher_top_k", "quantize_aware"}
        names = (HealConfig.model_fields.keys() & TrainConfig.model_fields.keys()) - others
        return TrainConfig(**{name: getattr(self, name) for name in names}, max_steps=self.num_steps)
