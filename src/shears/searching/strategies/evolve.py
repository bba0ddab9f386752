"""NSGA-II (Deb et al., 2002) by Optuna on all objectives, feasible configurations before infeasible ones."""

import warnings
from collections.abc import Callable, Sequence

from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.shared.board import distributions
from shears.searching.shared.study import new_study
from shears.searching.strategies.base import Evaluated, Plan, digest, first, landmarks

Survival = Callable[[Study, list[FrozenTrial]], list[FrozenTrial]]


class Nsga2:
    """Proposes the heuristic and both ends, then children of the fittest; keeps a study, a function of the history.

    Optuna saves no generator, so each proposal gets a sampler seeded by (seed, length of the history). `survival` says
    who lives on into the next generation; by default NSGA-II's own, by front and crowding distance.
    """

    def __init__(self, space: SearchSpace, plan: Plan, survival: Survival | None = None) -> None:
        self._space, self._plan, self._survival = space, plan, survival
        self._first = list(dict.fromkeys(landmarks(space)))
        self._population = population_of(space, plan)
        self._forget()

    def _forget(self) -> None:
        self._told: list[Evaluated] = []
        self._study = new_study(["minimize"] * len(self._plan.goal.objectives))

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return a landmark at first, then a child, which may be known."""
        return first(self.propose_many(history, 1))

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return landmarks, or the next children of a generation: their parents are of the one before."""
        if list(history[: len(self._told)]) != self._told:
            self._forget()
        for evaluated in history[len(self._told) :]:
            self._tell(evaluated)
        place = len(history)
        if place < len(self._first):
            return self._first[place:][:most]
        most = min(most, self._population - place % self._population)
        return [self._child(self._sampler(self._plan.stream(number))) for number in range(place, place + most)]

    def _tell(self, evaluated: Evaluated) -> None:
        sampler = self._sampler("")  # draws nothing: every parameter is given
        self._study.enqueue_trial(dict(evaluated.ranks))
        trial = self._study.ask(distributions(self._space))
        # parents are settled generation by generation, as in a search that was never interrupted: computed later, at
        # once, they would come in another order than from Optuna's cache, and so would their children
        generation = sampler.get_trial_generation(self._study, _running(self._study, trial))
        sampler.get_parent_population(self._study, generation)
        for constraint, excess in self._plan.goal.excesses(evaluated.metrics).items():
            trial.set_constraint(constraint, excess)
        self._study.tell(trial, self._plan.goal.cost(evaluated.metrics))
        self._told.append(evaluated)

    def _child(self, sampler: NSGAIISampler) -> RankConfig:
        """Draw a child in a trial that is thrown away, so that the study stays a function of the history."""
        self._study.sampler = sampler
        trial = self._study.ask()
        generation = sampler.get_trial_generation(self._study, _running(self._study, trial))
        # Optuna returns parents in another order when they are computed than when they come from its cache
        sampler.get_parent_population(self._study, generation)
        ranks = {group: trial.suggest_categorical(group, list(ranks)) for group, ranks in self._space.ranks.items()}
        self._study.tell(trial, state=TrialState.FAIL)
        return RankConfig(ranks)

    def _sampler(self, stream: str) -> NSGAIISampler:
        seed = int(digest(stream)[:8], 16)  # numpy takes 32 bits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of the survival
            return NSGAIISampler(
                population_size=self._population, seed=seed, elite_population_selection_strategy=self._survival
            )


def population_of(space: SearchSpace, plan: Plan) -> int:
    """Return the size of a generation; all landmarks are in the first."""
    return max(plan.population, len({*landmarks(space)}), 2)


def _running(study: Study, trial: Trial) -> FrozenTrial:
    return next(found for found in reversed(study.get_trials(deepcopy=False)) if found.number == trial.number)
