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

    `kl` weighs the Kullback-Leibler divergence from a teacher's next-token distribution, `cross_entropy`
    the loss on the labels beside a teacher; without one it is the whole loss.
    """

    kl: ClassVar[float] = 0.5
    cross_entropy: ClassVar[float] = 0.5
    data: str
    """Training examples, for heal a text of which every token counts: a JSON, JSONL, CSV or Parquet file
    (heal: .txt), a hub id, the embedded arithmetic:train, or self:FILE (answers to FILE's prompts that
    the teacher or the dense model writes, for train right ones; heal: self, text of its own)."""
    template: TemplateName | None = None
    """Prompt template of instruction/input/output rows; chat: turns in the model's chat template.
    Default: that of the model's or the run's training, else chat if the model has one, else question."""
    teacher: str | None = None
    """Model whose predictions are learnt: the dense one, or the folder of an adapter that was trained on
    it; default of heal: the model that SPARSE was pruned from."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW. Default: 3e-4, or 1e-3 for models of at most 250 M weights."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0 to its peak: at most all steps but the last."""
    batch_size: int = Field(16, gt=0)
    """Examples in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Examples in one forward pass; must divide batch_size. Fewer need less memory. Default: 4, or
    as many as hold 512 tokens."""
    recompute: bool = False
    """Let the backward pass recompute activations: less memory, a third more time, same bits."""
    precision: DtypeName = "auto"
    """Arithmetic; auto: bf16 autocast, but fp32 on a CPU that is slower in bf16."""
    save_steps: int = Field(50, gt=0)
    """Optimizer steps between two checkpoints; others are written after two minutes."""

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
    """How to give a sparse model back what pruning took: it learns to predict what the dense model predicts."""

    kl: ClassVar[float] = 1.0
    cross_entropy: ClassVar[float] = 0.0
    tokens: Count = 1_000_000
    """Tokens to train on, such as 50k or 1M; a shorter text is read several times."""
    sequence_length: int = Field(512, gt=1)
    """Tokens of a sequence; the text is cut into such pieces."""
    recovery: bool = False
    """Train the recovery adapter of SPARSE (sparsify --recover-rank) with the weights and write
    OUT/recovery, for train --init recovery."""
    quantize_aware: Literal["none", "int4"] = "none"
    """int4: train the weights as export --format package --values int4 will round them."""
    batch_size: int = Field(4, gt=0)
    """Sequences in an optimizer step."""

    @property
    def num_sequences(self) -> int:
        return -(-self.tokens // self.sequence_length)

    @property
    def num_steps(self) -> int:
        return -(-self.num_sequences // self.batch_size)


class TrainConfig(LoopConfig):
    """How to train the super-adapter on the frozen sparse model."""

    template: TemplateName = "question"
    """Prompt template of instruction rows, in training and evaluation; chat: the model's own."""
    ranks: Ranks = (32,)
    """Allowed ranks of every group, largest first. One rank is plain LoRA; several, such as
    32,24,16, make one adapter of several sizes, which costs it some accuracy."""
    groups: Names = (AUTO,)
    """Linears that get an adapter; those joined by + share one rank in each decoder block, such as
    q_proj+k_proj+v_proj,up_proj,down_proj, which auto is in Llama. Stacked experts get no adapter."""
    alpha: float | None = Field(None, gt=0)
    """LoRA alpha; every rank is scaled by alpha / max_rank. Default: 64, or 128 for models of at most
    250 M weights; a masked product gets at least 64 over the share of kept weights."""
    init: Literal["auto", "lora", "recovery"] = "auto"
    """Initial adapter: lora (PEFT's own), recovery (what pruning removed, see sparsify --recover-rank)
    or auto (recovery if the base has one, unless several ranks are nested or the product is masked)."""
    sampling: SamplingName = "nested"
    """Which ranks a step trains: nested (all, by a fixed diagonal between the factors) or uniform
    (one configuration at random, as in the paper)."""
    sparse_adapter: bool = False
    """SparsePEFT: mask the adapter's product by the zeros of the weight: merging keeps every zero."""
    quantize_aware: Literal["none", "int4", "q4_0"] = "none"
    """QA-SparsePEFT: train the rounded weights, and their scales, that the exported file will hold,
    adapter merged and zeros kept. int4: export --format package is exact; q4_0: export --format gguf."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' inputs."""
    epochs: float | None = Field(None, gt=0, le=1e6)
    """Passes over the training examples. Default: as many as read 5,000 examples, from 1 to 10."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps; overrides epochs."""
    max_length: int = Field(512, gt=1)
    """Largest number of tokens in an example; longer examples are skipped and counted."""
    validation: Source | None = None
    """Validation examples, read after each epoch: a source of rows, or a share such as 0.05."""
    early_stopping: int | None = Field(None, gt=0)
    """Stop after this many validations without a lower loss; the result is the adapter with the lowest."""

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
            raise ValueError(f"sparse_adapter and quantize_aware need dropout 0, got {self.dropout:g}")
        if self.quantize_aware != "none" and self.sampling == "nested":
            raise ValueError(
                "quantize_aware needs sampling uniform: nested products are folded, which moves their bits"
            )
        if self.validation is None and self.early_stopping is not None:
            raise ValueError("early_stopping needs validation, got none; add a file, or a share of the rows as 0.05")
        if self.validation == self.data:
            raise ValueError(f"validation must be other examples than data, both are {self.data}; give a share of them")
        if not 0 < (0.5 if self.validation_share is None else self.validation_share) < 1:
            raise ValueError(f"validation must be a source of rows or a share between 0 and 1, got {self.validation}")
        return self

    @property
    def validation_share(self) -> float | None:
        """The share of the training rows that is held out for validation; None for a source of its own, or none."""
        try:
            return None if self.validation is None else float(self.validation)
        except ValueError:
            return None

    @property
    def validation_source(self) -> str | None:
        """The source of validation examples; None for a share of the training rows, or none."""
        return self.validation if self.validation_share is None else None

    def steps_per_epoch(self, num_examples: int) -> int:
        return -(-num_examples // self.batch_size)

    def num_epochs(self, num_examples: int) -> float:
        return self.epochs or float(min(max(round(EXAMPLES / max(num_examples, 1)), 1), MOST_EPOCHS))

    def num_steps(self, num_examples: int) -> int:
        return self.max_steps or -int(-self.num_epochs(num_examples) * self.steps_per_epoch(num_examples) // 1)

    def for_base(self, num_weights: int, sparsity: float, has_recovery: bool) -> "TrainConfig":
        """Return these settings with the learning rate, alpha and start that a base decides, where none is set.

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

    def num_seen(self, num_examples: int) -> int:
        """Return the examples of all steps of a training; the last step of an epoch may have fewer than a batch."""
        epochs, steps = divmod(self.num_steps(num_examples), max(self.steps_per_epoch(num_examples), 1))
        return epochs * num_examples + steps * self.batch_size

    @property
    def masks(self) -> bool:
        """Whether the adapter's product is masked by the zeros of the weight."""
        return self.sparse_adapter or self.quantize_aware != "none"
