"""Hill climbing from the heuristic, or the best seed, through neighbouring configurations (Shears, section 3.3)."""

import random
from collections.abc import Iterator, Sequence

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.neighbours import shuffled_neighbours
from shears.searching.strategy import Evaluated, Plan, first_unknown, starts


class HillClimbing:
    """The first better neighbour, or the best of all, becomes the incumbent; ends, or starts anew, when none is better.

    A neighbour has one group's rank one place up or down, unless the options allow more. They are tried in a random
    order, drawn anew for every incumbent. A proposal is the first configuration that is not known on the way that a
    climb would take: a function of what is known, in whatever order it came to be. The steps taken are kept.
    """

    def __init__(self, space: SearchSpace, plan: Plan) -> None:
        self.space, self.plan = space, plan
        self._forget()

    def _forget(self) -> None:
        self._seen: list[Evaluated] = []
        self._known: dict[RankConfig, tuple[float, ...]] = {}  # what orders them, see `Goal.key`
        self._steps: dict[RankConfig, RankConfig] = {}  # from incumbent to incumbent; a summit leads to itself

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the heuristic and the seeds, then the first unknown neighbour on the way; None at the end.

        Where none of them is feasible, the climb may start from the largest or the smallest configuration.
        """
        self._remember(history)
        first = starts(self.space, self.plan, history)
        unknown = first_unknown(first, history)
        if unknown is not None or len(self._known) == self.space.size:
            return unknown
        visited = set[RankConfig]()
        for start in self._starts(min(first, key=self._known.__getitem__)):
            unknown = self._climb(start, visited)
            if unknown is not None:
                return unknown
        return None

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

    def _climb(self, start: RankConfig, visited: set[RankConfig]) -> RankConfig | None:
        """Return the first configuration on the way up that is not known, None if it ends, or joins an earlier way."""
        incumbent = start
        while incumbent not in visited:
            visited.add(incumbent)
            unknown = None if incumbent in self._steps else self._step(incumbent)
            if unknown is not None:
                return unknown
            incumbent = self._steps[incumbent]
        return None

    def _step(self, incumbent: RankConfig) -> RankConfig | None:
        """Find the next incumbent, or return what has to be known before."""
        if incumbent not in self._known:
            return incumbent
        better = list[RankConfig]()
        for neighbour in self._neighbours(incumbent):
            if neighbour not in self._known:
                return neighbour
            if self._known[neighbour] < self._known[incumbent]:
                better.append(neighbour)
                if self.plan.options.improvement == "first":
                    break
        self._steps[incumbent] = min(better, key=self._known.__getitem__, default=incumbent)
        return None

    def _neighbours(self, incumbent: RankConfig) -> Iterator[RankConfig]:
        generator = random.Random(self.plan.stream(tuple(incumbent.values())))
        options = self.plan.options
        return shuffled_neighbours(self.space, incumbent, options.step, options.changes, generator)
