"""Hill climbing from the heuristic through neighbouring configurations (Shears, section 3.3)."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, SearchPlan, first_unknown, landmarks


class HillClimbing:
    """Goes from an incumbent to its first better neighbour; after a summit, starts anew.

    A climb that ended is followed by one from a random configuration. A neighbour has the rank of
    one group moved by up to `step` places. Neighbours are tried in a random order, drawn anew for
    every incumbent.

    A proposal is the first unknown configuration on the way that a climb would take. It depends
    only on which configurations are known, not on the order in which they became known. Steps are
    cached between calls.
    """

    def __init__(self, space: SearchSpace, plan: SearchPlan) -> None:
        self.space = space
        self.plan = plan
        self.incumbent: RankConfig | None = None  # of the last proposal
        self._forget()

    def _forget(self) -> None:
        self._seen: list[Evaluated] = []
        self._known: dict[RankConfig, tuple[float, ...]] = {}  # the sort keys of `Goal.key`
        self._steps: dict[RankConfig, RankConfig] = {}  # a summit leads to itself

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the unknown starts, then the next unknown configuration on the way.

        None once the space is known or max_evaluations climbs have ended.
        """
        self._remember(history)
        self.incumbent = None
        starts = self._starts()
        unknown = first_unknown(starts, self._known)
        if unknown is not None or len(self._known) == self.space.size:
            return unknown
        visited = set[RankConfig]()
        streams = (self.plan.stream("restart", number) for number in range(self.plan.max_evaluations))
        random_starts = (self.space.random(random.Random(stream)) for stream in streams)
        for start in chain([min(starts, key=self._known.__getitem__)], random_starts):
            if (ranks := self._climb(start, visited)) is not None:
                return ranks
        return None

    def _remember(self, history: Sequence[Evaluated]) -> None:
        if list(history[: len(self._seen)]) != self._seen:
            self._forget()
        new = history[len(self._seen) :]
        self._seen.extend(new)
        self._known.update({each.ranks: self.plan.goal.key(each.metrics) for each in new})

    def _starts(self) -> list[RankConfig]:
        """Return the heuristic, and both ends of the space too if the heuristic is infeasible.

        One evaluation of an end meets any bound on a size that can be met; a way down from the
        heuristic takes many.
        """
        heuristic, *ends = landmarks(self.space)
        is_infeasible = self._known.get(heuristic, (0.0,))[0] > 0
        return [heuristic, *ends] if is_infeasible else [heuristic]

    def _climb(self, start: RankConfig, visited: set[RankConfig]) -> RankConfig | None:
        """Return the next unknown configuration on the way up.

        None if the climb ends, or joins one that was visited.
        """
        incumbent = start
        while incumbent not in visited:
            visited.add(incumbent)
            if incumbent not in self._known:
                return incumbent
            if incumbent not in self._steps and (unknown := self._step(incumbent)) is not None:
                return unknown
            incumbent = self._steps[incumbent]
        return None

    def _step(self, incumbent: RankConfig) -> RankConfig | None:
        """Cache the next incumbent, or return the neighbour that must be known before."""
        generator = random.Random(self.plan.stream(tuple(incumbent.values())))
        step = self.plan.options.step
        for neighbour in shuffled_neighbours(self.space, incumbent, step, generator):
            if neighbour not in self._known:
                self.incumbent = incumbent
                return neighbour
            if self._known[neighbour] < self._known[incumbent]:
                self._steps[incumbent] = neighbour
                return None
        self._steps[incumbent] = incumbent
        return None


def shuffled_neighbours(
    space: SearchSpace, config: RankConfig, step: int, generator: random.Random
) -> Iterator[RankConfig]:
    """Yield once, in random order, every configuration with one rank moved by 1 to `step` places.

    InputError for a configuration outside of the space.
    """
    moves = list[tuple[str, int]]()
    for group, rank in space.check(config).items():
        ranks = space.ranks[group]
        place = ranks.index(rank)
        places = [place + sign * distance for distance in range(1, step + 1) for sign in (-1, 1)]
        moves += [(group, ranks[place]) for place in places if 0 <= place < len(ranks)]
    generator.shuffle(moves)
    yield from (RankConfig({**config, group: rank}) for group, rank in moves)
