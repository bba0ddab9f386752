"""How configurations are measured part by part: with what is below their first difference left out, or many in a batch.

N examples of a part.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float64
from torch import Tensor

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.adapt.sparse_adapter import is_sparse
from shears.errors import InputError
from shears.evaluation.prefix import Prefix, States, first_blocks, kept_blocks, open_prefix
from shears.evaluation.running import plainly
from shears.evaluation.score import device_of
from shears.evaluation.scorers import LossScorer, Scorer
from shears.evaluation.slopes import Slopes
from shears.models import autocast

logger = logging.getLogger(__name__)
Values = Float64[Tensor, " N"]


@runtime_checkable
class Gauge(Protocol):
    """Measures rank configurations on the parts of the validation examples.

    `sizes` are the numbers of examples of the parts, `width` is how many configurations are measured together at best.
    `weights` say how much each example counts, part after part.
    """

    sizes: list[int]
    width: int
    weights: Values

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Values]:
        """Return each configuration's value of every example of a part."""

    def anchor(self, ranks: RankConfig) -> None:
        """Take a configuration as the one that the next ones differ little from."""

    def slopes(self, ranks: RankConfig) -> Slopes | None:
        """Return how the values of all examples change around a configuration; None where that is not to be had."""


class WholeGauge:
    """Measures configurations one by one, with every forward whole."""

    width = 1

    def __init__(self, elastic: ElasticAdapter, scorer: Scorer, precision: str) -> None:
        self.elastic, self.scorer = elastic, scorer
        self._precision, self._device = precision, device_of(scorer.model)
        self.sizes = [len(part) for part in scorer.parts]
        self.weights = scorer.weights[[number for part in scorer.parts for number in part]]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what forwards run in."""
        return autocast(self._precision, self._device)

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Values]:
        """Return each configuration's value of every example of a part."""
        return [self._measure(ranks, part) for ranks in configs]

    def _measure(self, ranks: RankConfig, part: int) -> Values:
        self.elastic.activate(ranks)
        with self.autocast():
            return self.scorer.measure(part, plainly)

    def anchor(self, ranks: RankConfig) -> None:
        """Nothing is kept."""

    def slopes(self, ranks: RankConfig) -> Slopes | None:
        """Return how the losses change around a configuration; None for accuracies, and for a sparse adapter."""
        if not isinstance(self.scorer, LossScorer) or is_sparse(self.elastic.model):
            return None  # accuracies jump, and a sparse adapter has one product for all rows
        with self.autocast():
            return self.scorer.slopes(self.elastic, ranks)


class PrefixGauge(WholeGauge):
    """Measures configurations one by one, each from the first block on in which it differs from the anchor.

    What went into the kept blocks is held for two configurations, the anchor and the one measured last, so that the
    latter becomes the anchor at no cost; `budget` bytes are for both. The values have the bits of whole forwards.
    """

    def __init__(
        self, elastic: ElasticAdapter, scorer: Scorer, precision: str, prefix: Prefix, kept: Sequence[int]
    ) -> None:
        super().__init__(elastic, scorer, precision)
        self.prefix, self.kept = prefix, tuple(kept)
        self._first = first_blocks(elastic.space.modules, prefix.name)
        self._anchor: _Tape | None = None
        self._last: _Tape | None = None

    def _measure(self, ranks: RankConfig, part: int) -> Values:
        self.elastic.activate(ranks)
        tape, states = self._tape(ranks), list[States]()
        before = self._anchor.parts[part] if self._anchor is not None else None

        def run(forward: Callable[[], Tensor]) -> Tensor:
            known = before[len(states)] if before is not None else {}
            with self.prefix.starting(tape.start, known, self.kept) as seen:
                result = forward()
            states.append({**known, **seen})
            return result

        with self.autocast():
            values = self.scorer.measure(part, run)
        tape.parts[part] = states
        return values

    def _tape(self, ranks: RankConfig) -> "_Tape":
        """Return the tape of the configuration, a new one unless it is the one measured last."""
        if self._last is None or self._last.ranks != ranks:
            self._last = None  # its memory is needed
            self._last = _Tape(ranks, self._start(ranks))
        return self._last

    def _start(self, ranks: RankConfig) -> int:
        """Return the last kept block whose inputs are the anchor's, 0 for none."""
        if self._anchor is None:
            return 0
        anchor = self._anchor.ranks
        first = min((self._first[group] for group in ranks if ranks[group] != anchor[group]), default=len(self.prefix))
        return max((block for block in self.kept if block <= first), default=0)

    def anchor(self, ranks: RankConfig) -> None:
        """Keep what goes into the blocks of this configuration; what it shares with the anchor before is not redone."""
        if self._anchor is not None and self._anchor.ranks == ranks:
            return
        missing = [part for part in range(len(self.sizes)) if part not in self._tape(ranks).parts]
        for part in missing:
            self._measure(ranks, part)
        self._anchor, self._last = self._last, None


@dataclass
class _Tape:
    """What went into the kept blocks under a configuration: for each part, the states of each of its forwards.

    Below `start` they are those of the anchor.
    """

    ranks: RankConfig
    start: int
    parts: dict[int, list[States]] = field(default_factory=dict)


def open_gauge(elastic: ElasticAdapter, scorer: Scorer, precision: str, budget: int) -> WholeGauge:
    """Return a gauge that keeps at most `budget` bytes of hidden states, or a plain one where that is of no use."""
    whole = WholeGauge(elastic, scorer, precision)
    if not budget:
        return whole
    try:
        with whole.autocast():
            trial = scorer.trial()
            prefix = open_prefix(scorer.model, trial.first, trial.second)
    except InputError as error:
        logger.info("every evaluation computes all blocks, as no forward of this model begins in the middle: %s", error)
        return whole
    size = 2 * scorer.num_positions() * prefix.bytes_per_position
    kept = kept_blocks(len(prefix), size, budget)
    if not kept:
        logger.info("every evaluation computes all blocks: the inputs of one take %.2g GB, the cache has %.2g",
                    size / 1e9, budget / 1e9)  # fmt: skip
        return whole
    logger.info("the inputs of %d of %d blocks are kept: up to %.2g GB", len(kept), len(prefix), len(kept) * size / 1e9)
    return PrefixGauge(elastic, scorer, precision, prefix, kept)
