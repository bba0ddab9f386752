"""What to evaluate next: hill climbing as a function of what is known, and Optuna's samplers."""

import hashlib
import random
import warnings
from collections.abc import Callable, Mapping
from itertools import product

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial

from shears.adapt.space import RankConfig, SearchSpace

Known = Mapping[RankConfig, tuple[float, ...]]
"""The sort key (`Goal.key`) of each evaluated configuration; its first number is 0 if feasible."""


def hill_climbing(space: SearchSpace, seed: int, known: Known, max_climbs: int) -> RankConfig | None:
    """Return the climbs' first unknown configuration; None at their end (Shears, section 3.3).

    A climb goes from an incumbent to its first better neighbour, which has the next larger or
    smaller rank in one group. Each incumbent's neighbours come in a random order. The first climb
    starts at the heuristic, or at an end of the space if that is infeasible; the others at random.
    """
    starts = [space.heuristic()]
    if known.get(starts[0], (0.0,))[0] > 0:
        starts += [space.maximal(), space.minimal()]
    for start in starts:
        if start not in known:
            return start
    visited = set[RankConfig]()
    incumbent = min(starts, key=known.__getitem__)
    for climb in range(max_climbs + 1):
        while incumbent not in visited:
            if incumbent not in known:
                return incumbent
            visited.add(incumbent)
            neighbours = list(space.neighbours(incumbent))
            random.Random(f"hill-climbing/{seed}/{tuple(incumbent.values())}").shuffle(neighbours)
            better = [each for each in neighbours if each not in known or known[each] < known[incumbent]]
            incumbent = better[0] if better else incumbent
        incumbent = space.random(random.Random(f"hill-climbing/{seed}/restart/{climb}"))
    return None


class _CachedParents:
    """Draws equal children whether Optuna computes their parents or has them from before a kill."""

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the parents in the order of Optuna's cache; it computes them in another one."""
        super().get_parent_population(study, generation)  # type: ignore[misc]
        return super().get_parent_population(study, generation)  # type: ignore[misc, no-any-return]

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the parents, drawn from another generator than the children."""
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            twin = type(self)(population_size=self.population_size, seed=generation)  # type: ignore[call-arg, attr-defined]
        return super(_CachedParents, twin).select_parent(study, generation)  # type: ignore[misc, no-any-return]


class _Nsga2(_CachedParents, NSGAIISampler):  # type: ignore[misc]
    pass


class _Nsga3(_CachedParents, NSGAIIISampler):  # type: ignore[misc]
    pass


SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "random": lambda seed, _: RandomSampler(seed),
    "nsga2": lambda seed, population: _Nsga2(population_size=population, seed=seed),
    "nsga3": lambda seed, population: _Nsga3(population_size=population, seed=seed),
}
"""Functions from a seed and the size of a generation to a sampler."""


def sampler_of(strategy: str, seed: int, number: int, population: int) -> BaseSampler:
    """Return the sampler of a trial with its own seed: Optuna saves no generator to resume."""
    stream = hashlib.sha256(f"{strategy}/{seed}/{number}".encode()).hexdigest()
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return SAMPLERS.get(strategy, SAMPLERS["random"])(int(stream[:8], 16), population)  # numpy takes 32 bits


def propose(strategy: str, space: SearchSpace, seed: int, known: Known, max_climbs: int) -> RankConfig | None:
    """Return the next configuration; None if a sampler draws it or the strategy has ended."""
    ends = [space.maximal(), space.minimal()] if strategy.startswith("nsga") else []
    for ranks in (space.heuristic(), *ends):
        if ranks not in known:
            return ranks
    if strategy == "exhaustive":
        configs = (RankConfig(dict(zip(space.ranks, ranks, strict=True))) for ranks in product(*space.ranks.values()))
        return next((ranks for ranks in configs if ranks not in known), None)
    return hill_climbing(space, seed, known, max_climbs) if strategy == "hill-climbing" else None
