"""How far strategies stay from the optimum of a space small enough to know it: 3 ranks in 6 groups, 729 configurations.

    python -m benchmarks.search_space      # minutes on one core, no model

The losses are formulas: one effect a group (smooth), or with random effects of pairs of groups on top (rugged, where
climbs get stuck). Every strategy sees the same landscapes. The second table is on fronts of loss against parameters.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from statistics import mean

from benchmarks.report import environment
from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import StrategyOptions
from shears.searching.explore import run_search
from shears.searching.result import SearchResult, hypervolume
from shears.searching.strategies.base import LOSS, Figures, Objective, SearchPlan

RANKS, NUM_GROUPS = (32, 24, 16), 6
BUDGET, LANDSCAPES, SEEDS = 100, 20, 3
STRATEGIES: Mapping[str, tuple[str, StrategyOptions]] = {
    "heuristic": ("heuristic", StrategyOptions()),
    "maximal": ("maximal", StrategyOptions()),
    "minimal": ("minimal", StrategyOptions()),
    "random": ("random", StrategyOptions()),
    "hill climbing": ("hill-climbing", StrategyOptions()),
    "hill climbing, step 2": ("hill-climbing", StrategyOptions(step=2)),
    "NSGA-II": ("nsga2", StrategyOptions()),
    "RNSGA-II": ("rnsga2", StrategyOptions()),
}
FRONTS = ("random", "hill climbing", "NSGA-II", "RNSGA-II")
ALL = "all 729"


def small_space(num_groups: int = NUM_GROUPS) -> SearchSpace:
    """Return a space with groups named like those of a model."""
    return SearchSpace({f"layers.{index}.up_proj": RANKS for index in range(num_groups)})


def every(space: SearchSpace) -> Iterator[RankConfig]:
    """Yield all configurations."""
    for ranks in product(*space.ranks.values()):
        yield RankConfig(dict(zip(space.ranks, ranks, strict=True)))


def landscape(space: SearchSpace, seed: int, ruggedness: float) -> Objective:
    """Return a loss with random effects of groups, and of pairs of groups `ruggedness` times as large."""
    generator, places = random.Random(f"landscape/{seed}"), range(len(RANKS))
    single = {(group, place): generator.gauss(0, 1) for group in space.ranks for place in places}
    pairs = {
        (a, b, p, q): generator.gauss(0, 1) for a, b in combinations(space.ranks, 2) for p in places for q in places
    }

    def objective(ranks: RankConfig) -> Figures:
        place = {group: RANKS.index(rank) for group, rank in ranks.items()}
        alone = sum(single[group, place[group]] for group in ranks)
        joint = sum(pairs[a, b, place[a], place[b]] for a, b in combinations(ranks, 2))
        return {"loss": alone + ruggedness * joint, "parameters": sum(ranks.values())}

    return objective


def trade_off(space: SearchSpace, seed: int) -> Objective:
    """Return a loss that every smaller rank raises, in some groups far more than in others."""
    generator = random.Random(f"trade-off/{seed}")
    weight = {group: generator.random() ** 3 for group in space.ranks}

    def objective(ranks: RankConfig) -> Figures:
        loss = sum(weight[group] * (RANKS[0] - rank) ** 1.2 for group, rank in ranks.items())
        return {"loss": loss, "parameters": sum(ranks.values())}

    return objective


def searched(name: str, space: SearchSpace, objective: Objective, seed: int, budget: int = BUDGET) -> SearchResult:
    """Return what a strategy finds."""
    strategy, options = STRATEGIES[name]
    return run_search(space, objective, SearchPlan(strategy, budget, seed, LOSS, options))


def distance_row(name: str, ruggedness: float, num_landscapes: int = LANDSCAPES) -> dict[str, float]:
    """Return over landscapes: evaluations used, the share that found the optimum and when, how far the others stay.

    The gap is 0 for the optimum and 1 for the mean configuration.
    """
    space, used, found, when, gaps = small_space(), list[int](), list[bool](), list[int](), list[float]()
    for seed in range(num_landscapes):
        objective = landscape(space, seed, ruggedness)
        losses = [float(objective(ranks)["loss"]) for ranks in every(space)]
        result = searched(name, space, objective, seed)
        best = float(result.chosen.metrics["loss"])
        used.append(len(result.evaluations))
        found.append(best == min(losses))
        gaps.append((best - min(losses)) / (mean(losses) - min(losses)))
        if found[-1]:
            when.append(1 + result.evaluations.index(result.chosen))
    return {"evaluations": mean(used), "found": mean(found), "when": mean(when or [float("nan")]), "gap": mean(gaps)}


def front_row(name: str, num_groups: int, budget: int, seeds: Sequence[int] = range(SEEDS)) -> list[float]:
    """Return for each seed the hypervolume of a strategy's front, as a share of the box between both ends.

    `ALL` stands for the front of all configurations.
    """
    space, shares = small_space(num_groups), list[float]()
    for seed in seeds:
        objective = trade_off(space, seed)
        low, high = LOSS.cost(objective(space.maximal())), LOSS.cost(objective(space.minimal()))
        box = (high[0] - low[0]) * (low[1] - high[1])
        if name == ALL:
            figures = [objective(ranks) for ranks in every(space)]
        else:
            figures = [each.metrics for each in searched(name, space, objective, seed, budget).evaluations]
        shares.append(hypervolume(list(map(LOSS.cost, figures)), (high[0], low[1])) / box)
    return shares


def distances(ruggedness: float) -> None:
    """Print how far each strategy stays from the optimum."""
    print(f"\n3^6 configurations, ruggedness {ruggedness:g}, {LANDSCAPES} landscapes, {BUDGET} evaluations at most")
    print("| strategy | evaluations | found the optimum | after | gap (1: mean configuration) |\n" + "| --- " * 5 + "|")
    for name in STRATEGIES:
        row = distance_row(name, ruggedness)
        print(f"| {name} | {row['evaluations']:.0f} | {row['found']:.0%} | {row['when']:.0f} | {row['gap']:.3f} |")


def fronts(names: Sequence[str], num_groups: int, budget: int) -> None:
    """Print what each strategy's front dominates."""
    print(f"\nloss against parameters, 3^{num_groups} configurations, {budget} evaluations: hypervolume by seed")
    print("| strategy | " + " | ".join(f"seed {seed}" for seed in range(SEEDS)) + " | mean |")
    print("| --- " * (SEEDS + 2) + "|")
    for name in names:
        shares = front_row(name, num_groups, budget)
        print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in [*shares, mean(shares)]) + " |")


def main() -> None:
    """Print all tables."""
    print(environment())
    for ruggedness in (0.0, 0.5):
        distances(ruggedness)
    fronts([*FRONTS, ALL], NUM_GROUPS, 60)
    fronts(FRONTS, 90, 200)


if __name__ == "__main__":
    main()
