"""What training itself tells about rank configurations: a linear model of the loss, and its best configurations. Pure.

Every pair is a configuration and the loss that a training example (or a whole step) had with it. The model adds up one
effect a group, so that its best configuration for a price per parameter is found exactly, group by group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.ridge import Controls, regress

BURN_IN = 0.2  # share of the steps left out at the beginning, see `fit`
LAST = 0.5  # share of the steps whose losses are compared where configurations are picked by their training loss
Values = Sequence[float | int] | np.ndarray


@dataclass(frozen=True)
class Pairs:
    """N configurations as ranks (N x G, groups in the space's order), the losses they had in training, and where.

    Losses are means in nats over `tokens` tokens. `steps` count from 1; `examples` are indices in the training set, -1
    where the loss is of a whole step.
    """

    configs: Int64[np.ndarray, "N G"]
    losses: Float64[np.ndarray, " N"]
    tokens: Float64[np.ndarray, " N"]
    steps: Int64[np.ndarray, " N"]
    examples: Int64[np.ndarray, " N"]

    def after(self, share: float) -> "Pairs":
        """Return the pairs of the steps behind the first `share` of the run."""
        kept = self.steps > share * self.steps.max(initial=0)
        return Pairs(self.configs[kept], self.losses[kept], self.tokens[kept], self.steps[kept], self.examples[kept])

    def whole_steps(self) -> "Pairs":
        """Return one pair a step where no step has two configurations: what differs between steps is all there is."""
        _, first, index = np.unique(self.steps, return_index=True, return_inverse=True)
        index = index.reshape(-1)
        if len(first) == len(self.steps) or (self.configs != self.configs[first][index]).any():
            return self
        sums, tokens = (np.bincount(index, weights=each) for each in (self.tokens * self.losses, self.tokens))
        return Pairs(self.configs[first], sums / tokens, tokens, self.steps[first], np.full(len(first), -1))


@dataclass(frozen=True)
class Surrogate:
    """The fitted model: the effect of each allowed rank, in nats per token, by group; 0 at the heuristic's ranks.

    `parameters` are those that one rank of a group has. `coefficients` (G) are per standard deviation of the group's
    allowed ranks; `strength`, `explained` and `num_pairs` say how they were found (`Ridge`).
    """

    space: SearchSpace
    effects: Mapping[str, Sequence[float]]
    parameters: Mapping[str, int]
    coefficients: Float64[np.ndarray, " G"]
    strength: float = 0.0
    explained: float = 0.0
    num_pairs: int = 0

    def predict(self, config: Mapping[str, int]) -> float:
        """Return the predicted loss less that of the heuristic, in nats per token; InputError outside of the space."""
        checked = self.space.check(config)
        return float(sum(self.effects[group][self.space.ranks[group].index(rank)] for group, rank in checked.items()))

    def cheapest(self, price: float) -> RankConfig:
        """Return the configuration that minimises predicted loss + price * parameters; of equal ranks, the smallest."""
        return RankConfig({group: self._cheapest_rank(group, price) for group in self.space.ranks})

    def _cheapest_rank(self, group: str, price: float) -> int:
        cost = price * self.parameters[group]
        options = zip(self.effects[group], self.space.ranks[group], strict=True)
        return min((effect + cost * rank, rank) for effect, rank in options)[1]

    def num_parameters(self, config: Mapping[str, int]) -> int:
        """Return the parameters of a configuration."""
        return sum(self.parameters[group] * rank for group, rank in config.items())

    def best(self, num: int) -> list[RankConfig]:
        """Return at most `num` distinct configurations, the lowest predicted loss first, then ever smaller ones.

        Each is the exact minimum for some price per parameter. They are those nearest to sizes spread evenly from the
        unconstrained minimum (taken) to the smallest configuration (taken last: no model is needed to name it).
        """
        path = list(dict.fromkeys(self.cheapest(price) for price in self._prices()))
        sizes = [self.num_parameters(config) for config in path]
        chosen: set[int] = set()
        for index in range(min(num, len(path))):
            wanted = sizes[0] + (sizes[-1] - sizes[0]) * index / num
            left = [other for other in range(len(path)) if other not in chosen]
            chosen.add(min(left, key=lambda other: (abs(sizes[other] - wanted), other)))
        return [path[index] for index in sorted(chosen)]

    def _prices(self) -> list[float]:
        """Return 0 and one price from every interval in which the minimum is the same, ascending."""
        breaks = sorted({price for group in self.space.ranks for price in self._breaks(group)})
        ends = [*breaks, 2 * breaks[-1]] if breaks else []
        return [0.0, *((low + high) / 2 for low, high in pairwise(ends))]

    def _breaks(self, group: str) -> list[float]:
        """Return the prices at which two ranks of a group cost the same."""
        pairs = list(zip(self.effects[group], self.space.ranks[group], strict=True))
        prices = [
            (small_effect - effect) / (self.parameters[group] * (rank - small_rank))
            for effect, rank in pairs
            for small_effect, small_rank in pairs
            if small_rank < rank
        ]
        return [price for price in prices if price > 0]


def fit(
    pairs: Pairs,
    space: SearchSpace,
    parameters: Mapping[str, int],
    burn_in: float = BURN_IN,
    strength: float | None = None,
) -> Surrogate:
    """Regress the losses on the groups' ranks by ridge regression, controlling for step and example.

    `parameters` are those that one rank of each group has. Weights are the tokens, for a loss is a mean over them.
    Examples seen once have no mean of their own; log(tokens) and its square stand for them. The first `burn_in` of the
    steps is left out: an adapter that starts as nothing has a loss on which the ranks have no effect, and losses are
    large and scatter most there. Where all examples of a step had the same ranks, the control for the step would leave
    nothing of these: the pairs are then whole steps. InputError where fewer than two configurations are left.
    """
    kept = pairs.after(burn_in).whole_steps()
    if len(np.unique(kept.configs, axis=0)) < 2:
        raise InputError(
            f"the training log must hold at least two rank configurations after the first {burn_in:.0%} of the steps, "
            f"got {len(np.unique(kept.configs, axis=0))}; train longer and with several ranks, or search without seeds"
        )
    _check_parameters(parameters, space)
    means, deviations = _scales(space)
    logs = np.log(kept.tokens)
    covariates = np.column_stack([logs, logs**2])
    weights = kept.tokens / kept.tokens.mean()
    controls = Controls(kept.steps, kept.examples, weights)
    features = (kept.configs - means) / deviations
    found = regress(kept.losses, features, covariates, weights, controls, strength)
    slopes = dict(zip(space.ranks, (found.coefficients / deviations).tolist(), strict=True))
    middle = space.heuristic()
    effects = {
        group: [slopes[group] * (rank - middle[group]) for rank in ranks] for group, ranks in space.ranks.items()
    }
    return Surrogate(
        space, effects, dict(parameters), found.coefficients, found.strength, found.explained, len(kept.losses)
    )


def _check_parameters(parameters: Mapping[str, int], space: SearchSpace) -> None:
    if odd := [group for group in space.ranks if parameters.get(group, 0) <= 0]:
        raise InputError(f"parameters must hold a positive number for every group, got {parameters.get(odd[0])} for "
                         f"{odd[0]}; give the parameters of one rank")  # fmt: skip


def _scales(space: SearchSpace) -> tuple[Float64[np.ndarray, " G"], Float64[np.ndarray, " G"]]:
    """Return mean and standard deviation of every group's allowed ranks; 1 for the deviation of a single rank."""
    ranks = [np.array(allowed, dtype=np.float64) for allowed in space.ranks.values()]
    return np.array([each.mean() for each in ranks]), np.array([each.std() or 1.0 for each in ranks])


def training_losses(pairs: Pairs, space: SearchSpace, last: float = LAST) -> dict[RankConfig, float]:
    """Return the mean loss per token that each configuration had over the last share of the steps."""
    kept = pairs.after(1 - last)
    rows, first, index = np.unique(kept.configs, axis=0, return_index=True, return_inverse=True)
    index = index.reshape(-1)
    sums, tokens = (np.bincount(index, weights=each) for each in (kept.tokens * kept.losses, kept.tokens))
    configs = [RankConfig(dict(zip(space.ranks, row.tolist(), strict=True))) for row in rows]
    return {configs[place]: float(sums[place] / tokens[place]) for place in np.argsort(first)}


def lowest_losses(pairs: Pairs, space: SearchSpace, num: int, last: float = LAST) -> list[RankConfig]:
    """Return the `num` configurations with the lowest training loss (`training_losses`); of equal ones, the earliest.

    The published way to pick sub-adapters from training, kept as what the surrogate has to beat.
    """
    losses = training_losses(pairs, space, last)
    return sorted(losses, key=losses.__getitem__)[:num]


def rank_correlation(a: Values, b: Values) -> float:
    """Return Spearman's rank correlation, equal values sharing their mean rank; nan where one side is constant."""
    if len(a) != len(b):
        raise InputError(f"both sides of a rank correlation must be equally long, got {len(a)} and {len(b)}")
    first, second = _ranks(a), _ranks(b)
    norm = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / norm if norm else float("nan")


def _ranks(values: Values) -> Float64[np.ndarray, " N"]:
    """Return mean ranks, centred."""
    _, index, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index.reshape(-1)]
    return np.asarray(ranks - (len(ranks) + 1) / 2)
