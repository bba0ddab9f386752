"""Options that every training has, whatever it trains: the base of `TrainConfig` and `HealConfig`."""

from pydantic import Field, model_validator

from shears.config.fields import Columns, Device, DtypeName, Seed, StageConfig, TemplateName

SMALL = 250_000_000  # weights of a model; measured were 135 M and 494 M


class LoopConfig(StageConfig):
    """How a training reads its data, weighs its losses, and uses the machine."""

    data: str
    """Rows to train on: a JSON, JSONL, CSV or Parquet file, a hub id, or the embedded arithmetic:train."""
    columns: Columns = Field({})
    """Columns of the data, and of a validation file, that stand for those of a known form of row,
    such as prompt=question,completion=answer."""
    template: TemplateName | None = None
    """Prompt template of instruction/input/output rows; chat: turns in the model's chat template.
    Default: that of the model's or the run's training, else chat if the model has one, else question."""
    teacher: str | None = None
    """Model whose predictions are learnt: the dense one, or the folder of an adapter that was
    trained on it."""
    teacher_top_k: int = Field(64, gt=0)
    """Likeliest words that are kept of each prediction of the teacher, computed once and cached; the
    others count as one."""
    kl: float = Field(0.5, ge=0)
    """Weight of the Kullback-Leibler divergence from the teacher's next-token distribution; no effect
    without a teacher."""
    cross_entropy: float = Field(0.5, ge=0)
    """Weight of the loss on the labels beside a teacher; without one it is the whole loss."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW, in heal a share of each linear's size. Default: 3e-4, or 1e-3 for
    models of at most 250 M weights."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0 to its peak: at most all steps but the last."""
    batch_size: int = Field(16, gt=0)
    """Examples in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Examples in one forward pass; must divide batch_size. Fewer need less memory. Default: 4, or
    as many as hold 1,024 tokens on average, where batch_size is a multiple of them."""
    recompute: bool = False
    """Let the backward pass recompute the activations of every block: less memory, a third more time,
    the same bits."""
    precision: DtypeName = "auto"
    """Arithmetic; auto: bf16 autocast, but fp32 on a CPU that is slower in bf16. With fp32 a CPU loads
    the base in fp32: twice the memory of its weights."""
    save_steps: int = Field(50, gt=0)
    """Optimizer steps between two checkpoints; others are written after two minutes."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps (the last two experimental)."""
    seed: Seed = 0
    """Random seed of the initial adapter, the order of the examples and the ranks of every step."""

    def rate_for(self, num_weights: int) -> float:
        """Return the learning rate, where none is set that of a model of `num_weights`."""
        return self.learning_rate or (1e-3 if num_weights <= SMALL else 3e-4)

    @model_validator(mode="after")
    def _check_loop(self) -> "LoopConfig":
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"micro_batch_size must divide batch_size ({self.batch_size}), got {self.micro_batch_size}"
            )
        if not self.kl + self.cross_entropy:
            raise ValueError("kl or cross_entropy must be above 0, got 0 for both; set one")
        return self
