"""CMA-ES without pickles proposes what Optuna's proposes, also after a resume, and runs no code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import Trial

from tune_mm.tune.propose.cmaes import RebuiltCmaEs
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.samplers import seed_of

STARTUP = 4


def ours(number: int) -> BaseSampler:
    return RebuiltCmaEs(seed_of(0, number), STARTUP)


def optunas(number: int) -> BaseSampler:
    return CmaEsSampler(
        seed=seed_of(0, number), n_startup_trials=STARTUP, warn_independent_sampling=False
    )


def value(trial: Trial) -> float:
    """A valley that turns: (x - 1)^2 + 10 (y - x^2)^2, and a third setting on a log scale."""
    x = trial.suggest_float("x", -2, 2)
    y = trial.suggest_float("y", -2, 2)
    rate = trial.suggest_float("rate", 1e-4, 1, log=True)
    return (x - 1) ** 2 + 10 * (y - x**2) ** 2 + rate


@pytest.mark.parametrize(
    ("direction", "sign"), [(StudyDirection.MINIMIZE, 1.0), (StudyDirection.MAXIMIZE, -1.0)]
)
def test_it_proposes_what_optuna_s_sampler_proposes(direction: StudyDirection, sign: float) -> None:
    """60 trials: 4 at random, then eight generations of 7.

    Up to rounding: a pickle keeps half of the covariance matrix, which makes it symmetric.
    """
    proposals = []
    for make in (ours, optunas):
        study = optuna.create_study(direction=direction)
        for number in range(60):
            study.sampler = make(number)
            trial = study.ask()
            study.tell(trial, sign * value(trial))
        proposals.append([trial.params for trial in study.trials])
    for mine, theirs in zip(*proposals, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


def test_trials_that_end_late_change_no_generation() -> None:
    """Of 9 trials asked for at once, the 7 that end first make the generation."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="s")
    for number in range(STARTUP):
        study.sampler = ours(number)
        first = study.ask()
        study.tell(first, value(first))
    asked = []
    for number in range(STARTUP, STARTUP + 9):
        study.sampler = ours(number)
        trial = study.ask()
        asked.append((trial, value(trial)))
    for trial, found in asked[2:]:
        study.tell(trial, found)
    next_one = study.ask()

    def proposed() -> dict[str, float]:
        reopened = optuna.load_study(storage=storage, study_name="s", sampler=ours(100))
        frozen = reopened.trials[next_one.number]
        space = reopened.sampler.infer_relative_search_space(reopened, frozen)
        return reopened.sampler.sample_relative(reopened, frozen, space)

    before = proposed()
    for trial, found in asked[:2]:
        study.tell(trial, found)
    assert proposed() == before


class _Code:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(("make", "runs"), [(ours, False), (optunas, True)])
def test_code_in_a_journal_does_not_run(
    tmp_path: Path, make: Callable[[int], BaseSampler], runs: bool
) -> None:
    """With Optuna's sampler it does: the attribute is where that keeps its optimizer."""
    folder = tmp_path / "made by the code"
    storage = open_storage(tmp_path / "optuna.journal")
    study = optuna.create_study(storage=storage)
    for number in range(STARTUP + 1):
        study.sampler = ours(number)
        trial = study.ask()
        code = pickle.dumps(_Code(folder)).hex()
        storage.set_trial_system_attr(trial._trial_id, "cma:optimizer:0", code)
        study.tell(trial, value(trial))
    study.sampler = make(99)
    value(study.ask())
    assert folder.exists() == runs


def test_it_leaves_no_pickle_in_the_study() -> None:
    study = optuna.create_study()
    for number in range(30):
        study.sampler = ours(number)
        trial = study.ask()
        study.tell(trial, value(trial))
    written = {key for trial in study.trials for key in trial.system_attrs}
    assert written == {"cma:generation"}
