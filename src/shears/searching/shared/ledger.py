"""What one worker knows of a search, and what it claims, evaluates and writes."""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from shears.adapt.space import RankConfig
from shears.searching.shared.board import Board
from shears.searching.shared.claims import Claim, State, Tally
from shears.searching.shared.workers import Watch, heartbeat, pause
from shears.searching.strategies.base import Evaluated, Goal

logger = logging.getLogger(__name__)


class Ledger:
    """The history of a search, kept in memory and on its board; made by `open_ledger`.

    A worker without a name is alone: it reads the board once. Others read it again before every proposal and after
    every claim. `stale_after` is in seconds; `population` is the size of a generation the search began with.
    """

    def __init__(
        self, board: Board, goal: Goal, size: int, worker: str = "", stale_after: float = 60.0, *, population: int
    ) -> None:
        self._board, self._worker, self._stale_after = board, worker, stale_after
        self._watch = Watch(stale_after)
        self._held: dict[RankConfig, Claim] = {}
        self._settled, self._num_settled, self._outages = Tally(goal), 0, 0
        self._tally = self._settled
        self.size, self.population = size, population
        self._read()

    @property
    def known(self) -> dict[RankConfig, Evaluated]:
        """Every evaluated configuration."""
        return self._tally.known

    @property
    def history(self) -> list[Evaluated]:
        """Every proposal of which the figures are known, in order, repeats included."""
        return self._tally.history

    @property
    def evaluations(self) -> list[Evaluated]:
        """Every evaluated configuration once, in the order in which they were claimed."""
        return self._tally.evaluations

    @property
    def told(self) -> list[Evaluated]:
        """What a strategy is told: the history, and what others evaluate as the worst of it."""
        return self._tally.with_lies()

    @property
    def told_by_others(self) -> list[Evaluated]:
        """The same without what this worker has claimed."""
        return self._tally.with_lies(but=self._held)

    @property
    def num_repeats(self) -> int:
        """Known configurations proposed in a row, at the end of the history."""
        return self._tally.num_repeats

    @property
    def num_places(self) -> int:
        """Configurations that count towards the budget: evaluated, being evaluated or to be retried."""
        return len(self._tally.places)

    @property
    def pending(self) -> Collection[RankConfig]:
        """What is being evaluated."""
        return self._tally.pending.keys()

    def was_abandoned(self, ranks: RankConfig) -> bool:
        """Tell whether a worker died while it evaluated a configuration."""
        return ranks in self._tally.abandoned

    def to_retry(self, budget: int) -> list[RankConfig]:
        """Return what workers had begun that are dead."""
        return self._tally.to_retry(budget)

    def refresh(self) -> None:
        """Learn what others did."""
        if self._worker or self._tally.pending:
            self._read()

    def wait(self) -> None:
        """Wait a moment for what others evaluate."""
        pause(self._stale_after)

    def _read(self) -> None:
        claims = self._board.claims()
        if self._gave_up(claims):
            claims = self._board.claims()
        while self._num_settled < len(claims) and claims[self._num_settled].state is not State.RUNNING:
            self._settled.add(claims[self._num_settled])
            self._num_settled += 1
        self._tally = self._settled.with_claims(claims[self._num_settled :])

    def _gave_up(self, claims: Sequence[Claim]) -> bool:
        """Abandon what this worker began before it was restarted, and what others began who are silent."""
        if self._outages != self._board.patience.outages:
            self._outages = self._board.patience.outages
            self._watch.forgive()
        held = {claim.ident for claim in self._held.values()}
        running = [claim for claim in claims if claim.state is State.RUNNING and claim.ident not in held]
        mine = [claim for claim in running if claim.worker == self._worker]
        silent = self._watch.silent([claim for claim in running if claim.worker != self._worker], time.monotonic())
        for claim in silent:
            logger.warning("worker %s gave no sign of life for %g s; what it had begun is tried again",
                           claim.worker, self._stale_after)  # fmt: skip
        return sum(self._board.abandon(claim) for claim in [*mine, *silent]) > 0

    def claim(self, proposed: Sequence[RankConfig], budget: int) -> list[RankConfig]:
        """Write what is proposed, in order, repeats too; return what this worker is to evaluate now."""
        wanted = list[RankConfig]()
        for ranks in proposed:
            if ranks in self.known or ranks in self.pending:
                self._tally.add(self._board.repeat(ranks))
            else:
                wanted.append(ranks)
                self._tally.add(self._board.claim(ranks, self._worker))
        if self._worker and wanted:
            self._read_claims(wanted, budget)
        self._held |= {ranks: claim for ranks in wanted if (claim := self._mine(ranks, budget))}
        return [ranks for ranks in wanted if ranks in self._held]

    def _mine(self, ranks: RankConfig, budget: int) -> Claim | None:
        claim = self._tally.holder(ranks, budget)
        return claim if claim is not None and claim.worker == self._worker else None

    def _read_claims(self, wanted: Sequence[RankConfig], budget: int) -> None:
        """See who was first, and take back what came second, is beyond the budget, or was written twice."""
        claims = self._board.claims()
        self._tally = self._settled.with_claims(claims[self._num_settled :])
        holders = [claim for ranks in wanted if (claim := self._mine(ranks, budget))]
        held = {claim.ident for claim in [*self._held.values(), *holders]}
        lost = [c for c in claims if c.state is State.RUNNING and c.worker == self._worker and c.ident not in held]
        for claim in lost:
            self._board.withdraw(claim)
        if lost:
            self._tally = self._settled.with_claims(claim for claim in claims[self._num_settled :] if claim not in lost)

    def give_back(self) -> None:
        """Take back all claims: there is nothing to evaluate after all."""
        for claim in self._held.values():
            self._board.withdraw(claim)
        self._held = {}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give signs of life while the block evaluates what is claimed; what an error leaves, others may do at once."""
        if not self._worker:
            yield
            return
        try:
            with heartbeat(self._beat, self._stale_after):
                yield
        except BaseException:
            for claim in self._held.values():
                self._board.drop(claim)
            raise

    def _beat(self, count: int) -> None:
        for claim in list(self._held.values()):
            self._board.beat(claim, count)

    def add(self, evaluated: Evaluated) -> None:
        """Write the figures of a configuration that this worker claimed, or, alone, claims now."""
        if evaluated.ranks not in self._held and not self.claim([evaluated.ranks], self.size):
            return
        claim = self._held[evaluated.ranks]
        if self._board.finish(claim, evaluated):
            self._tally.add(replace(claim, state=State.COMPLETE, metrics=evaluated.metrics))
        else:
            logger.warning("what this worker evaluated was given up by others, who do it again; look at --stale-after")
        del self._held[evaluated.ranks]
