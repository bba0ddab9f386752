"""The candidates for a package: predicted figures, the effort of their stages and their recipes.

The amounts of an effort follow docs/internals/log.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shears.checkpoints.packed_layout import NumberFormat
from shears.checkpoints.tensor_files import TensorFiles
from shears.config import CompressConfig, ExportConfig, HealConfig, Recipe, SparsifyConfig, TrainConfig
from shears.config.compress_options import Bound, EffortName
from shears.config.fields import DtypeName
from shears.errors import InputError
from shears.models.ref import ModelRef, gguf_named
from shears.runs.shapes import Shape
from shears.runtime.forecast import Forecast

BITS = {"bf16": 16, "keep": 16, "int8": 8, "int4": 4}
BATCH: int = TrainConfig.model_fields["batch_size"].default
FEWEST_STEPS = 10  # below this a training teaches nothing
LENGTH = 512  # tokens of a calibration sequence and of a held-out window, at most
FEWEST_SEQUENCES = 4  # of a text: a step of healing takes so many
RULE = "fewer zeros first, then more bits per weight, then more bits per embedding"


@dataclass(frozen=True)
class Candidate:
    """A package that could be made: zeros, formats and predictions (None: unknown)."""

    sparsity: float
    values: NumberFormat
    embeddings: str
    bytes: int
    bits_per_weight: float
    tokens_per_second: float | None

    @property
    def name(self) -> str:
        """The name of its run's folder, such as s50-int4-int8: sparsity, weights, embeddings."""
        form = "" if self.embeddings == "keep" else f"-{self.embeddings}"
        return f"s{100 * self.sparsity:g}-{self.values}{form}"


def all_candidates(config: CompressConfig, shape: Shape, forecast: Forecast | None) -> list[Candidate]:
    """Return each sparsity in each format, with its size and speed, in the order of RULE."""
    found = []
    for sparsity, values, embeddings in product(config.sparsities, config.dtypes, config.embedding_dtypes):
        export = ExportConfig(format="package", dtype=values, embedding_dtype=embeddings)
        size = shape.package_bytes(export, sparsity)
        speed = forecast.tokens_per_second(sparsity, values, embeddings) if forecast else None
        found.append(Candidate(sparsity, values, embeddings, size, 8 * size / shape.parameters, speed))
    return sorted(found, key=lambda each: (each.sparsity, -BITS[each.values], -BITS[each.embeddings]))


def meeting(bound: Bound, candidates: Sequence[Candidate], weights: int) -> list[Candidate]:
    """Return the candidates predicted to meet a bound; InputError names the nearest otherwise."""
    kept = [each for each in candidates if bound.holds(each.bytes, weights, each.tokens_per_second)]
    if not kept:
        by_speed = bound.kind == "tokens/s"
        nearest = min(candidates, key=lambda each: -(each.tokens_per_second or 0.0) if by_speed else each.bytes)
        raise InputError(
            f"no candidate is predicted to meet the target ({bound}); the nearest of {len(candidates)} candidates is "
            f"{nearest.name} with {figures_of(nearest)}; set a looser target, or try more --sparsities or --dtypes"
        )
    return kept


def figures_of(candidate: Candidate) -> str:
    speed = candidate.tokens_per_second
    words = f"{candidate.bytes / 1e9:.4g} GB, {candidate.bits_per_weight:.2f} bits per weight"
    return words if speed is None else f"{words}, {speed:.1f} tokens/s"


def following(
    promising: Sequence[Candidate], measured: Sequence[Mapping[str, Any]], bound: Bound, weights: int
) -> Candidate | None:
    """Return the next candidate to make: the first that should meet the bound; None at the end.

    After one that missed, predictions are taken to err as its own did.
    """
    if not measured:
        return promising[0]
    last = measured[-1]
    before = next(each for each in promising if each.name == last["name"])
    larger = last["bytes"] / before.bytes
    faster = last["tokens_per_second"] / before.tokens_per_second if before.tokens_per_second else 1.0
    tried = [each["name"] for each in measured]
    for each in promising if not last["holds"] else ():
        speed = None if each.tokens_per_second is None else each.tokens_per_second * faster
        if each.name not in tried and bound.holds(each.bytes * larger, weights, speed):
            return each
    return None


def best(packages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name of the best package within the bound: most right answers, then smallest."""
    holding = [each for each in packages if each["holds"]]
    chosen = max(holding, key=lambda each: ((each["answers"] or {}).get("accuracy", 0.0), -each["bytes"]), default=None)
    return None if chosen is None else str(chosen["name"])


class Amounts(NamedTuple):
    """What can be read: rows to train on, their mean tokens, tokens of the texts, questions."""

    rows: int
    row_tokens: float
    text_tokens: int
    held_out_tokens: int
    questions: int


@dataclass(frozen=True)
class Effort:
    """What the stages do. `heal` is in tokens, `steps` those of every training; 0: left out."""

    name: EffortName
    method: Literal["admm", "wanda"]
    num_samples: int
    sequence_length: int
    heal: int
    steps: int
    teaches: bool
    rival: bool


SCALES: dict[EffortName, tuple[int, ...]] = {
    "quick": (16, 1, 40, 120, 5, 0),
    "usual": (64, 3, 120, 600, 10, 100_000),
    "thorough": (128, 3, 200, 2000, 15, 500_000),
}
"""Sequences, epochs, the fewest and the most steps, the most epochs, and tokens to heal on."""


def efforts(amounts: Amounts, context: int | None = None) -> dict[EffortName, Effort]:
    """Return quick, usual and thorough for these amounts, in sequences that fit the context."""
    length = min(LENGTH, context or LENGTH, max(amounts.text_tokens // FEWEST_SEQUENCES, 2))
    epoch = -(-amounts.rows // BATCH)
    found = dict[EffortName, Effort]()
    for name, (samples, epochs, fewest, most, most_epochs, most_healed) in SCALES.items():
        steps = min(max(epochs * epoch, fewest), most_epochs * epoch, most)
        heal = max(min(most_healed, 4 * amounts.text_tokens), FEWEST_SEQUENCES * length)  # more epochs give little
        found[name] = Effort(
            name=name, method="admm", num_samples=samples, sequence_length=length,
            heal=heal if most_healed and not amounts.rows else 0,
            steps=max(steps, FEWEST_STEPS) if amounts.rows else 0,
            teaches=name == "thorough" and amounts.rows > 0, rival=amounts.questions > 0,
        )  # fmt: skip
    return found


def dtype_of(model: ModelRef) -> DtypeName:
    """Return the number format in which stages read a model; a .gguf file's is its conversion's."""
    if gguf_named(model.name) is None:
        return "auto"
    files = TensorFiles(model.folder)
    return "bf16" if any(str(files.dtype(name)) == "torch.bfloat16" for name in files.names) else "auto"


def recipe_of(candidate: Candidate, effort: Effort, model: ModelRef, text: Path, teacher: Path | None) -> Recipe:
    """Return the recipe of a candidate on the CPU, calibrated, healed and trained on `text`."""
    source = str(text)
    sampling: dict[str, Any] = {
        "num_samples": effort.num_samples, "sequence_length": effort.sequence_length, "device": "cpu"
    }  # fmt: skip
    is_int4 = candidate.values == "int4"
    prunes = candidate.sparsity > 0
    pruning = {"method": effort.method, "calibration": source} if prunes else {"method": "magnitude"}  # needs no text
    heal = train = None
    if effort.heal and prunes:
        heal = HealConfig(
            data=source, tokens=effort.heal, sequence_length=effort.sequence_length,
            quantize_aware="int4" if is_int4 else "none", device="cpu",
        )  # fmt: skip
    if effort.steps:
        train = training_of(effort, text, teacher=teacher and str(teacher), **training_for(candidate))
    is_rounded = is_int4 and not heal and (train is None or train.quantize_aware == "none")
    return Recipe(
        model=model.name,
        sparsify=SparsifyConfig(sparsity=candidate.sparsity, dtype=dtype_of(model), **sampling, **pruning),
        heal=heal,
        train=train,
        export=ExportConfig(
            format="package", dtype=candidate.values, embedding_dtype=candidate.embeddings,
            calibration=source if is_rounded else None, **sampling,
        ),
    )  # fmt: skip


def training_for(candidate: Candidate) -> dict[str, Any]:
    """Return the options of a training whose adapter is merged into a package.

    Sparse int4 is trained on rounded weights. Dense int4 is rounded afterwards, with the inputs of
    the rows, which answers more (docs/internals/log.md, "Four bits").
    """
    on_grid = candidate.values == "int4" and candidate.sparsity > 0
    return {"quantize_aware": "int4"} if on_grid else {"sparse_adapter": True}


def training_of(effort: Effort, text: Path, **others: Any) -> TrainConfig:
    """Return the training, on the CPU, of an adapter of one rank, which is merged."""
    return TrainConfig(data=str(text), max_steps=effort.steps, device="cpu", **others)
