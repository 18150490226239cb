"""TPE whose cost does not grow with the search: it is shown a window of a long one.

Optuna's sampler reads and weighs all trials for every proposal. A proposal took 13 ms with the window
and 27 ms without at 1,000 trials, 14 and 256 ms at 10,000 (`python benchmarks/ask.py`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import optuna
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

SHOWN = 500  # ended trials of a long search that TPE is shown
BEST = 25  # of these the best, for certain
SHOWN_RUNNING = 250  # trials that run

Rank = tuple[float, float, float]


class Window:
    """What TPE is shown of a study: at most SHOWN trials that ended, SHOWN_RUNNING that run.

    The best are among them: TPE takes at most 25 for its density of good settings, so that this one
    is exact. The others are the latest; TPE weighs down older ones in any case. The window is a
    function of the study's content alone. It remembers what it saw, since at thousands of trials
    looking at each costs more than TPE itself.
    """

    def __init__(self, direction: StudyDirection) -> None:
        if direction == StudyDirection.MINIMIZE:
            self._sign = 1.0
        else:
            self._sign = -1.0
        self._best: list[tuple[Rank, int]] = []  # rank and number, best first
        self._ended: list[int] = []  # numbers, ascending
        self._alive: list[int] = []  # numbers, ascending
        self._seen = 0

    def of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those shown, by number. trials: the whole study by number, growing from call to call."""
        maybe_ended = [*self._alive, *range(self._seen, len(trials))]
        self._alive = []
        self._seen = len(trials)
        for number in maybe_ended:
            self._sort_in(trials[number])
        latest_first = reversed(self._alive)
        running = (n for n in latest_first if trials[n].state == TrialState.RUNNING)
        shown = [*self._chosen(), *islice(running, SHOWN_RUNNING)]
        return [trials[number] for number in sorted(shown)]

    def _sort_in(self, trial: FrozenTrial) -> None:
        if not trial.state.is_finished():
            self._alive.append(trial.number)
        elif trial.state != TrialState.FAIL:
            insort(self._ended, trial.number)
            insort(self._best, (_rank(trial, self._sign), trial.number))
            del self._best[BEST:]

    def _chosen(self) -> list[int]:
        """Numbers of the ended trials that are shown."""
        if len(self._ended) <= SHOWN:
            return self._ended
        best = [number for _, number in self._best]
        others = (number for number in reversed(self._ended) if number not in best)
        return [*best, *islice(others, SHOWN - len(best))]


def _rank(trial: FrozenTrial, sign: float) -> Rank:
    """TPE's order: complete ones by value, then pruned ones by how far they came and what they had."""
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
        found = []
        for trial in self._shown:
            if states is None or trial.state in states:
                found.append(trial)
        return found

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Do nothing: TPE drafts a proposal for other processes, and the ledger has one."""


# By study, since a sampler is made for every trial.
_windows: WeakKeyDictionary[Study, Window] = WeakKeyDictionary()


class WindowedTPE(TPESampler):
    """TPE for one trial; a study of more than SHOWN trials is seen through its window.

    A resumed search proposes what an undisturbed one would have.
    """

    def __init__(self, seed: int, startup: int, conditional: bool) -> None:
        """
        conditional: trials differ in what is drawn. Else all of them have the distributions of any
            one, and Optuna's comparison of all, half of its time, is left out.
        """
        super().__init__(seed=seed, n_startup_trials=startup, multivariate=True, group=conditional)
        self._conditional = conditional
        self._view: Study | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        view = self._seen_as(study)
        if self._conditional:
            return super().infer_relative_search_space(view, trial)
        ended = view.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if not ended:
            return {}
        found = sorted(ended[-1].distributions.items())
        out = {}
        for key, distribution in found:
            if not distribution.single():
                out[key] = distribution
        return out

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return super().sample_relative(self._seen_as(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        view = self._seen_as(study)
        return super().sample_independent(view, trial, param_name, param_distribution)

    def _seen_as(self, study: Study) -> Study:
        if self._view is None:
            self._view = _windowed(study)
        return self._view


def _windowed(study: Study) -> Study:
    trials = study.get_trials(deepcopy=False)
    if len(trials) <= SHOWN:
        return study
    window = _windows.setdefault(study, Window(study.direction))
    shown = _Shown(window.of(trials))
    return optuna.create_study(storage=shown, direction=study.direction)
