"""NSGA-II (Deb et al., 2002) by Optuna on (quality, adapter parameters)."""

from collections.abc import Sequence

from optuna import Study, Trial
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan, digest, landmarks, opening
from shears.searching.study import distributions, new_study

GENERATIONS = 5  # in a small budget; Optuna's own population of 50 would be one random generation of 50 evaluations
SMALLEST_POPULATION, LARGEST_POPULATION = 4, 50


class Nsga2:
    """Proposes heuristic, seeds and both ends, then children of the fittest; keeps a study, a function of the history.

    Optuna saves no generator, so each proposal gets a sampler seeded by (seed, length of the history).
    """

    def __init__(self, space: SearchSpace, plan: Plan) -> None:
        self._space, self._plan = space, plan
        self._first = list(dict.fromkeys([*opening(space, plan), *landmarks(space)]))
        population = min(max(plan.max_evaluations // GENERATIONS, SMALLEST_POPULATION), LARGEST_POPULATION)
        self._population = max(population, len(self._first))  # all seeds are in the first generation
        self._forget()

    def _forget(self) -> None:
        self._told: list[Evaluated] = []
        self._study = new_study(["minimize", "minimize"])

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return a landmark or a seed at first, then a child, which may be known."""
        if list(history[: len(self._told)]) != self._told:
            self._forget()
        for evaluated in history[len(self._told) :]:
            self._tell(evaluated)
        if len(history) < len(self._first):
            return self._first[len(history)]
        return self._child(_sampler(self._plan.stream(len(history)), self._population))

    def _tell(self, evaluated: Evaluated) -> None:
        sampler = _sampler("", self._population)  # draws nothing: every parameter is given
        self._study.enqueue_trial(dict(evaluated.ranks))
        trial = self._study.ask(distributions(self._space))
        sampler.get_trial_generation(self._study, _running(self._study, trial))
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


def _sampler(stream: str, population: int) -> NSGAIISampler:
    seed = int(digest(stream)[:8], 16)  # numpy takes 32 bits
    return NSGAIISampler(population_size=population, seed=seed)


def _running(study: Study, trial: Trial) -> FrozenTrial:
    return next(found for found in reversed(study.get_trials(deepcopy=False)) if found.number == trial.number)
