"""How to train the super-adapter."""

from types import MappingProxyType
from typing import Literal

from pydantic import Field, field_validator, model_validator

from shears.config.fields import Device, Names, Ranks, Removed, Seed, StageConfig

TRACKERS = ("tensorboard", "trackio", "wandb")


class TrainConfig(StageConfig):
    """How to train the super-adapter on the frozen sparse model."""

    REMOVED = MappingProxyType(
        {"distill": Removed(0.0, "0.1.0", "train without it, it gained nothing; sampling sandwich trains all sizes")}
    )
    data: str
    """Training examples: a JSON, JSONL, CSV or Parquet file, a hub id, or the embedded arithmetic:train."""
    ranks: Ranks = (32, 24, 16)
    """Allowed ranks of every group, largest first; a single one is plain LoRA."""
    groups: Names = ("q_proj+k_proj+v_proj", "up_proj", "down_proj")
    """Linears that carry an adapter; those joined by + share one rank in each decoder block. These are Llama's: name
    those of other architectures (c_attn and c_proj, fc1 and fc2) as inspect lists them; stacked experts take none."""
    alpha: float = Field(64.0, gt=0)
    """LoRA alpha; every rank is scaled by alpha / max_rank."""
    init: Literal["lora", "recovery", "pissa"] = "lora"
    """Start: lora (PEFT's own, no change of the model), recovery (what pruning took away, see sparsify --recover-rank)
    or pissa (the sparse weights' principal components; a control, one rank only, saved at twice the rank)."""
    sampling: Literal["uniform", "sandwich", "per-example", "per-process", "maximal"] = "uniform"
    """Rank configurations: uniform (one a step), per-process (one a step and process), per-example (one an example),
    sandwich (a quarter of the examples at the largest ranks, a quarter at the smallest, the others at random) or
    maximal (always the largest: plain LoRA, see reorder)."""
    reorder: bool = False
    """After training at the largest ranks, order components by size, so that smaller ranks are cut at little loss."""
    curriculum: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the steps over which the smaller ranks join in, one after the other; 0: all from the beginning."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Hold the frozen linears in 4 (nf4) or 8 bits while training, by bitsandbytes: less memory, zeros stay zeros. The
    adapter belongs to the model as it is in its folder."""
    sparse_adapter: bool = False
    """SparsePEFT: mask the adapter's product by the zeros of the weight, so that merging keeps every zero. At 50 %
    the mask halves the product: take twice the alpha."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapters' inputs."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the training examples."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps; overrides epochs."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate (AdamW, linear decay)."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises to its peak, from 0 at the first; a training must have more."""
    batch_size: int = Field(16, gt=0)
    """Examples in an optimizer step."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Examples in one forward; a smaller one saves memory (gradients accumulate). Must divide batch_size."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    recompute: bool = True
    """Keep matrix products for the backward pass and recompute what lies between them: much less memory, a
    seventh to a third more time (most on processors with AMX). Gradient checkpointing and compile have ways of
    their own."""
    shard: bool = False
    """Of several processes, let each hold a part of the frozen weights only, block by block gathered where needed
    (FSDP2): for models that one GPU cannot hold."""
    packing: bool = True
    """Join examples in one row, kept apart by their positions; off where a model cannot (it is tried first). Batches
    are then of about equal lengths, so that examples come in another order."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, worth it on a GPU."""
    max_length: int = Field(512, gt=1)
    """Tokens in an example; longer ones are left out and counted."""
    train_on: Literal["completion", "all"] = "completion"
    """Tokens that carry the loss."""
    template: Literal["question", "alpaca"] = "question"
    """Prompt template of instruction/input/output rows, in training and in evaluation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic: auto is bf16 autocast where the processor has it, else fp32; in fp32 a 16-bit base, held as it is,
    still computes in its own number format."""
    report_to: Names = ()
    """Trackers that see loss and learning rate of every step: tensorboard, trackio, wandb; by default none."""
    save_steps: int = Field(50, gt=0)
    """Optimizer steps between two checkpoints; an interruption loses no more than these."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: Seed = 0
    """Seed of the initial adapter, the order of the examples and the ranks drawn at every step."""

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
                f"init pissa moves a part of the model into the adapter, so it needs one rank, got {len(self.ranks)}"
            )
        if self.reorder and self.sampling != "maximal" and len(self.ranks) > 1:
            raise ValueError(f"reorder undoes what smaller ranks learnt: sampling must be maximal, got {self.sampling}")
        if self.shard and (self.quantize != "none" or self.compile):
            raise ValueError("shard needs plain weights and blocks that are not compiled: quantize none, no compile")
        if self.quantize != "none" and (self.sparse_adapter or self.init == "pissa"):
            raise ValueError(
                f"sparse_adapter and init pissa need plain weights: quantize must be none, got {self.quantize}"
            )
        if self.sparse_adapter:
            self._check_sparse_adapter()
        return self

    @field_validator("report_to")
    @classmethod
    def _check_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in TRACKERS]:
            raise ValueError(f"must be of {', '.join(TRACKERS)}, got {unknown[0]!r}")
        return value

    def _check_sparse_adapter(self) -> None:
        if self.sampling in ("per-example", "sandwich"):
            raise ValueError(
                f"sparse_adapter has one product a step: sampling must be uniform or per-process, got {self.sampling}"
            )
        if self.dropout or self.init == "pissa":
            raise ValueError("sparse_adapter needs dropout 0 and init lora or recovery")
