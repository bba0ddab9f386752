"""Configurations that training predicts to be good, and how good the prediction turned out."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.load import space_of_record
from shears.adapt.space import RankConfig
from shears.errors import InputError
from shears.recipe import SearchConfig
from shears.searching.strategy import Evaluated, Goal
from shears.searching.surrogate import Pairs, Surrogate, fit, lowest_losses, rank_correlation, training_losses
from shears.searching.training_log import read_pairs

logger = logging.getLogger(__name__)
FEWEST = 5  # configurations of which a rank correlation says something
DIGITS = 9  # of recorded predictions: the last bits depend on the number of threads


@dataclass(frozen=True)
class Seeds:
    """The configurations that are evaluated first, the model they come from, and what that was fitted to."""

    configs: tuple[RankConfig, ...]
    surrogate: Surrogate
    pairs: Pairs

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
    """Return the rank correlation of predictions and measured costs; None for fewer than FEWEST or a constant side."""
    both = [each for each in evaluations if each.ranks in predicted]
    if len(both) < FEWEST:
        return None
    # rounded, so that equal predictions stay equal
    sides = [_rounded(predicted[each.ranks]) for each in both], [goal.cost(each.metrics)[0] for each in both]
    found = rank_correlation(*sides)
    return None if math.isnan(found) else _rounded(found)


def pairs_for(settings: SearchConfig, folder: Path, record: dict[str, Any]) -> Pairs | None:
    """Return the pairs in the super-adapter's log, None without seeds; InputError if there is no room for seeds."""
    if not settings.seeds:
        return None
    if settings.seeds >= settings.max_evaluations:
        raise InputError(
            f"max_evaluations must be above seeds, for the heuristic comes first, got {settings.max_evaluations} for "
            f"{settings.seeds} seeds; raise it or lower seeds"
        )
    return read_pairs(folder, space_of_record(record))


def propose(pairs: Pairs, elastic: ElasticAdapter, num: int) -> Seeds:
    """Fit the surrogate and take its best configurations."""
    surrogate = fit(pairs, elastic.space, parameters_per_rank(elastic))
    configs = tuple(surrogate.best(num))
    logger.info(
        "%d seeds from %d pairs; ranks explain %.1f %% of what step and example leave of the training loss",
        len(configs), surrogate.num_pairs, 100 * surrogate.explained,
    )  # fmt: skip
    return Seeds(configs, surrogate, pairs)


def parameters_per_rank(elastic: ElasticAdapter) -> dict[str, int]:
    """Return the parameters that one rank of each group has: inputs + outputs over its linears."""
    base = elastic.model.get_base_model()
    return {group: sum(map(_sides, map(base.get_submodule, names))) for group, names in elastic.space.modules.items()}


def _sides(layer: object) -> int:
    assert isinstance(layer, LoraLayer)
    return int(layer.in_features + layer.out_features)
