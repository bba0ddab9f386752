"""The strategies by name; the configuration lists the same names for the flag, and a test compares the two."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from shears.adapt.space import SearchSpace
from shears.config.search import StrategyName
from shears.errors import InputError
from shears.searching.strategies.base import SearchPlan, Strategy
from shears.searching.strategies.evolution import Evolution, Nsga2, rnsga2
from shears.searching.strategies.hill_climb import HillClimbing
from shears.searching.strategies.simple import Exhaustive, FixedConfigs, RandomSearch

STRATEGIES: Mapping[StrategyName, Callable[[SearchSpace, SearchPlan], Strategy]] = MappingProxyType(
    {
        "heuristic": lambda space, _: FixedConfigs((space.heuristic(),)),  # Shears, section 3.3
        "maximal": lambda space, _: FixedConfigs((space.heuristic(), space.maximal())),
        "minimal": lambda space, _: FixedConfigs((space.heuristic(), space.minimal())),
        "random": RandomSearch,
        "exhaustive": Exhaustive,
        "hill-climbing": HillClimbing,
        "evolution": Evolution,
        "nsga2": Nsga2,
        "rnsga2": rnsga2,
    }
)


def make_strategy(space: SearchSpace, plan: SearchPlan) -> Strategy:
    """Return the strategy that a plan names; InputError if it is unknown, or cannot search this space."""
    for name, make in STRATEGIES.items():
        if name == plan.strategy:
            return make(space, plan)
    raise InputError(f"strategy must be one of {', '.join(STRATEGIES)}, got {plan.strategy!r}")
