"""A loss that is not finite: the trial is told failed with what it had, and the others go on."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from tests.survival.processes import SPACE, Started, summary, tracked, trials, write
from tests.survival.traced import objective
from tune_mm.tune.propose.samplers import seed_of

STARTUP = 3


@pytest.mark.slow
def test_a_diverged_trial_is_told_failed_with_its_state(tmp_path: Path, started: Started) -> None:
    """The second trial's loss is NaN in its second epoch. What TPE draws afterwards is what Optuna
    alone draws from the same trials.
    """
    text = SPACE.replace("{top: 1, seeds: 2, epochs: 3}", "{top: 0}").replace(
        "name: asha", "name: none"
    )
    text = text.replace(", grace: 1, reduction: 2", "").replace(
        "domains:\n", "domains:\n  optim.weight_decay: {choice: [0.0, 1.0]}\n"
    )
    text = text.replace(
        "  - {optim.lr: 1e-3}",
        "  - {optim.lr: 1e-3, optim.weight_decay: 0.0}\n  - {optim.lr: 1e-2, optim.weight_decay: 1.0}",
    )
    search = started.search(tmp_path, space=write(tmp_path, text), concurrency=1)
    assert search.ends() == 0, search.says
    assert "diverged: search 1: diverged: the loss was not finite in epoch 2" in search.says

    found = trials(tmp_path)
    one, facts = found[1], found[1].user_attrs
    assert (one.state, one.params) == (
        TrialState.FAIL,
        {"optim.lr": 1e-2, "optim.weight_decay": 1.0},
    )
    # The best so far is reported, which the second epoch does not change.
    assert one.intermediate_values == dict.fromkeys((1, 2), pytest.approx(objective(1e-2, 1)))
    assert (facts["diverged"], facts["epochs"], facts["best_epoch"]) == (True, 2, 1)
    assert facts["best_metrics"] == {"val/accuracy": pytest.approx(objective(1e-2, 1))}
    diverged = {t.number for t in found if t.params["optim.weight_decay"] == 1.0}
    assert {t.number for t in found if t.state == TrialState.FAIL} == diverged
    assert {t.number for t in found if t.state == TrialState.COMPLETE} == set(range(8)) - diverged
    assert len(summary(tmp_path)["diverged"]) == len(diverged)
    own = tracked(tmp_path)["search/1"]
    assert own["status"] == ("FAILED", "failed")
    assert own["metrics"]["best/val/accuracy"] == [(2, pytest.approx(objective(1e-2, 1)))]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for trial in found[STARTUP + 1 :]:
        sampler = TPESampler(
            seed=seed_of(0, trial.number), n_startup_trials=STARTUP, multivariate=True, group=False
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(found[: trial.number])
        asked = study.ask()
        drawn = {
            "optim.weight_decay": asked.suggest_categorical("optim.weight_decay", [0.0, 1.0]),
            "optim.lr": asked.suggest_float("optim.lr", 1e-5, 1e-1, log=True),
        }
        assert trial.params == drawn


REAL = """config: iemocap
method: joint
objective: val/accuracy
set:
  model.encoder.width: 10
  model.encoder.heads: 2
  model.encoder.layers: 1
  model.fusion.heads: 2
  model.fusion.layers: 1
  optim.clip: null
domains:
  optim.lr: {grid: [1e+30, 1e-3]}
searcher: grid
scheduler: {name: none, epochs: 2}
finals: {top: 1, seeds: 1, epochs: 1}
"""


@pytest.mark.slow
def test_real_training_that_diverges_ends_alone(tmp_path: Path, started: Started) -> None:
    """Adam's first step has the size of the learning rate: at 1e30 the next loss is not finite."""
    arguments = ["--space", write(tmp_path, REAL, "real"), "--concurrency", "1"]
    search = started.module(
        tmp_path,
        "tune_mm.search",
        *arguments,
        TUNE_MM_CACHE=str(tmp_path / "cache"),
        TUNE_MM_DATA="",
    )
    assert search.ends() == 0, search.says
    bad, good = trials(tmp_path, name="real-1")
    assert (bad.state, good.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert bad.user_attrs["reason"] == "diverged: the loss was not finite in epoch 1"
    assert "diverged: search 0: diverged: the loss was not finite in epoch 1" in search.says
    found = summary(tmp_path, "real-1")
    assert (found["status"], found["failed"]) == ("completed", [])
    assert [b["trial"] for b in found["best"]["search"]] == [1], "it is never chosen"
    assert [g["source"] for g in found["finals"]["groups"]] == ["search/1"]
