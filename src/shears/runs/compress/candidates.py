"""The candidates for a package: how many zeros and which number formats, with predicted figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from shears.checkpoints.packed.layout import NumberFormat
from shears.config import CompressConfig, ExportConfig
from shears.config.compress_options import Bound
from shears.errors import InputError
from shears.runs.compress.added_losses import BITS, AddedLosses
from shears.runs.shapes import Shape
from shears.runtime.forecast import Forecast

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


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without a smaller one that is expected to lose no more, the smallest first."""
    kept: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.bytes, each.added_loss or 0.0)):
        if not kept or (each.added_loss or 0.0) < (kept[-1].added_loss or 0.0):
            kept.append(each)
    return kept


def smallest_enough(candidates: Sequence[Candidate], measured: Sequence[Mapping[str, Any]]) -> Candidate | None:
    """Return the middle of the front's part in which the smallest sufficient package must be; None if it is known."""
    line = front(candidates)
    places = {each.name: number for number, each in enumerate(line)}
    low, high = 0, len(line) - 1
    for each in measured:
        if each["holds"]:
            high = min(high, places[each["name"]] - 1)
        else:
            low = max(low, places[each["name"]] + 1)
    return line[(low + high) // 2] if low <= high else None


def best(figures: Sequence[Mapping[str, Any]], bound: Bound) -> Mapping[str, Any] | None:
    """Return the package to choose of those that hold the bound; None if none does.

    It has the most right answers, and is the first or, at equal answers, the smaller one. With a
    bound on answers it is the smallest.
    """
    holding = [each for each in figures if each["holds"]]
    if bound.kind == "points":
        return min(holding, key=lambda each: each["bytes"], default=None)
    return max(
        holding, key=lambda each: ((each.get("answers") or {}).get("accuracy", 0.0), -each["bytes"]), default=None
    )


def following(
    promising: Sequence[Candidate], measured: Sequence[Mapping[str, Any]], bound: Bound, weights: int
) -> Candidate | None:
    """Return the next candidate to make, None at the end.

    With a bound on answers, the bisection of `smallest_enough`. Else the first candidate, until one
    holds: the first that meets the target if predictions err as they did last time. If none does
    then, the smallest or the fastest that is left, unless that is no better than what was tried.
    """
    if bound.kind == "points":
        return smallest_enough(promising, measured)
    if any(each["holds"] for each in measured):
        return None
    if not measured:
        return promising[0]
    last = measured[-1]
    names = {each["name"] for each in measured}
    left = [each for each in promising if each.name not in names]
    before = next(each for each in promising if each.name == last["name"])
    larger = last["bytes"] / before.bytes
    is_speed = bound.kind == "tokens/s"
    faster = (last["tokens_per_second"] or 0.0) / before.tokens_per_second if before.tokens_per_second else 1.0
    for each in left:
        speed = each.tokens_per_second * faster if each.tokens_per_second is not None else None
        if bound.holds(each.bytes * larger, weights, speed):
            return each
    rest = [each for each in left if (_speed(each) > _speed(before) if is_speed else each.bytes < before.bytes)]
    return min(rest, key=lambda each: -_speed(each) if is_speed else each.bytes, default=None)


def _speed(candidate: Candidate) -> float:
    return candidate.tokens_per_second or 0.0
