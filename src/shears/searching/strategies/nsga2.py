"""NSGA-II and RNSGA-II: strategies that breed a population towards a front; Optuna breeds.

NSGA-II (Deb et al., 2002) follows all objectives. RNSGA-II (Deb and Sundar, 2006) keeps, of equal
fronts, the configurations nearest to reference points; pymoo, an optional extra, selects them.
N trials, M objectives, P points.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import optuna
from jaxtyping import Float64
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import parse_point
from shears.errors import InputError, install_hint
from shears.searching.shared.storage import distributions, quiet_optuna
from shears.searching.strategies.base import Evaluated, SearchPlan, digest, landmarks

Survival = Callable[[Study, list[FrozenTrial]], list[FrozenTrial]]
EPSILON = 0.001  # pymoo's: of two nearer than this share of the range, one survives


class Nsga2:
    """Proposes the heuristic and both ends, then children of the fittest; feasible ones come first.

    Its study is a function of the history. Optuna saves no generator, so each proposal gets a
    sampler seeded by (seed, length of the history). `survival` selects the next generation; by
    default by front and crowding distance, as NSGA-II does.
    """

    def __init__(self, space: SearchSpace, plan: SearchPlan, survival: Survival | None = None) -> None:
        self._space = space
        self._plan = plan
        self._survival = survival
        self._first = landmarks(space)
        self._population = population_of(space, plan)
        self._forget()

    def _forget(self) -> None:
        self._seen: list[Evaluated] = []
        with quiet_optuna():
            self._study = optuna.create_study(
                storage=InMemoryStorage(), directions=["minimize"] * len(self._plan.goal.objectives)
            )

    def propose(self, history: Sequence[Evaluated]) -> RankConfig:
        """Return the landmarks first, then children of the last generation, which may be known."""
        if list(history[: len(self._seen)]) != self._seen:
            self._forget()
        for evaluated in history[len(self._seen) :]:
            self._add(evaluated)
        number = len(history)
        if number < len(self._first):
            return self._first[number]
        return self._child(self._sampler(self._plan.stream(number)))

    def _add(self, evaluated: Evaluated) -> None:
        """Add an evaluation to the study, as a trial that was asked for and told."""
        sampler = self._sampler("")  # draws nothing: every parameter is given
        self._study.enqueue_trial(dict(evaluated.ranks))
        trial = self._study.ask(distributions(self._space))
        self._settle_parents(sampler, trial)
        for constraint, excess in self._plan.goal.excesses(evaluated.metrics).items():
            trial.set_constraint(constraint, excess)
        self._study.tell(trial, self._plan.goal.cost(evaluated.metrics))
        self._seen.append(evaluated)

    def _child(self, sampler: NSGAIISampler) -> RankConfig:
        """Draw a child in a trial that fails, so that the study stays a function of the history."""
        self._study.sampler = sampler
        trial = self._study.ask()
        self._settle_parents(sampler, trial)
        space = self._space.ranks
        drawn = {group: trial.suggest_categorical(group, list(ranks)) for group, ranks in space.items()}
        self._study.tell(trial, state=TrialState.FAIL)
        return RankConfig(drawn)

    def _settle_parents(self, sampler: NSGAIISampler, trial: Trial) -> None:
        """Let Optuna cache the parents of the trial's generation now.

        Optuna returns parents in one order when it computes them and in another when they come from
        its cache. An undisturbed and a resumed search have the same children only if both take them
        from the cache.
        """
        trials = reversed(self._study.get_trials(deepcopy=False))
        running = next(each for each in trials if each.number == trial.number)
        generation = sampler.get_trial_generation(self._study, running)
        sampler.get_parent_population(self._study, generation)

    def _sampler(self, stream: str) -> NSGAIISampler:
        seed = int(digest(stream)[:8], 16)  # numpy takes 32 bits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of a survival
            return NSGAIISampler(
                population_size=self._population,
                seed=seed,
                elite_population_selection_strategy=self._survival,
            )


def population_of(space: SearchSpace, plan: SearchPlan) -> int:
    """Return the size of a generation; the first one holds all landmarks."""
    return max(plan.population, len(landmarks(space)), 2)


def rnsga2(space: SearchSpace, plan: SearchPlan) -> Nsga2:
    """Return NSGA-II with survival by reference points.

    InputError without pymoo, or for points of another shape.
    """
    try:
        survivals = import_module("pymoo.algorithms.moo.rnsga2")
        populations = import_module("pymoo.core.population")
    except ImportError as error:
        raise InputError(
            f"strategy rnsga2 must have pymoo, and it cannot be imported ({error}); {install_hint('rnsga2')}"
        ) from None
    wanted = _wanted(plan)
    size = population_of(space, plan)

    def survive(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        measured = np.array([trial.values for trial in trials], dtype=np.float64)
        worst = np.max(measured, axis=0, initial=0.0, where=np.isfinite(measured))
        costs = np.where(np.isfinite(measured), measured, worst)  # not measured: over a bound
        points = wanted if len(wanted) else np.minimum(_default_points(space, study), worst)
        low = costs.min(axis=0)
        scale = np.ptp(costs, axis=0)
        scale[scale == 0.0] = 1.0  # an objective in which all are equal does not count
        scaled = (points - low) / scale
        selection = survivals.RankAndModifiedCrowdingSurvival(scaled, EPSILON, None, "no", False)
        bounds = [trial.constraints.values() for trial in trials]
        excesses = [[sum(max(excess, 0.0) for excess in each)] for each in bounds]
        population = populations.Population.new(F=(costs - low) / scale, G=np.array(excesses))
        kept = selection.do(_Constrained(), population, n_survive=size, return_indices=True)
        return [trials[index] for index in kept]

    return Nsga2(space, plan, survive)


class _Constrained:
    """The part of a pymoo problem that its survival reads."""

    def has_constraints(self) -> bool:
        """Return True: feasible configurations survive first."""
        return True


def _wanted(plan: SearchPlan) -> Float64[np.ndarray, "P M"]:
    """Return the plan's reference points as costs; no rows if it names none."""
    num = len(plan.goal.objectives)
    try:
        wanted = plan.options.reference_points
        points = [plan.goal.as_costs(parse_point(text, num)) for text in wanted]
    except ValueError as error:
        raise InputError(str(error)) from None
    return np.array(points, dtype=np.float64).reshape(len(points), num)


def _default_points(space: SearchSpace, study: Study) -> Float64[np.ndarray, "2 M"]:
    """Return the costs of the first landmark, the heuristic, and the least of each cost.

    For loss against parameters, the second point is the maximal configuration's loss at the minimal
    one's size.
    """
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    costs = {RankConfig(trial.params): trial.values for trial in trials}
    known = np.array([costs[ranks] for ranks in landmarks(space)], dtype=np.float64)
    return np.stack([known[0], known.min(axis=0)])
