"""Configurations that training predicts to be good, and how good the prediction turned out."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.load import space_of_record
from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.config.goals import QUALITIES
from shears.errors import InputError
from shears.searching.strategies.base import Evaluated, Goal
from shears.searching.surrogate import Pairs, Surrogate, fit, lowest_losses, rank_correlation, training_losses
from shears.searching.tied import TiedSpace
from shears.searching.training_log import read_pairs

logger = logging.getLogger(__name__)
FEWEST = 5  # configurations of which a rank correlation says something
DIGITS = 9  # of recorded predictions: the last bits depend on the number of threads


@dataclass(frozen=True)
class Seeds:
    """The configurations that are evaluated first, the model they come from, and what that was fitted to.

    All are of the full space; with tied layers, `tied` holds the configurations as the tied space has them.
    """

    configs: tuple[RankConfig, ...]
    surrogate: Surrogate
    pairs: Pairs
    tied: tuple[RankConfig, ...] = ()

    def as_data(self, evaluations: Sequence[Evaluated], goal: Goal) -> dict[str, Any]:
        """Return the record of a finished search: what was proposed, and its rank correlation with what was measured.

        1 means that the prediction orders the evaluated configurations as validation does. `lowest_losses` is the
        published alternative; it says something only about configurations that training has seen.
        """
        predict, space = self.surrogate.predict, self.surrogate.space
        seen = training_losses(self.pairs, space)
        lowest = lowest_losses(self.pairs, space, len(self.configs))
        return {
            "num_pairs": self.surrogate.num_pairs,
            "strength": _rounded(self.surrogate.strength),
            "explained": _rounded(self.surrogate.explained),
            "configs": [{"ranks": dict(ranks), "predicted": _rounded(predict(ranks))} for ranks in self.configs],
            "rank_correlation": _agreement(
                {each.ranks: predict(each.ranks) for each in evaluations}, evaluations, goal
            ),
            "lowest_losses": {
                "configs": [{"ranks": dict(ranks), "loss": _rounded(seen[ranks])} for ranks in lowest],
                "rank_correlation": _agreement(seen, evaluations, goal),
            },
        }


def _rounded(value: float) -> float:
    return round(value, DIGITS)


def _agreement(predicted: Mapping[RankConfig, float], evaluations: Sequence[Evaluated], goal: Goal) -> float | None:
    """Return the rank correlation of predictions and measured costs; None for fewer than FEWEST or a constant side.

    What breaks a bound on a size was not measured and counts for nothing.
    """
    both = [each for each in evaluations if each.ranks in predicted and goal.has_figures(each.metrics)]
    if len(both) < FEWEST:
        return None
    # rounded, so that equal predictions stay equal
    sides = [_rounded(predicted[each.ranks]) for each in both], [_quality(goal, each) for each in both]
    found = rank_correlation(*sides)
    return None if math.isnan(found) else _rounded(found)


def _quality(goal: Goal, evaluated: Evaluated) -> float:
    """Return the first measured quality, lower for better: it is what a training loss can predict."""
    name = next((name for name in QUALITIES if name in evaluated.metrics), goal.quality)
    return float(-evaluated.metrics[name] if name in goal.maximised else evaluated.metrics[name])


def pairs_for(settings: SearchConfig, folder: Path, record: dict[str, Any]) -> Pairs | None:
    """Return the pairs in the super-adapter's log, None without seeds; InputError if there is no room for seeds.

    InputError, too, where every group has one rank: after `init pissa` that of the log is half of what was saved.
    """
    if not settings.seeds:
        return None
    space = space_of_record(record)
    if space.size == 1:
        raise InputError(
            "seeds need a super-adapter with several ranks in a group, got one with one rank in each (so has init "
            "pissa), where there is nothing to search; leave seeds out"
        )
    if settings.seeds >= settings.max_evaluations:
        raise InputError(
            f"max_evaluations must be above seeds, for the heuristic comes first, got {settings.max_evaluations} for "
            f"{settings.seeds} seeds; raise it or lower seeds"
        )
    return read_pairs(folder, space)


def propose(pairs: Pairs, elastic: ElasticAdapter, num: int, tied: TiedSpace) -> Seeds:
    """Fit the surrogate and take its best configurations of the tied space."""
    surrogate = fit(pairs, elastic.space, parameters_per_rank(elastic))
    best = tuple(_tie(surrogate, tied).best(num))
    configs = tuple(map(tied.expand, best))
    logger.info(
        "%d seeds from %d pairs; ranks explain %.1f %% of what step and example leave of the training loss",
        len(configs), surrogate.num_pairs, 100 * surrogate.explained,
    )  # fmt: skip
    return Seeds(configs, surrogate, pairs, best)


def _tie(surrogate: Surrogate, tied: TiedSpace) -> Surrogate:
    """Return the same model of the tied space: effects and parameters of tied groups add up."""
    effects = {
        group: [sum(column) for column in zip(*(surrogate.effects[name] for name in names), strict=True)]
        for group, names in tied.members.items()
    }
    parameters = {group: sum(surrogate.parameters[name] for name in names) for group, names in tied.members.items()}
    return replace(surrogate, space=tied.space, effects=effects, parameters=parameters)


def parameters_per_rank(elastic: ElasticAdapter) -> dict[str, int]:
    """Return the parameters that one rank of each group has: inputs + outputs over its linears."""
    base = elastic.model.get_base_model()
    return {group: sum(map(_sides, map(base.get_submodule, names))) for group, names in elastic.space.modules.items()}


def _sides(layer: object) -> int:
    assert isinstance(layer, LoraLayer)
    return int(layer.in_features + layer.out_features)
