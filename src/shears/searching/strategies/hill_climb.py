"""Hill climbing from the heuristic through neighbouring configurations (Shears, section 3.3)."""

import random
from collections.abc import Iterator, Mapping, Sequence

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, SearchPlan, starts, unknown_of


class HillClimbing:
    """Goes from an incumbent to its first better neighbour, or to its best one; a summit ends the climb.

    With restarts, a climb that ended is followed by one from a random configuration. A neighbour has one group's rank
    one place up or down, unless the options allow more. Neighbours are tried in a random order, drawn anew for every
    incumbent, or in the order of the plan's predictions.

    A proposal is the first unknown configuration on the way that a climb would take. It is a function of the set of
    known configurations, whatever the order in which they became known. Steps are cached between calls.
    """

    def __init__(self, space: SearchSpace, plan: SearchPlan) -> None:
        self.space = space
        self.plan = plan
        self.incumbent: RankConfig | None = None  # of the last proposal; `explore` makes it the anchor
        self._order: dict[RankConfig, list[RankConfig]] = {}  # the last incumbent's neighbours, by prediction
        self._forget()

    def _forget(self) -> None:
        self._seen: list[Evaluated] = []
        self._known: dict[RankConfig, tuple[float, ...]] = {}  # the sort keys of `Goal.key`
        self._steps: dict[RankConfig, RankConfig] = {}  # from incumbent to incumbent; a summit leads to itself

    def propose(self, history: Sequence[Evaluated], most: int = 1) -> list[RankConfig]:
        """Return the heuristic if it is unknown, then the next unknown neighbours on the way; nothing at the end.

        With improvement first, neighbours come one by one. If the heuristic is infeasible, the climb may start from
        the largest or the smallest configuration.
        """
        self._remember(history)
        self.incumbent = None
        first = starts(self.space, self.plan, history)
        unknown = unknown_of(first, self._known, most)
        if unknown or len(self._known) == self.space.size:
            return unknown
        visited = set[RankConfig]()
        width = most if self.plan.options.improvement == "best" else 1
        for start in self._starts(min(first, key=self._known.__getitem__)):
            unknown = self._climb(start, visited, width)
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
        """Return the next unknown configurations on the way up; none if it ends, or joins the way of a climb before."""
        incumbent = start
        while incumbent not in visited:
            visited.add(incumbent)
            unknown = [] if incumbent in self._steps else self._step(incumbent, most)
            if unknown:
                return unknown
            incumbent = self._steps[incumbent]
        return []

    def _step(self, incumbent: RankConfig, most: int) -> list[RankConfig]:
        """Cache the next incumbent, or return the configurations that must be known before it is decided."""
        if incumbent not in self._known:
            return [incumbent]
        better = list[RankConfig]()
        unknown = list[RankConfig]()
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


def shuffled_neighbours(
    space: SearchSpace, config: RankConfig, step: int, changes: int, generator: random.Random
) -> Iterator[RankConfig]:
    """Yield every configuration in which 1 to `changes` groups moved by 1 to `step` places in their lists of ranks.

    Each is yielded once, in random order. InputError for a configuration outside of the space.
    """
    moves = _moves(space, space.check(config), step)
    if changes == 1:
        singles = [(group, rank) for group, ranks in moves.items() for rank in ranks]
        generator.shuffle(singles)
        yield from (RankConfig({**config, group: rank}) for group, rank in singles)
    else:
        yield from _drawn(config, {group: ranks for group, ranks in moves.items() if ranks}, changes, generator)


def _moves(space: SearchSpace, config: RankConfig, step: int) -> dict[str, list[int]]:
    """Return the ranks that each group may move to, the nearest places first, larger ranks before smaller ones."""
    moves: dict[str, list[int]] = {}
    for group, ranks in space.ranks.items():
        place = ranks.index(config[group])
        others = [place + sign * distance for distance in range(1, step + 1) for sign in (-1, 1)]
        moves[group] = [ranks[other] for other in others if 0 <= other < len(ranks)]
    return moves


def _drawn(
    config: RankConfig, moves: Mapping[str, list[int]], changes: int, generator: random.Random
) -> Iterator[RankConfig]:
    """Draw neighbours without repetition: the number of groups first, then the groups and their moves.

    There may be millions of neighbours, so they are not listed. As many of them differ in one group as in several,
    until those that differ in one are used up.
    """
    total = _count([len(ranks) for ranks in moves.values()], changes)
    groups = list(moves)
    drawn = set[RankConfig]()
    while len(drawn) < total:
        chosen = generator.sample(groups, generator.randint(1, min(changes, len(groups))))
        neighbour = RankConfig({**config, **{group: generator.choice(moves[group]) for group in chosen}})
        if neighbour not in drawn:
            drawn.add(neighbour)
            yield neighbour


def _count(sizes: Sequence[int], changes: int) -> int:
    """Return the number of ways to pick 1 to `changes` groups and a move in each: elementary symmetric polynomials."""
    ways = [1, *(0 for _ in range(changes))]
    for size in sizes:
        for picked in range(changes, 0, -1):
            ways[picked] += size * ways[picked - 1]
    return sum(ways[1:])
