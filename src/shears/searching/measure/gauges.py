"""Gauges measure configurations part by part; a prefix gauge skips the blocks below the first that differs.

N examples of a part.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from jaxtyping import Float64
from torch import Tensor

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.errors import InputError
from shears.evaluation.scoring.prefix import Prefix, States, first_blocks, first_difference, kept_blocks, open_prefix
from shears.evaluation.scoring.score import plainly
from shears.evaluation.scoring.scorers import LossScorer, Scorer, Slopes
from shears.models.devices import autocast, device_of
from shears.models.sparse_adapter import is_sparse

logger = logging.getLogger(__name__)
TensorByExample = Float64[Tensor, " N"]


@runtime_checkable
class Gauge(Protocol):
    """Measures rank configurations on the parts of the validation examples.

    `sizes` are the numbers of examples of the parts, `width` is the number of configurations best measured together,
    `weights` are those of all examples, part after part.
    """

    sizes: list[int]
    width: int
    weights: TensorByExample

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[TensorByExample]:
        """Return each configuration's value of every example of a part."""

    def anchor(self, ranks: RankConfig) -> None:
        """Take the incumbent; the next configurations differ little from it."""
        return  # a default: with an empty body it would be abstract

    def slopes(self, ranks: RankConfig) -> Slopes | None:
        """Return how the values of all examples change around a configuration; None if they have no slopes."""
        return None


class WholeGauge(Gauge):
    """Measures configurations one by one, with every forward whole."""

    width = 1

    def __init__(self, elastic: ElasticAdapter, scorer: Scorer, precision: str) -> None:
        self.elastic = elastic
        self.scorer = scorer
        self.autocast = partial(autocast, precision, device_of(scorer.model))  # the context in which forwards run
        self.sizes = [len(part) for part in scorer.parts]
        self.weights = scorer.weights[[number for part in scorer.parts for number in part]]

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[TensorByExample]:
        """Return each configuration's value of every example of a part."""
        return [self._measure(ranks, part) for ranks in configs]

    def _measure(self, ranks: RankConfig, part: int) -> TensorByExample:
        self.elastic.activate(ranks)
        with self.autocast():
            return self.scorer.measure(part, plainly)

    def slopes(self, ranks: RankConfig) -> Slopes | None:
        """Return how the losses change around a configuration; None for accuracies, and if rows share their ranks."""
        if not isinstance(self.scorer, LossScorer) or is_sparse(self.elastic.model) or self.elastic.refuses_rows:
            return None  # accuracies have no slope, and a sparse adapter has one product for all rows
        with self.autocast():
            return self.scorer.slopes(self.elastic, ranks)


class PrefixGauge(WholeGauge):
    """Measures configurations one by one, each from the first block on in which it differs from the anchor.

    The inputs of the kept blocks are held for two configurations, the anchor and the one measured last, so that the
    latter can become the anchor at no cost. The anchor is measured on a part once another configuration is. The values
    have the bits of whole forwards.
    """

    def __init__(
        self, elastic: ElasticAdapter, scorer: Scorer, precision: str, prefix: Prefix, kept: Sequence[int]
    ) -> None:
        super().__init__(elastic, scorer, precision)
        self.prefix = prefix
        self.kept = tuple(kept)
        self._first = first_blocks(elastic.space.modules, prefix.name)
        self._anchor: _Inputs | None = None
        self._last: _Inputs | None = None

    def _measure(self, ranks: RankConfig, part: int) -> TensorByExample:
        if self._anchor is not None and self._anchor.ranks == ranks:
            values, self._anchor.parts[part] = self._run(ranks, part, self._anchor)
            return values
        if self._anchor is not None:
            self._complete(self._anchor, part)
        if self._last is None or self._last.ranks != ranks:
            self._last = None  # frees its memory first
            self._last = _Inputs(ranks, {})
        values, self._last.parts[part] = self._run(ranks, part, self._anchor)
        return values

    def _complete(self, anchor: "_Inputs", part: int) -> None:
        """Compute the inputs of all kept blocks of the anchor; those inherited from the anchor before end early."""
        if part not in anchor.parts or anchor.parts[part].top < len(self.prefix):
            _, anchor.parts[part] = self._run(anchor.ranks, part, anchor)

    def _run(self, ranks: RankConfig, part: int, below: "_Inputs | None") -> "tuple[TensorByExample, _PartInputs]":
        """Measure from the first block on whose inputs differ from those held of the configuration `below`."""
        self.elastic.activate(ranks)
        before = below.parts.get(part) if below is not None else None
        first = min(self._first_difference(ranks, below.ranks), before.top) if below and before else 0
        start = max((block for block in self.kept if block <= first), default=0)
        states = list[States]()

        def run(forward: Callable[[], Tensor]) -> Tensor:
            known = _up_to(start, before.states[len(states)]) if before is not None else {}
            with self.prefix.starting(start, known, self.kept) as seen:
                result = forward()
            states.append({**known, **seen})
            return result

        with self.autocast():
            values = self.scorer.measure(part, run)
        return values, _PartInputs(len(self.prefix), states)

    def _first_difference(self, ranks: RankConfig, others: RankConfig) -> int:
        return first_difference(self._first, ranks, others, len(self.prefix))

    def anchor(self, ranks: RankConfig) -> None:
        """Make a configuration the anchor; it inherits the inputs below its first difference from the anchor before."""
        before = self._anchor
        if before is not None and before.ranks == ranks:
            return
        inputs = self._last if self._last is not None and self._last.ranks == ranks else _Inputs(ranks, {})
        if before is not None:
            first = self._first_difference(ranks, before.ranks)
            for part, known in before.parts.items():
                top = min(first, known.top)
                inputs.parts.setdefault(part, _PartInputs(top, [_up_to(top, states) for states in known.states]))
        self._anchor = inputs
        self._last = None


@dataclass(frozen=True)
class _PartInputs:
    """The inputs of the kept blocks up to and with block `top`, forward by forward of a part."""

    top: int
    states: list[States]


@dataclass
class _Inputs:
    """The inputs of the kept blocks under a configuration, part by part."""

    ranks: RankConfig
    parts: dict[int, _PartInputs]


def _up_to(top: int, states: States) -> States:
    return {block: tensor for block, tensor in states.items() if block <= top}


def open_gauge(elastic: ElasticAdapter, scorer: Scorer, precision: str, budget: int) -> WholeGauge:
    """Return a gauge that keeps at most `budget` bytes of hidden states, or a plain one if none can be kept."""
    whole = WholeGauge(elastic, scorer, precision)
    if not budget:
        return whole
    try:
        with whole.autocast():
            trial = scorer.trial()
            prefix = open_prefix(scorer.model, trial.first, trial.second)
    except InputError as error:
        logger.info("every evaluation computes all blocks: no forward of this model can begin in the middle: %s", error)
        return whole
    size = 2 * scorer.num_positions() * prefix.bytes_per_position
    kept = kept_blocks(len(prefix), size, budget)
    if not kept:
        logger.info(
            "every evaluation computes all blocks: the inputs of one take %.2g GB, the cache has %.2g",
            size / 1e9, budget / 1e9,
        )  # fmt: skip
        return whole
    logger.info("the inputs of %d of %d blocks are kept: up to %.2g GB", len(kept), len(prefix), len(kept) * size / 1e9)
    return PrefixGauge(elastic, scorer, precision, prefix, kept)
