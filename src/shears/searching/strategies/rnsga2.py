"""RNSGA-II (Deb and Sundar, 2006): NSGA-II that keeps, of equal fronts, what is nearest to the figures wanted.

Optuna breeds, pymoo's survival selects; pymoo is an optional extra.
"""

from importlib import import_module

import numpy as np
from jaxtyping import Float64
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.goals import parse_point
from shears.errors import InputError
from shears.searching.strategies.base import Plan, landmarks
from shears.searching.strategies.evolve import Nsga2, population_of

EPSILON = 0.001  # pymoo's: nearer than this, in shares of the population's range, one of two is enough


def rnsga2(space: SearchSpace, plan: Plan) -> Nsga2:
    """Return NSGA-II with the survival by reference points; InputError without pymoo or for points of another shape.

    N trials, M objectives, P points.
    """
    try:
        survivals, populations = (
            import_module(f"pymoo.{name}") for name in ("algorithms.moo.rnsga2", "core.population")
        )
    except ImportError as error:
        raise InputError(
            f"strategy rnsga2 must have pymoo, and it cannot be imported ({error}); pip install 'shears[rnsga2]'"
        ) from None
    wanted, size = _wanted(plan), population_of(space, plan)

    def survive(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        measured = np.array([trial.values for trial in trials], dtype=np.float64)
        worst = np.max(measured, axis=0, initial=0.0, where=np.isfinite(measured))
        costs = np.where(np.isfinite(measured), measured, worst)  # what breaks a bound on a size is not measured
        points = wanted if len(wanted) else np.minimum(_default_points(space, study), worst)
        low, scale = costs.min(axis=0), np.ptp(costs, axis=0)
        scale[scale == 0.0] = 1.0  # an objective in which all are equal says nothing
        selection = survivals.RankAndModifiedCrowdingSurvival((points - low) / scale, EPSILON, None, "no", False)
        excesses = [[sum(max(excess, 0.0) for excess in trial.constraints.values())] for trial in trials]
        population = populations.Population.new(F=(costs - low) / scale, G=np.array(excesses))
        kept = selection.do(_Constrained(), population, n_survive=size, return_indices=True)
        return [trials[index] for index in kept]

    return Nsga2(space, plan, survive)


class _Constrained:
    """All that pymoo's survival asks of a problem."""

    def has_constraints(self) -> bool:
        """Feasible configurations survive first."""
        return True


def _wanted(plan: Plan) -> Float64[np.ndarray, "P M"]:
    """Return the plan's reference points as costs; no rows where it names none."""
    num = len(plan.goal.objectives)
    try:
        points = [plan.goal.as_costs(parse_point(text, num)) for text in plan.options.reference_points]
    except ValueError as error:
        raise InputError(str(error)) from None
    return np.array(points, dtype=np.float64).reshape(len(points), num)


def _default_points(space: SearchSpace, study: Study) -> Float64[np.ndarray, "P M"]:
    """Return the costs of the heuristic, and the least of each cost among the landmarks.

    For loss against parameters, the second is the maximal's loss at the minimal's size.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.COMPLETE]
    costs = {RankConfig(trial.params): trial.values for trial in trials}
    known = np.array([costs[ranks] for ranks in landmarks(space)], dtype=np.float64)  # told first, heuristic first
    return np.stack([known[0], known.min(axis=0)])
