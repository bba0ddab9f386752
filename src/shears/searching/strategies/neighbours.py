"""The neighbours of a rank configuration, in random order, each once. Pure."""

import random
from collections.abc import Iterator, Sequence

from shears.adapt.space import RankConfig, SearchSpace

Moves = dict[str, list[int]]  # the ranks that each group may go to


def shuffled_neighbours(
    space: SearchSpace, config: RankConfig, step: int, changes: int, generator: random.Random
) -> Iterator[RankConfig]:
    """Yield every configuration in which 1 to `changes` groups moved by 1 to `step` places in their lists of ranks.

    InputError for a configuration outside of the space.
    """
    moves = _moves(space, space.check(config), step)
    if changes == 1:
        singles = [(group, rank) for group, ranks in moves.items() for rank in ranks]
        generator.shuffle(singles)
        yield from (RankConfig({**config, group: rank}) for group, rank in singles)
    else:
        yield from _drawn(config, {group: ranks for group, ranks in moves.items() if ranks}, changes, generator)


def num_neighbours(space: SearchSpace, config: RankConfig, step: int, changes: int) -> int:
    """Return how many neighbours there are."""
    return _count([len(ranks) for ranks in _moves(space, config, step).values()], changes)


def _moves(space: SearchSpace, config: RankConfig, step: int) -> Moves:
    """Return where each group can go, the nearest places first, larger ranks before smaller ones."""
    moves: Moves = {}
    for group, ranks in space.ranks.items():
        place = ranks.index(config[group])
        others = [place + sign * distance for distance in range(1, step + 1) for sign in (-1, 1)]
        moves[group] = [ranks[other] for other in others if 0 <= other < len(ranks)]
    return moves


def _count(sizes: Sequence[int], changes: int) -> int:
    """Return the number of ways to pick 1 to `changes` groups and a move in each: elementary symmetric polynomials."""
    ways = [1, *(0 for _ in range(changes))]
    for size in sizes:
        for picked in range(changes, 0, -1):
            ways[picked] += size * ways[picked - 1]
    return sum(ways[1:])


def _drawn(config: RankConfig, moves: Moves, changes: int, generator: random.Random) -> Iterator[RankConfig]:
    """Draw the number of groups, the groups and their moves, leaving out what was drawn before: there may be millions.

    As many neighbours differ in one group as in several, until those in one group are used up.
    """
    total, groups = _count([len(ranks) for ranks in moves.values()], changes), list(moves)
    drawn = set[RankConfig]()
    while len(drawn) < total:
        chosen = generator.sample(groups, generator.randint(1, min(changes, len(groups))))
        neighbour = RankConfig({**config, **{group: generator.choice(moves[group]) for group in chosen}})
        if neighbour not in drawn:
            drawn.add(neighbour)
            yield neighbour
