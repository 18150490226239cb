"""Ray's schedulers with the memory of an earlier driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
from ray.tune.schedulers import TrialScheduler

from tune_mm.config import ScheduleConfig
from tune_mm.tune import schedulers
from tune_mm.tune.domains import Domain
from tune_mm.tune.ledger import Assignment
from tune_mm.tune.spec import SchedulerSpec


def make(name: str, mode: str = "max", past: Any = None, resumed: Any = None) -> Any:
    return schedulers.make(name, mode, 9, 1, 3, {}, past or {}, resumed or {})


def trial(number: int) -> Any:
    return SimpleNamespace(trial_id=f"t{number}", config={"number": number})


def result(epoch: int, value: float) -> dict[str, Any]:
    return {"training_iteration": epoch, "objective": value}


def decisions(scheduler: Any, number: int, values: list[tuple[int, float]]) -> list[str]:
    one = trial(number)
    scheduler.on_trial_add(None, one)
    return [scheduler.on_trial_result(None, one, result(*v)) for v in values]


@pytest.mark.parametrize("name", get_args(SchedulerSpec.model_fields["name"].annotation))
@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_scheduler_can_be_made(name: str, mode: str) -> None:
    if name == "pbt":
        domains = {"optim.lr": Domain("loguniform", (1e-4, 1.0)), "train.batch_size": Domain("randint", (1, 4))}
        found: Any = schedulers.make(name, mode, 9, 2, 3, domains, {}, {})
        assert list(found._hyperparam_mutations["values"]) == ["optim.lr"]
    else:
        assert isinstance(make(name, mode), TrialScheduler)


@pytest.mark.parametrize("name", ["asha", "hyperband"])
@pytest.mark.parametrize("sign", [1, -1])
def test_rungs_rebuilt_from_the_past_decide_as_the_undisturbed_ones(sign: int, name: str) -> None:
    mode = "max" if sign > 0 else "min"
    histories = {n: [(e, sign * (0.1 * n + 0.01 * e)) for e in range(1, 4)] for n in range(4)}
    undisturbed = make(name, mode)
    for number, history in histories.items():
        decisions(undisturbed, number, history)
    resumed = make(name, mode, past=histories)
    assert len(resumed._brackets) == (1 if name == "asha" else 3)
    assert any(r for b in undisturbed._brackets for _, r in b._rungs)
    for before, after in zip(undisturbed._brackets, resumed._brackets, strict=True):
        for old, new in zip(before._rungs, after._rungs, strict=True):
            assert sorted(old[1].values()) == sorted(new[1].values())
    for number, value in ((5, 0.05), (6, 0.9)):
        assert decisions(undisturbed, number, [(1, sign * value)]) == decisions(resumed, number, [(1, sign * value)])


def test_a_resumed_trial_keeps_its_rungs_and_is_counted_once() -> None:
    assignment = Assignment(7, {}, "/checkpoint", ((1, 0.5), (2, 0.55), (3, 0.6)))
    scheduler = make("asha", past={0: [(1, 0.1)], 1: [(1, 0.2)]}, resumed={7: assignment})
    one = trial(7)
    scheduler.on_trial_add(None, one)
    first = dict(scheduler._brackets[0]._rungs[-1][1])
    assert first["t7"] == 0.5
    assert len(first) == 3
    assert scheduler.on_trial_result(None, one, result(4, 0.01)) == TrialScheduler.CONTINUE
    scheduler.on_trial_add(None, one)  # its worker died: Ray adds it again
    assert scheduler._brackets[0]._rungs[-1][1] == first


def test_the_last_epoch_stops_a_trial() -> None:
    assert decisions(make("asha"), 0, [(9, 0.5)]) == [TrialScheduler.STOP]


@pytest.mark.parametrize(
    ("share", "epochs", "expected"), [(0.2, 30, 6), (0.01, 30, 1), (5, 30, 5), (50, 30, 30), (1, 30, 1)]
)
def test_grace_is_a_share_or_epochs(share: float, epochs: int, expected: int) -> None:
    assert schedulers.epochs_of(share, epochs) == expected


def test_rungs_shown_in_the_plan_are_ray_s() -> None:
    for epochs, grace, reduction in ((30, 0.2, 3), (9, 1, 3), (100, 4, 2.5), (5, 5, 3)):
        found: Any = schedulers.make("asha", "max", epochs, grace, reduction, {}, {}, {})
        assert schedulers.rungs(epochs, grace, reduction) == tuple(
            int(m) for m, _ in reversed(found._brackets[0]._rungs)
        )


@pytest.mark.parametrize(
    ("milestones", "grace", "epochs", "expected"),
    [
        ((0.7,), 0.2, 100, 75),  # the drop at 70, a twentieth of 100 past it
        ((0.7,), 0.2, 20, 15),
        ((0.7,), 0.2, 10, 8),
        ((0.3, 0.6), 0.2, 100, 65),  # the last one counts
        ((0.7,), 0.9, 100, 90),  # grace may be later
        ((120,), 0.2, 100, 20),  # a drop that never comes
        ((0.99,), 0.2, 100, 100),
    ],
)
def test_no_trial_is_stopped_before_the_learning_rate_has_dropped(
    milestones: Any, grace: float, epochs: int, expected: int
) -> None:
    schedule = ScheduleConfig(name="step", milestones=milestones)
    assert schedulers.first_stop(grace, epochs, schedule) == expected
    assert schedulers.first_stop(grace, epochs, None) == schedulers.epochs_of(grace, epochs)
    assert schedulers.first_stop(grace, epochs, ScheduleConfig(name="cosine")) == schedulers.epochs_of(grace, epochs)
