"""CMA-ES whose state is rebuilt from the trials.

Optuna's sampler pickles its optimizer into the study after each generation and unpickles it for the
next proposal: whoever resumes a journal from somebody else would run the code in it. The state is a
function of what CMA-ES was told (Hansen and Ostermeier, 2001), so here it is told the generations
again, once per process.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

SearchSpace = dict[str, BaseDistribution]


@dataclass
class _Told:
    """An optimizer that knows all complete generations of a study."""

    space: SearchSpace
    optimizer: Any


# Samplers are made anew for every trial: what they were told outlives them.
_told: WeakKeyDictionary[Study, _Told] = WeakKeyDictionary()


class RebuiltCmaEs(CmaEsSampler):
    """Proposes what Optuna's sampler proposes, and neither writes nor reads a pickle.

    Why `_restore_optimizer` and `_init_optimizer`, which Optuna does not document: it offers no
    other place to decide where the state comes from. Held by tests/tune/propose/test_cmaes.py.
    """

    def __init__(self, seed: int, startup: int) -> None:
        """startup: trials drawn at random before the first generation."""
        super().__init__(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        self._study: Study | None = None
        self._space: SearchSpace = {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: SearchSpace
    ) -> dict[str, Any]:
        self._study = study
        self._space = search_space
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """The optimizer after all complete generations.

        A generation is told the trials of it that ended first, as it was when they ended.
        """
        assert self._study is not None
        transform = _SearchSpaceTransform(self._space, transform_step=True, transform_0_1=True)
        if self._study.direction == StudyDirection.MINIMIZE:
            sign = 1.0
        else:
            sign = -1.0
        generations = self._generations(completed_trials)
        drawn = self._cma_rng.rng.get_state()
        optimizer = self._known(transform)
        latest = max(generations, default=0)
        if latest > 0:
            # Optuna's draws for a new optimizer until a trial of the second generation has ended.
            self._cma_rng.rng.set_state(drawn)
        while True:
            generation = generations.get(optimizer.generation, [])
            if len(generation) < optimizer.population_size:
                break
            told = []
            for trial in generation[: optimizer.population_size]:
                assert trial.value is not None
                told.append((transform.transform(trial.params), sign * trial.value))
            optimizer.tell(told)
        if latest > 0:
            _told[self._study] = _Told(self._space, optimizer)
        # The caller seeds what it gets, and asks it.
        return copy.deepcopy(optimizer)

    def _known(self, transform: _SearchSpaceTransform) -> Any:
        """What this process has told already, or an optimizer that knows nothing."""
        assert self._study is not None
        known = _told.get(self._study)
        if known is not None and known.space == self._space:
            return known.optimizer
        return self._init_optimizer(transform, self._study.direction)

    def _generations(self, completed_trials: list[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
        """Trials by generation, in the order in which they ended; without those drawn at random."""
        found: dict[int, list[FrozenTrial]] = {}
        for trial in sorted(completed_trials, key=_end):
            generation = trial.system_attrs.get(self._attr_key_generation)
            if generation is not None:
                found.setdefault(generation, []).append(trial)
        return found


def _end(trial: FrozenTrial) -> tuple[datetime, int]:
    assert trial.datetime_complete is not None
    return trial.datetime_complete, trial.number
