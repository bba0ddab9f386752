"""The roads to a package: how many zeros, which number formats, and the recipe that makes each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from shears.checkpoints.packed.layout import NumberFormat
from shears.config import CompressConfig, ExportConfig, HealConfig, Recipe, SparsifyConfig, TrainConfig
from shears.config.fields import DtypeName
from shears.errors import InputError
from shears.models.fetching import gguf_named
from shears.runs.compress.losses import AddedLosses
from shears.runs.shapes import Shape
from shears.runtime.forecast import Forecast

BITS = {"bf16": 16, "keep": 16, "int8": 8, "int4": 4}
WITH_SENSITIVITY = ("admm", "sparsegpt")  # docs/explanation/pruning.md: 26.1 in place of 36.7 of Wanda
RULE = "fewer zeros first, then more bits a weight, then more bits an embedding"
MEASURED = "the sum of the losses that each sparsity and each format adds alone"


@dataclass(frozen=True)
class Candidate:
    """A package that could be made: zeros, formats and predictions (None: unknown).

    `added_loss` is in nats a token, above the loss of the dense model.
    """

    sparsity: float
    values: NumberFormat
    embeddings: str
    bytes: int
    bits_per_weight: float
    tokens_per_second: float | None
    added_loss: float | None = None

    @property
    def name(self) -> str:
        """The name of its run's folder, such as s50-int4-int8: sparsity, weights, embeddings."""
        form = "" if self.embeddings == "keep" else f"-{self.embeddings}"
        return f"s{100 * self.sparsity:g}-{self.values}{form}"

    def as_data(self) -> dict[str, Any]:
        """Return the candidate as plain data."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Candidate":
        """Return the candidate that `as_data` wrote."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


def all_candidates(config: CompressConfig, shape: Shape, forecast: Forecast | None) -> list[Candidate]:
    """Return every combination of sparsities and formats, with its size and speed."""
    found = []
    for sparsity, values, embeddings in product(config.sparsities, config.values, config.embeddings):
        size = shape.package_bytes(ExportConfig(format="package", values=values, embeddings=embeddings), sparsity)
        speed = forecast.tokens_per_second(sparsity, values, embeddings) if forecast else None
        found.append(Candidate(sparsity, values, embeddings, size, 8 * size / shape.parameters, speed))
    return found


def meeting(config: CompressConfig, candidates: Sequence[Candidate], weights: int) -> list[Candidate]:
    """Return the candidates predicted to meet the target; InputError names the nearest otherwise."""
    bound = config.bound
    kept = [each for each in candidates if bound.holds(each.bytes, weights, each.tokens_per_second)]
    if not kept:
        if bound.kind == "tokens/s":
            nearest = max(candidates, key=lambda each: each.tokens_per_second or 0.0)
        else:
            nearest = min(candidates, key=lambda each: each.bytes)
        raise InputError(
            f"the target must be within reach ({bound}); the nearest of {len(candidates)} candidates is "
            f"{nearest.name}: {figures_of(nearest)}; name a looser target, or more --sparsities or --values"
        )
    return kept


def figures_of(candidate: Candidate) -> str:
    """Return the size and the speed of a candidate in words."""
    speed = candidate.tokens_per_second
    words = f"{candidate.bytes / 1e9:.4g} GB, {candidate.bits_per_weight:.2f} bits a weight"
    return words if speed is None else f"{words}, {speed:.1f} tokens/s"


def ordered(candidates: Sequence[Candidate], losses: AddedLosses | None) -> list[Candidate]:
    """Return the candidates by expected loss, the least first: by MEASURED, else by RULE."""

    def by_rule(each: Candidate) -> tuple[float, int, int]:
        return each.sparsity, -BITS[each.values], -BITS[each.embeddings]

    if losses is None:
        return sorted(candidates, key=by_rule)
    told = [
        Candidate(**{**asdict(each), "added_loss": losses.added(each.sparsity, each.values, each.embeddings)})
        for each in candidates
    ]
    return sorted(told, key=lambda each: (each.added_loss, *by_rule(each)))


def dtype_of(model: str) -> DtypeName:
    """Return the number format in which a model is read: a .gguf file is converted in a package's widest."""
    return "auto" if gguf_named(model) is None else "bf16"


def recipe_of(candidate: Candidate, config: CompressConfig, model: str, text: str) -> Recipe:
    """Return the recipe that makes a candidate, calibrated and healed on the file `text`."""
    sampling: dict[str, Any] = {"num_samples": config.num_samples, "sequence_length": config.sequence_length,
                                "seed": config.seed}  # fmt: skip
    pruning: dict[str, Any] = {"method": config.method, "calibration": text}
    if config.method in WITH_SENSITIVITY:
        pruning["allocation"] = "sensitivity"
    dense: dict[str, Any] = {"method": "magnitude"}  # needs no text
    heal = _heal(config, text, candidate.values) if candidate.sparsity and config.heal else None
    on_grid = config.data is not None or (heal is not None and heal.quantize_aware != "none")
    rounds = candidate.values in ("int8", "int4") and not on_grid
    return Recipe(
        model=model,
        threads=config.threads,
        sparsify=SparsifyConfig(
            sparsity=candidate.sparsity, dtype=dtype_of(model), **sampling,
            **(pruning if candidate.sparsity else dense),
        ),
        heal=heal,
        train=_train(candidate, config, text),
        export=ExportConfig(
            format="package", values=candidate.values, embeddings=candidate.embeddings,
            calibration=text if rounds else None, **sampling,
        ),
    )  # fmt: skip


def _heal(config: CompressConfig, text: str, values: str) -> HealConfig:
    """Return how a pruned model is healed: on the grid of int4, if its package has int4 values."""
    assert config.heal is not None
    steps = HealConfig(data=text, tokens=config.heal, sequence_length=config.sequence_length).num_steps
    warmup = min(HealConfig.model_fields["warmup_steps"].default, steps - 1)
    return HealConfig(
        data=text, tokens=config.heal, sequence_length=config.sequence_length, teacher=config.teacher,
        warmup_steps=warmup, seed=config.seed, quantize_aware="int4" if values == "int4" else "none",
    )  # fmt: skip


def _train(candidate: Candidate, config: CompressConfig, text: str) -> TrainConfig | None:
    """Return how the adapter is trained: for the zeros and, if asked, for the grid of int4.

    It has one rank, the largest: it vanishes into the package, whose size and speed no smaller rank
    would change. The zeros mask a share of its product, which alpha makes up for.
    """
    if config.data is None:
        return None
    masked: dict[str, Any] = {"quantize_aware": "int4"} if candidate.values == "int4" else {"sparse_adapter": True}
    length: dict[str, Any] = {"max_steps": config.max_steps}
    options = TrainConfig.model_fields
    if config.max_steps is not None:
        length["warmup_steps"] = min(options["warmup_steps"].default, config.max_steps - 1)
    return TrainConfig(
        data=text if config.calibration is None else config.data, teacher=config.teacher, seed=config.seed,
        ranks=options["ranks"].default[:1],
        alpha=options["alpha"].default / (1 - candidate.sparsity), **masked, **length,
    )  # fmt: skip
