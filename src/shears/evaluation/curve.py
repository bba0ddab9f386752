"""Accuracy over the rank of a super-adapter, the same in all groups, and its area. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.evaluation.comparison import paired
from shears.evaluation.records import Evaluation
from shears.evaluation.statistics import Interval, holm, weighted_accuracy

BY_RANK = ("prediction", "correct", "output", "cut")  # fields of a record that each rank has, beside `correct_NAME`


def allowed_ranks(space: SearchSpace) -> list[int]:
    """Return every rank that some group may have, largest first."""
    return sorted({rank for ranks in space.ranks.values() for rank in ranks}, reverse=True)


def tied(space: SearchSpace, rank: int) -> RankConfig:
    """Return one rank for all groups; InputError for a rank that no group may have.

    A group that may not have it takes its largest rank below it, or its smallest one.
    """
    if rank not in (allowed := allowed_ranks(space)):
        raise InputError(f"ranks must be all or one of {', '.join(map(str, allowed))}, got {rank}")
    return RankConfig(
        {group: next((each for each in ranks if each <= rank), ranks[-1]) for group, ranks in space.ranks.items()}
    )


def area_weights(ranks: Sequence[int]) -> list[float]:
    """Return the weight of each rank's accuracy in the area under the curve; their sum is 1.

    MatryoshkaLoRA (arXiv 2605.07850) names AURAC, the area under the rank-accuracy curve; the
    definition is ours, because its formula was not available. It is the area of the trapezoids
    between neighbouring ranks over the span of the ranks, so a mean accuracy in [0, 1]:

        sum over neighbours (r_i, r_i+1) of (a_i + a_i+1) / 2 * (r_i+1 - r_i), over (r_max - r_min)
    """
    if len(ranks) == 1:
        return [1.0]
    weights = dict.fromkeys(ranks, 0.0)
    span = max(ranks) - min(ranks)
    for low, high in pairwise(sorted(ranks)):
        for rank in (low, high):
            weights[rank] += (high - low) / 2 / span
    return [weights[rank] for rank in ranks]


def aurac(ranks: Sequence[int], runs: Sequence[Sequence[bool]]) -> Interval:
    """Return the area under the curve (`area_weights`) with its 95 % interval over examples.

    `runs` hold, for each rank, whether each example was answered rightly.
    """
    return weighted_accuracy(runs, area_weights(ranks))


def curve(by_rank: Mapping[int, Evaluation], parameters: Mapping[int, int]) -> Evaluation:
    """Return the evaluation at the largest rank, with the curve and answers of all ranks.

    `parameters` are those of the sub-adapter by rank. Differences are a rank minus the largest,
    paired by example.
    """
    ranks = sorted(by_rank, reverse=True)
    first = by_rank[ranks[0]]
    points: list[dict[str, Any]] = [
        {
            "rank": rank,
            "parameters": parameters[rank],
            "value": by_rank[rank].value,
            "n": by_rank[rank].n,
            "ci95": list(by_rank[rank].ci95),
            "details": by_rank[rank].details,
            "difference": None,
        }
        for rank in ranks
    ]
    found = (paired(by_rank[rank].records, first.records) for rank in ranks[1:])
    differences = [difference for difference in found if difference is not None]
    corrected = holm([difference["p"] for difference in differences])
    for point, difference, p in zip(points[1:], differences, corrected, strict=True):  # all ranks have equal questions
        point["difference"] = {**difference, "p_holm": p}
    area = aurac(ranks, [[record["correct"] for record in by_rank[rank].records] for rank in ranks])
    answers = {str(rank): list(map(_answer, by_rank[rank].records)) for rank in ranks}
    records = [
        {**record, "by_rank": {rank: answer[index] for rank, answer in answers.items()}}
        for index, record in enumerate(first.records)
    ]
    content = {"aurac": area.value, "aurac_ci95": [area.low, area.high], "points": points}
    return replace(first, records=records, curve=content)


def _answer(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key in BY_RANK or key.startswith("correct_")}
