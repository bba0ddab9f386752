"""The largest and the smallest sub-adapter: the two ends that every search has to be held against."""

from shears.adapt.space import SearchSpace
from shears.searching.strategies.base import Plan
from shears.searching.strategies.heuristics import Heuristic


def maximal(space: SearchSpace, plan: Plan) -> Heuristic:
    """Return the strategy of the heuristic and the largest rank of every group."""
    return Heuristic(space, plan, (space.maximal(),))


def minimal(space: SearchSpace, plan: Plan) -> Heuristic:
    """Return the strategy of the heuristic and the smallest rank of every group."""
    return Heuristic(space, plan, (space.minimal(),))
