"""Hill climbing from the heuristic through neighbouring configurations (Shears, section 3.3)."""

import random
from collections.abc import Iterator, Sequence

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, Plan, first, starts, unknown_of
from shears.searching.strategies.neighbours import shuffled_neighbours


class HillClimbing:
    """The first better neighbour, or the best of all, becomes the incumbent; ends, or starts anew, when none is better.

    A neighbour has one group's rank one place up or down, unless the options allow more. They are tried in a random
    order, drawn anew for every incumbent, or in that of the plan's predictions where it is asked for. A proposal is the
    first configuration that is not known on the way that a climb would take: a function of what is known, in whatever
    order it came to be. The steps taken are kept.
    """

    def __init__(self, space: SearchSpace, plan: Plan) -> None:
        self.space, self.plan = space, plan
        self._order: dict[RankConfig, list[RankConfig]] = {}  # of the last incumbent's neighbours, by prediction
        self.incumbent: RankConfig | None = None
        self._forget()

    def _forget(self) -> None:
        self._seen: list[Evaluated] = []
        self._known: dict[RankConfig, tuple[float, ...]] = {}  # what orders them, see `Goal.key`
        self._steps: dict[RankConfig, RankConfig] = {}  # from incumbent to incumbent; a summit leads to itself

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the heuristic, then the first unknown neighbour on the way; None at the end."""
        return first(self.propose_many(history, 1))

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return the heuristic if it is unknown, then the next unknown neighbours on the way.

        Several only where all neighbours are tried: with improvement best. Where no start is feasible, the climb may
        start from the largest or the smallest configuration.
        """
        self._remember(history)
        self.incumbent = None
        opened = starts(self.space, self.plan, history)
        unknown = unknown_of(opened, self._known, most)
        if unknown or len(self._known) == self.space.size:
            return unknown
        visited, most = set[RankConfig](), most if self.plan.options.improvement == "best" else 1
        for start in self._starts(min(opened, key=self._known.__getitem__)):
            unknown = self._climb(start, visited, most)
            if unknown:
                return unknown
        return []

    def _remember(self, history: Sequence[Evaluated]) -> None:
        if list(history[: len(self._seen)]) != self._seen:
            self._forget()
        new = history[len(self._seen) :]
        self._seen.extend(new)
        self._known.update({evaluated.ranks: self.plan.goal.key(evaluated.metrics) for evaluated in new})

    def _starts(self, best: RankConfig) -> Iterator[RankConfig]:
        yield best
        if self.plan.options.restarts:
            for number in range(self.plan.max_evaluations):
                yield self.space.random(random.Random(self.plan.stream("restart", number)))

    def _climb(self, start: RankConfig, visited: set[RankConfig], most: int) -> list[RankConfig]:
        """Return what is unknown next on the way up, nothing if it ends, or joins an earlier way."""
        incumbent = start
        while incumbent not in visited:
            visited.add(incumbent)
            unknown = [] if incumbent in self._steps else self._step(incumbent, most)
            if unknown:
                return unknown
            incumbent = self._steps[incumbent]
        return []

    def _step(self, incumbent: RankConfig, most: int) -> list[RankConfig]:
        """Find the next incumbent, or return what has to be known before."""
        if incumbent not in self._known:
            return [incumbent]
        better, unknown = list[RankConfig](), list[RankConfig]()
        for neighbour in self._neighbours(incumbent):
            if neighbour not in self._known:
                unknown.append(neighbour)
            elif self._known[neighbour] < self._known[incumbent]:
                better.append(neighbour)
            if len(unknown) == most or (better and self.plan.options.improvement == "first"):
                break
        if unknown:
            self.incumbent = incumbent
        else:
            self._steps[incumbent] = min(better, key=self._known.__getitem__, default=incumbent)
        return unknown

    def _neighbours(self, incumbent: RankConfig) -> Iterator[RankConfig]:
        generator = random.Random(self.plan.stream(tuple(incumbent.values())))
        options = self.plan.options
        shuffled = shuffled_neighbours(self.space, incumbent, options.step, options.changes, generator)
        if options.order == "random" or self.plan.predicted is None:
            return shuffled
        if incumbent not in self._order:
            self._order = {incumbent: sorted(shuffled, key=self.plan.predicted)}
        return iter(self._order[incumbent])
