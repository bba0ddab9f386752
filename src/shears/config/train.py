"""Options of `shears train`: how to train the super-adapter."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from shears.config.fields import Columns, Device, DtypeName, Names, Ranks, Seed, Source, StageConfig

AUTO = "auto"  # the groups that the model's structure gives
TRACKERS = ("mlflow", "tensorboard", "trackio", "wandb")
AdapterName = Literal["lora", "polar", "lokr"]
LOKR_LACKS: Mapping[str, str] = {
    "init": "no Kronecker product of its form is the recovery's or the principal components' product",
    "sparse_adapter": "SparsePEFT masks the product of LoRA's factors",
    "quantize": "PEFT's LoKr needs the shape of plain weights",
    "dropout": "PEFT's LoKr has none on its inputs",
    "reorder": "components of a Kronecker product are not those of the update",
}
"""The options that LoKr has not, and why."""
SamplingName = Literal["uniform", "sandwich", "per-example", "per-process", "maximal", "nested"]


class TrainConfig(StageConfig):
    """How to train the super-adapter on the frozen sparse model."""

    data: str
    """Training examples: a JSON, JSONL, CSV or Parquet file, a hub id, or the embedded arithmetic:train."""
    columns: Columns = Field({})
    """Columns of the data, and of a validation file, that stand for those of a known form of row, such as
    prompt=question,completion=answer."""
    ranks: Ranks = (32, 24, 16)
    """Allowed ranks of every group, largest first; a single rank is plain LoRA, and the default with quantize_aware
    (32): no rank makes that package smaller, and several cost it accuracy."""
    groups: Names = (AUTO,)
    """Linears that get an adapter; those joined by + share one rank in each decoder block. auto: queries, keys and
    values, the first and the second linear of the MLP, whatever they are called: q_proj+k_proj+v_proj,up_proj,down_proj
    in Llama, attn.c_attn,mlp.c_fc,mlp.c_proj in GPT-2. Stacked experts get no adapter."""
    adapter: AdapterName = "lora"
    """Form of the adapter: lora (B A), polar (PoLAR: X C Y^T, its directions X and Y held orthonormal while training;
    saved as LoRA with B = X C and A = Y^T) or lokr (PEFT's LoKr: the Kronecker product of a small full matrix and a
    low-rank one; a rank costs fewer parameters than of LoRA by the factor decompose_factor). On a CPU a
    step of polar takes five times one of lora, of lokr 1.3 times; at equal parameters polar has no lower
    validation loss than lora, lokr a slightly lower one."""
    decompose_factor: int = Field(4, ge=2)
    """Rows and columns of LoKr's full matrix, or their nearest divisor of a linear's sides; without effect on other
    adapters."""
    alpha: float = Field(64.0, gt=0)
    """LoRA alpha; the adapter is scaled by alpha / max_rank at every rank."""
    init: Literal["lora", "recovery", "pissa"] = "lora"
    """Initial adapter: lora (PEFT's own, leaves the model unchanged), recovery (restores what pruning removed, see
    sparsify --recover-rank; best for the largest ranks) or pissa (principal components of the sparse weights; a control
    that allows one rank only and is saved at twice the rank)."""
    sampling: SamplingName = "nested"
    """Which ranks a step trains: nested (all of them, by a fixed diagonal between the factors that weighs a component
    by the share of the ranks that contain it), uniform (one configuration at random, as in the paper; the default with
    curriculum or quantize_aware), per-process (one per process), per-example (one per example), sandwich (a quarter of
    the examples at the largest ranks, a quarter at the smallest, the others at random) or maximal (the largest: plain
    LoRA, see reorder)."""
    reorder: bool = False
    """After training at the largest ranks, sort the components by size, so that cutting ranks loses little."""
    curriculum: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the steps over which the smaller ranks are added, one after the other; 0: all from the first step."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Hold the frozen linears in 4 (nf4) or 8 bits (int8) while training, by bitsandbytes: less memory, and zeros
    stay zeros. The adapter belongs to the unquantized model in the folder."""
    sparse_adapter: bool = False
    """SparsePEFT: mask the adapter's product by the zeros of the weight, so that merging keeps every zero. At a
    sparsity of 0.5 the mask halves the product: double alpha."""
    quantize_aware: Literal["none", "int4"] = "none"
    """QA-SparsePEFT: int4 trains the weights that a package of int4 values will hold, adapter merged, zeros kept and
    rounded, so that export --format package is exact."""
    learn_scales: bool = False
    """With quantize_aware: train the scale of every row and 128 inputs too; they start at those of the weights."""
    teacher: str | None = None
    """Model whose predictions the adapter also learns on every token with loss: the dense one, or the folder of an
    adapter that was trained on it. Its predictions are computed once and kept beside the data."""
    teacher_weight: float = Field(0.5, ge=0.0, le=1.0)
    """Weight of the divergence from the teacher's predictions; the labels' loss has the rest."""
    teacher_top_k: int = Field(64, gt=0)
    """Words that are kept of each prediction of the teacher, the likeliest; the others count as one."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' inputs."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the training examples."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps; overrides epochs."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after warmup: linear (falls to 0 at the last step), cosine (half a cosine to 0) or
    constant."""
    weight_decay: float = Field(0.0, ge=0.0, lt=1.0)
    """AdamW's decay: each step shrinks the adapter's weights by this share of the learning rate."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0 to its peak; must be below the number of steps."""
    batch_size: int = Field(16, gt=0)
    """Examples in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Examples in one forward pass; must divide batch_size. Fewer examples need less memory (gradients accumulate)."""
    gradient_checkpointing: bool = False
    """Recompute all activations in the backward pass: less memory, about a third slower."""
    recompute: bool = True
    """Keep only the results of matrix products for the backward pass and recompute the rest: much less memory, a
    seventh to a third more time (most on processors with AMX). Has no effect with gradient_checkpointing or
    compile."""
    shard: bool = False
    """With several processes, each holds a part of the frozen weights and gathers one block at a time (FSDP2): for
    models that do not fit on one GPU."""
    packing: bool = True
    """Pack several examples into one row, separated by their positions; turned off if a test shows that the model
    does not support it. Batches then have about equal lengths, so examples come in another order."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, pays off on a GPU."""
    max_length: int = Field(512, gt=1)
    """Largest number of tokens in an example; longer examples are skipped and counted."""
    train_on: Literal["completion", "all"] = "completion"
    """Tokens that the loss is computed on."""
    validation: Source | None = None
    """Validation examples, whose loss is measured at the largest ranks without dropout: a source of rows like data, or
    a share of the training rows such as 0.05, which is then not trained on."""
    validation_every: int | None = Field(None, gt=0)
    """Optimizer steps between two validations; default: an epoch. The last step is always validated."""
    early_stopping: int | None = Field(None, gt=0)
    """Stop after this many validations in a row without a lower loss; the result is the adapter with the lowest."""
    template: Literal["question", "alpaca"] = "question"
    """Prompt template of instruction/input/output rows, in training and in evaluation."""
    precision: DtypeName = "auto"
    """Arithmetic; auto: bf16 autocast where the processor supports it, else fp32. A 16-bit base model computes in its
    own number format even with fp32."""
    report_to: Names = ()
    """Trackers that receive loss and learning rate of every step: mlflow, tensorboard, trackio, wandb; default:
    none."""
    save_steps: int = Field(50, gt=0)
    """Optimizer steps between two checkpoints; an interruption loses at most this many."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: Seed = 0
    """Random seed of the initial adapter, the order of the examples and the ranks drawn at every step."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, values: Any) -> Any:
        """Give ranks and sampling the defaults that follow from other options.

        An adapter that vanishes into a package has one rank, the largest; where nested sampling is refused, ranks are
        drawn uniformly.
        """
        if not isinstance(values, Mapping):
            return values
        merged = values.get("quantize_aware", "none") != "none"
        draws = not _is_zero(values.get("curriculum", 0))
        follow: dict[str, Any] = {"sampling": "uniform"} if merged or draws else {}
        if merged and not draws:
            follow["ranks"] = cls.model_fields["ranks"].default[:1]
        return {**follow, **values}

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if list(self.ranks) != sorted(set(self.ranks), reverse=True):
            raise ValueError(f"ranks must be distinct and largest first, got {','.join(map(str, self.ranks))}")
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"micro_batch_size must divide batch_size ({self.batch_size}), got {self.micro_batch_size}"
            )
        if self.init == "pissa" and len(self.ranks) > 1:
            raise ValueError(
                "init pissa needs one rank, because it moves a part of the model into the adapter, "
                f"got {len(self.ranks)}; set one rank or init lora"
            )
        if self.curriculum and self.sampling == "nested":
            raise ValueError(
                "curriculum needs a sampling that draws ranks, got nested, which trains all of them in every step; "
                "set curriculum 0 or another sampling"
            )
        if self.reorder and self.sampling != "maximal" and len(self.ranks) > 1:
            raise ValueError(
                f"reorder needs sampling maximal, because it undoes what smaller ranks learnt, got {self.sampling}"
            )
        self._check_adapter()
        self._check_plain_weights()
        self._check_sparse_adapter()
        self._check_validation()
        return self

    @property
    def validation_share(self) -> float | None:
        """The share of the training rows that is held out for validation; None for a source of its own, or none."""
        return share_of(self.validation) if self.validation is not None else None

    @field_validator("report_to")
    @classmethod
    def _check_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_trackers(value)

    @property
    def masks(self) -> bool:
        """Whether the adapter's product is masked by the zeros of the weight."""
        return self.sparse_adapter or self.quantize_aware != "none"

    @property
    def _masked_by(self) -> str:
        """The option that masks the product, for messages."""
        return "sparse_adapter" if self.quantize_aware == "none" else f"quantize_aware {self.quantize_aware}"

    def _check_adapter(self) -> None:
        untried = {"shard": self.shard, "compile": self.compile, "quantize_aware": self.quantize_aware != "none"}
        if self.adapter != "lora" and (name := next((name for name, is_set in untried.items() if is_set), None)):
            raise ValueError(f"{name} is tried with adapter lora only, got adapter {self.adapter}; leave {name} out")
        if self.adapter == "polar" and self.weight_decay:
            raise ValueError(
                "adapter polar needs weight_decay 0, because its directions keep their lengths, "
                f"got {self.weight_decay:g}; set it to 0"
            )
        for name, reason in LOKR_LACKS.items():
            value = getattr(self, name)
            if self.adapter == "lokr" and value != type(self).model_fields[name].default:
                raise ValueError(f"adapter lokr needs the default of {name}, because {reason}, got {value}")

    def _check_plain_weights(self) -> None:
        if self.shard and (self.quantize != "none" or self.compile):
            raise ValueError(
                "shard needs plain weights and blocks that are not compiled: quantize none and no compile, got "
                f"quantize {self.quantize}{' and compile' * self.compile}"
            )
        if self.quantize != "none" and (self.masks or self.init == "pissa"):
            first = self._masked_by if self.quantize_aware != "none" else "sparse_adapter and init pissa"
            verb = "needs" if self.quantize_aware != "none" else "need"
            raise ValueError(f"{first} {verb} plain weights: quantize must be none, got {self.quantize}")

    @property
    def validation_source(self) -> str | None:
        """The source of validation examples; None for a share of the training rows, or none."""
        return self.validation if self.validation_share is None else None

    def _check_validation(self) -> None:
        for name in ("validation_every", "early_stopping"):
            if self.validation is None and getattr(self, name) is not None:
                raise ValueError(f"{name} needs validation, got none; add a file, or a share of the rows such as 0.05")
        if self.validation == self.data:
            raise ValueError(f"validation must be other examples than data, both are {self.data}; give a share of them")
        share = self.validation_share
        if share is not None and not 0 < share < 1:
            raise ValueError(f"validation must be a source of rows or a share between 0 and 1, got {share:g}")

    def _check_sparse_adapter(self) -> None:
        if self.learn_scales and self.quantize_aware == "none":
            raise ValueError("learn_scales trains the scales of quantize_aware, got none; add quantize_aware int4")
        if not self.masks:
            return
        if self.quantize_aware != "none" and self.sampling == "nested":
            raise ValueError(
                "quantize_aware needs the product that is exported, to the bit, and nested sampling weighs components "
                "that are folded at the end: sampling must be uniform, per-process or maximal, got nested"
            )
        if self.sampling in ("per-example", "sandwich"):
            raise ValueError(
                f"{self._masked_by} computes one product per step: sampling must be uniform, per-process, maximal or "
                f"nested, got {self.sampling}"
            )
        if self.dropout or self.init == "pissa":
            raise ValueError(
                f"{self._masked_by} needs dropout 0 and init lora or recovery, "
                f"got dropout {self.dropout:g} and init {self.init}"
            )


def known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names; ValueError for one that is no tracker."""
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ValueError(f"must be of {', '.join(TRACKERS)}, got {unknown[0]!r}")
    return names


def share_of(source: str) -> float | None:
    """Return the number that a source of validation examples is, None for a file or a data set."""
    try:
        return float(source)
    except ValueError:
        return None


def _is_zero(value: object) -> bool:
    """Tell whether a value that is not checked yet, such as the text 0.00, is the number zero."""
    return share_of(str(value)) == 0
