"""Options of every training: `shears train` and `shears heal`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from shears.config.fields import Count, DtypeName, Names, OfRows, OnDevice, Ranks, Seeded, Source, TemplateName

SMALL = 250_000_000  # weights of a model; measured were 135 M and 494 M
AUTO = "auto"  # the groups that the model's structure gives
SamplingName = Literal["nested", "uniform"]
EXAMPLES = 5_000  # read by a training that names neither epochs nor steps, within MOST_EPOCHS
MOST_EPOCHS = 10


class LoopConfig(OfRows, OnDevice, Seeded):
    """How a training reads its data, weighs its losses, and uses the machine.

    `kl` weighs the Kullback-Leibler divergence from a teacher's next-token distribution,
    `cross_entropy` the loss on the labels beside a teacher; without one it is the whole loss.
    """

    kl: ClassVar[float] = 0.5
    cross_entropy: ClassVar[float] = 0.5
    data: str
    """Training data: a file (.json, .jsonl, .csv, .parquet), a hub id, arithmetic:train (built in),
    or self:FILE (the original model or the teacher answers the prompts in FILE)."""
    template: TemplateName | None = None
    """Prompt template of instruction rows; chat is the model's own chat template. Default: the
    template that the model was trained with; else chat if the model has one; else question."""
    teacher: str | None = None
    """Model whose predictions the training also imitates: the original dense model, or the folder
    of an adapter trained on it. heal takes the model that SPARSE was pruned from by default."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW. Default: 1e-3 for up to 250 million parameters, else 3e-4."""
    warmup_steps: int = Field(10, ge=0)
    """Number of steps in which the learning rate rises from 0 to its peak."""
    batch_size: int = Field(16, gt=0, lt=1 << 31)
    """Number of examples in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Number of examples in one forward pass; must divide batch_size. A smaller value needs less
    memory. Default: 4, or more if they are short."""
    recompute: bool = False
    """Recompute activations in the backward pass (gradient checkpointing). This needs less memory,
    takes about a third more time and gives the same result."""
    precision: DtypeName = "auto"
    """Number format of the arithmetic. auto is bf16 autocast, but fp32 on a CPU slower in bf16."""
    save_steps: int = Field(50, gt=0)
    """Number of optimizer steps between checkpoints. One is also written every two minutes."""

    def rate_for(self, num_weights: int) -> float:
        """Return the learning rate, where none is set that of a model of `num_weights`."""
        return self.learning_rate or (1e-3 if num_weights <= SMALL else 3e-4)

    @model_validator(mode="after")
    def _check_loop(self) -> "LoopConfig":
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"micro_batch_size must divide batch_size ({self.batch_size}), got {self.micro_batch_size}"
            )
        return self


class HealConfig(LoopConfig):
    """How to restore what pruning took: the sparse model learns the dense model's predictions."""

    kl: ClassVar[float] = 1.0
    cross_entropy: ClassVar[float] = 0.0
    data: str
    """Text to train on, of which every token counts: a file (.txt, .json, .jsonl, .csv, .parquet),
    a hub id, arithmetic:train (built in), self (the dense model writes text) or self:FILE (it
    answers the prompts in FILE)."""
    tokens: Count = 1_000_000
    """Number of tokens to train on, such as 50k or 1M. A shorter text is repeated."""
    sequence_length: int = Field(512, gt=1)
    """Number of tokens in a sequence; the text is cut into sequences of this length."""
    quantize_aware: Literal["none", "int4"] = "none"
    """int4: train the weights as rounded to 4 bits, so that export --format package --dtype int4
    loses less accuracy."""
    batch_size: int = Field(4, gt=0, lt=1 << 31)
    """Number of sequences in an optimizer step."""

    @property
    def num_sequences(self) -> int:
        return -(-self.tokens // self.sequence_length)

    @property
    def num_steps(self) -> int:
        return -(-self.num_sequences // self.batch_size)


class TrainConfig(LoopConfig):
    """How to train the super-adapter on the frozen sparse model."""

    template: TemplateName = "question"
    """Prompt template of instruction rows, in training and later evaluation; chat is the model's
    own chat template."""
    ranks: Ranks = (32,)
    """LoRA rank. Several ranks, largest first, such as 32,24,16, train one adapter that search and
    export can cut down to any of them; this costs some accuracy."""
    groups: Names = (AUTO,)
    """Linear layers that get an adapter, separated by commas; those joined by + share one rank in
    each decoder block. auto chooses; for Llama it is q_proj+k_proj+v_proj,up_proj,down_proj."""
    alpha: float | None = Field(None, gt=0)
    """LoRA alpha; adapters are scaled by alpha / (largest rank). Default: 128 for up to 250 million
    parameters, else 64; higher with sparse_adapter or quantize_aware, which mask the adapter."""
    init: Literal["auto", "lora", "recovery"] = "auto"
    """Initial adapter: lora is PEFT's, recovery is what pruning removed (sparsify --recover-rank).
    auto takes recovery if the model has one and the other options allow it, else lora."""
    sampling: SamplingName = "nested"
    """How several ranks are trained: nested trains all of them in every step; uniform trains one
    random rank per group in each step, as the Shears paper does."""
    sparse_adapter: bool = False
    """SparsePEFT: mask the adapter with the weight's zeros, so that merging keeps every zero."""
    quantize_aware: Literal["none", "int4", "q4_0"] = "none"
    """QA-SparsePEFT: train with the rounded weights that the exported file will hold, so that
    export loses nothing. int4 is for export --format package, q4_0 for export --format gguf."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the inputs of the adapters."""
    epochs: float | None = Field(None, gt=0, le=1e6)
    """Number of passes over the training examples. Default: 1 to 10, so that about 5,000 examples
    are read in total."""
    max_steps: int | None = Field(None, gt=0)
    """Number of optimizer steps. Overrides epochs."""
    max_length: int = Field(512, gt=1)
    """Longest example, in tokens. Longer examples are left out, and shears reports how many."""
    validation: Source | None = None
    """Validation examples, measured after each epoch: a file, a hub id, or a share of the training
    examples, such as 0.05."""
    early_stopping: int | None = Field(None, gt=0)
    """Stop after this many validations without a lower loss. The best adapter is kept."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, values: Any) -> Any:
        """Give an adapter that vanishes into a package of int4 a sampling that is not nested."""
        if not isinstance(values, Mapping) or values.get("quantize_aware", "none") == "none":
            return values
        return {"sampling": "uniform", **values}

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if list(self.ranks) != sorted(set(self.ranks), reverse=True):
            raise ValueError(f"ranks must be distinct and largest first, got {','.join(map(str, self.ranks))}")
        if self.masks and self.dropout:
            rule = "sparse_adapter and quantize_aware need dropout 0"
            raise ValueError(f"{rule}, got dropout {self.dropout:g}; leave dropout out")
        if self.quantize_aware != "none" and self.sampling == "nested":
            rule = "quantize_aware needs sampling uniform, because folding nested ranks changes the rounded weights"
            raise ValueError(f"{rule}, got nested; leave sampling out")
        if self.validation is None and self.early_stopping is not None:
            raise ValueError("early_stopping needs validation examples, got none; for example, add validation=0.05")
        if self.validation == self.data:
            rule = "validation must be other examples than data"
            raise ValueError(f"{rule}, both are {self.data}; set a share such as validation=0.05")
        if not 0 < (0.5 if self.validation_share is None else self.validation_share) < 1:
            raise ValueError(f"validation must be a file, a hub id or a share between 0 and 1, got {self.validation}")
        return self

    @property
    def validation_share(self) -> float | None:
        """The share of training rows held out for validation; None for another source, or none."""
        try:
            return None if self.validation is None else float(self.validation)
        except ValueError:
            return None

    @property
    def validation_source(self) -> str | None:
        """The source of validation examples; None for a share of the training rows, or none."""
        return self.validation if self.validation_share is None else None

    def num_steps(self, num_examples: int) -> int:
        epochs = self.epochs or min(max(round(EXAMPLES / max(num_examples, 1)), 1), MOST_EPOCHS)
        steps_per_epoch = -(-num_examples // self.batch_size)
        return self.max_steps or -int(-epochs * steps_per_epoch // 1)

    def for_base(self, num_weights: int, sparsity: float, has_recovery: bool) -> "TrainConfig":
        """Return these settings; the base decides the learning rate, alpha and start if not set.

        `sparsity` is the share of zeros in its pruned linears.
        """
        alpha = 128.0 if num_weights <= SMALL else 64.0
        if self.masks:
            alpha = max(alpha, 64 / (1 - sparsity))
        may_recover = not self.masks and (len(self.ranks) == 1 or self.sampling != "nested")
        start = "recovery" if has_recovery and may_recover else "lora"
        decided = {
            "learning_rate": self.rate_for(num_weights),
            "alpha": self.alpha or alpha,
            "init": start if self.init == "auto" else self.init,
        }
        return self.model_copy(update=decided)

    @property
    def masks(self) -> bool:
        """Whether the adapter's product is masked by the zeros of the weight."""
        return self.sparse_adapter or self.quantize_aware != "none"
