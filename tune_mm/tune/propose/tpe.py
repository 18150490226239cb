"""TPE at a cost that does not grow with the search: Optuna's reads and weighs all trials for every
proposal.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Sequence
from itertools import islice
from typing import Any, cast
from weakref import WeakKeyDictionary

import optuna
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

# What TPE is shown of a long search: ended trials, the best of them for certain, and running ones.
SHOWN, BEST, SHOWN_RUNNING = 500, 25, 250


class Window:
    """What TPE is shown of a study: at most SHOWN trials that completed or were pruned,
    SHOWN_RUNNING that run.

    The best are among them (TPE takes at most 25 for its density of good settings, so that this one
    is exact); of the others, whose older ones it weighs down in any case, the latest. It is a
    function of the study's content alone, and remembers what it saw, since at thousands of trials
    looking at each costs more than TPE itself.
    """

    def __init__(self, direction: StudyDirection) -> None:
        self._sign = 1.0 if direction == StudyDirection.MINIMIZE else -1.0
        self._best: list[tuple[tuple[float, float, float], int]] = []  # rank and number, best first
        self._ended: list[int] = []  # ascending, as is what follows
        self._alive: list[int] = []
        self._seen = 0

    def of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """By number. trials: all of the study by number, with those of the call before."""
        before, self._alive = [*self._alive, *range(self._seen, len(trials))], []
        self._seen = len(trials)
        for number in before:
            if not trials[number].state.is_finished():
                self._alive.append(number)
            elif trials[number].state != TrialState.FAIL:
                insort(self._ended, number)
                insort(self._best, (_rank(trials[number], self._sign), number))
                del self._best[BEST:]
        running = (n for n in reversed(self._alive) if trials[n].state == TrialState.RUNNING)
        return [trials[n] for n in sorted([*self._chosen(), *islice(running, SHOWN_RUNNING)])]

    def _chosen(self) -> list[int]:
        """Of those that ended."""
        if len(self._ended) <= SHOWN:
            return self._ended
        best = {number for _, number in self._best}
        others = (n for n in reversed(self._ended) if n not in best)
        return [*best, *islice(others, SHOWN - len(best))]


def _rank(trial: FrozenTrial, sign: float) -> tuple[float, float, float]:
    """The order of TPE: complete ones by value, then pruned ones by how far they came and by their
    last value.
    """
    if trial.state == TrialState.COMPLETE:
        return 0, 0, sign * (trial.value or 0.0)
    if not trial.intermediate_values:
        return 1, 1, 0
    step = max(trial.intermediate_values)
    return 1, -step, sign * trial.intermediate_values[step]


class _Shown(InMemoryStorage):
    """A study of trials that are kept elsewhere."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        super().__init__()
        self._shown = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [t for t in self._shown if states is None or t.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Nothing: TPE drafts a proposal for other processes, and the ledger has one."""


_windows: WeakKeyDictionary[Study, Window] = (
    WeakKeyDictionary()
)  # a sampler is made for every trial


class WindowedTPE(TPESampler):
    """TPE for one trial.

    A study of more than SHOWN trials is seen through its window, so that a resumed search proposes
    what it would have. conditional: trials differ in what is drawn; else all of them have the
    distributions of any one, and Optuna's comparison of all, half of its time, is left out.
    """

    def __init__(self, seed: int, startup: int, conditional: bool) -> None:
        super().__init__(seed=seed, n_startup_trials=startup, multivariate=True, group=conditional)
        self._conditional, self._view_of = conditional, cast("Study | None", None)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        view = self._view(study)
        if self._conditional:
            return super().infer_relative_search_space(view, trial)
        ended = view.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return (
            {k: d for k, d in sorted(ended[-1].distributions.items()) if not d.single()}
            if ended
            else {}
        )

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return super().sample_relative(self._view(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return super().sample_independent(self._view(study), trial, param_name, param_distribution)

    def _view(self, study: Study) -> Study:
        if self._view_of is None:
            trials = study.get_trials(deepcopy=False)
            if len(trials) > SHOWN:
                shown = _windows.setdefault(study, Window(study.direction)).of(trials)
                self._view_of = optuna.create_study(
                    storage=_Shown(shown), direction=study.direction
                )
            else:
                self._view_of = study
        return self._view_of
