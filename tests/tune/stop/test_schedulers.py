"""Ray's schedulers with the memory of an earlier driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
from ray.tune.schedulers import TrialScheduler

from tune_mm.config import ScheduleConfig
from tune_mm.tune.propose.ledger import Assignment
from tune_mm.tune.space.domains import Domain
from tune_mm.tune.space.spec import SchedulerSpec
from tune_mm.tune.stop import schedulers


def make(name: str, mode: str = "max", past: Any = None, resumed: Any = None, **more: Any) -> Any:
    """past: (epoch, value) pairs by number."""
    ended = [Assignment(n, {}, reported=tuple(history)) for n, history in (past or {}).items()]
    return schedulers.make(name, mode, 9, 1, 3, {}, ended, resumed or {}, **more)


class Told:
    """What a scheduler looks at of a trial."""

    def __init__(self, number: int, values: dict[str, Any]) -> None:
        self.trial_id, self.config = f"t{number}", {"number": number, "values": values}
        self.experiment_tag = self.trial_id
        kept = SimpleNamespace(num_to_keep=4, checkpoint_frequency=0)
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=kept)
        )


def trial(number: int, **values: Any) -> Any:
    return Told(number, values)


def result(epoch: int, value: float, passes: float | None = None) -> dict[str, Any]:
    return {
        "training_iteration": epoch,
        "passes": float(epoch) if passes is None else passes,
        "objective": value,
    }


def decisions(scheduler: Any, number: int, values: list[tuple[int, float]]) -> list[str]:
    one = trial(number)
    scheduler.on_trial_add(None, one)
    return [scheduler.on_trial_result(None, one, result(*v)) for v in values]


@pytest.mark.parametrize("name", get_args(SchedulerSpec.model_fields["name"].annotation))
@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_scheduler_can_be_made(name: str, mode: str) -> None:
    if name == "pbt":
        domains = {
            "optim.lr": Domain("loguniform", (1e-4, 1.0)),
            "train.batch_size": Domain("randint", (1, 4)),
        }
        found: Any = schedulers.make(name, mode, 9, 2, 3, domains, [], {})
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
        assert decisions(undisturbed, number, [(1, sign * value)]) == decisions(
            resumed, number, [(1, sign * value)]
        )


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


def test_only_worse_values_stop_a_trial_not_the_last_rung() -> None:
    """A trial ends by itself after its epochs, which may be more passes over the data than there
    are epochs.
    """
    scheduler = make("asha")
    assert decisions(scheduler, 0, [(9, 0.5)]) == [TrialScheduler.CONTINUE]
    assert decisions(scheduler, 1, [(9, 0.4)]) == [TrialScheduler.STOP]


def reports(scheduler: Any, one: Any, rows: list[tuple[int, float, float]]) -> list[str]:
    """What is decided on (epoch, passes, value) after one another, until it is to stop."""
    controller = SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(controller, one)
    out: list[str] = []
    for e, p, v in rows:
        if TrialScheduler.STOP not in out:
            out.append(scheduler.on_trial_result(controller, one, result(e, v, p)))
    return out


def test_trials_are_compared_at_equal_passes_not_at_equal_epochs() -> None:
    """Rungs 1, 3, 9. The third pays two passes per epoch: at epoch 2 it has spent 4 and meets those
    at rung 3.
    """
    scheduler = make("asha")
    for number, value in ((0, 0.5), (1, 0.6)):
        assert reports(scheduler, trial(number), [(3, 3.0, value)]) == [TrialScheduler.CONTINUE]
    dear = [(1, 2.0, 0.1), (2, 4.0, 0.4)]  # alone at rung 1, below both at rung 3
    assert reports(scheduler, trial(2), dear) == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    by_epochs = [(1, 1.0, 0.1), (2, 2.0, 0.4)]
    assert reports(make("asha", past={0: [(3, 0.5)], 1: [(3, 0.6)]}), trial(2), by_epochs) == [
        TrialScheduler.CONTINUE,
        TrialScheduler.CONTINUE,
    ]


def test_dear_trials_have_rungs_beyond_the_epochs() -> None:
    """Nine epochs of ten passes each: at 30 passes they meet at rung 27, which no trial of nine
    passes reaches.
    """
    scheduler = make("asha", past={0: [(9, 0.9)]})
    assert reports(scheduler, trial(1), [(3, 30.0, 0.5)]) == [TrialScheduler.CONTINUE]
    assert reports(scheduler, trial(2), [(3, 30.0, 0.4)]) == [TrialScheduler.STOP]


def test_a_trial_that_skips_rungs_counts_at_the_highest_alone() -> None:
    scheduler = make("asha")
    reports(scheduler, trial(0), [(1, 5.0, 0.9), (2, 6.0, 0.95)])
    recorded = {milestone: dict(values) for milestone, values in scheduler._brackets[0]._rungs}
    assert [m for m, values in recorded.items() if values] == [3]
    assert recorded[3] == {"t0": 0.9}


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_no_trial_is_stopped_in_a_quiet_epoch(name: str) -> None:
    """Good trials have gone ahead; a poor one that would be stopped at once goes on until its dip
    is over.
    """
    scheduler = make(name, quiet=lambda values: ((1, 5),) if values.get("dips") else ())
    for number in range(6):
        reports(scheduler, trial(number), [(e, float(e), 0.9 + number / 1e3) for e in range(1, 10)])
    numbers = range(10, 40)  # hyperband: whichever bracket they are in
    poor = [(e, float(e), 0.1) for e in range(1, 10)]
    found = [reports(scheduler, trial(n, dips=True), poor) for n in numbers]
    assert all(decided[:5] == [TrialScheduler.CONTINUE] * 5 for decided in found)
    assert TrialScheduler.STOP in found[0][5:] or name == "hyperband"
    assert any(TrialScheduler.STOP in decided[5:] for decided in found)
    assert any(TrialScheduler.STOP in reports(scheduler, trial(n), poor)[:5] for n in range(50, 80))


def test_population_based_training_does_not_look_at_quiet_epochs() -> None:
    domains = {"optim.lr": Domain("loguniform", (1e-4, 1.0))}
    scheduler: Any = schedulers.make(
        "pbt", "max", 9, 1, 3, domains, [], {}, lambda values: ((2, 9),)
    )
    one = trial(0, **{"optim.lr": 0.1})
    scheduler.on_trial_add(None, one)
    assert scheduler.on_trial_result(None, one, result(4, 0.1)) == TrialScheduler.CONTINUE
    assert scheduler._trial_state[one].last_score is None


def test_a_past_with_passes_and_quiet_epochs_fills_the_rungs_as_it_did() -> None:
    """Two trials that pay three passes in epoch 1 and dip in epoch 2; then a new driver is told of
    both.
    """
    rows = {
        0: [(1, 3.0, 0.2), (2, 4.0, 0.25), (3, 9.0, 0.6)],
        1: [(1, 3.0, 0.3), (2, 9.5, 0.3), (3, 10.5, 0.7)],
    }
    undisturbed = make("asha", quiet=lambda values: ((2, 2),))
    for number, row in rows.items():
        reports(undisturbed, trial(number), row)
    known = [
        Assignment(n, {}, "/there", tuple((e, v) for e, _, v in row), tuple(p for _, p, _ in row))
        for n, row in rows.items()
    ]
    again: Any = schedulers.make(
        "asha", "max", 9, 1, 3, {}, known[:1], {1: known[1]}, lambda values: ((2, 2),)
    )
    again.on_trial_add(None, trial(1))
    for old, new in zip(undisturbed._brackets[0]._rungs, again._brackets[0]._rungs, strict=True):
        assert sorted(old[1].values()) == sorted(new[1].values())
    assert [sorted(v.values()) for _, v in again._brackets[0]._rungs if v] == [
        [0.6, 0.7],
        [0.2, 0.3],
    ]


@pytest.mark.parametrize(
    ("share", "epochs", "expected"),
    [(0.2, 30, 6), (0.01, 30, 1), (5, 30, 5), (50, 30, 30), (1, 30, 1)],
)
def test_grace_is_a_share_or_epochs(share: float, epochs: int, expected: int) -> None:
    assert schedulers.epochs_of(share, epochs) == expected


def test_rungs_shown_in_the_plan_are_ray_s() -> None:
    for epochs, grace, reduction in ((30, 0.2, 3), (9, 1, 3), (100, 4, 2.5), (5, 5, 3)):
        found: Any = schedulers.make("asha", "max", epochs, grace, reduction, {}, [], {})
        assert schedulers.rungs(epochs, grace, reduction) == tuple(
            int(m) for m, _ in reversed(found._brackets[0]._rungs) if m <= epochs
        )


@pytest.mark.parametrize(
    ("quiet", "expected"),
    [
        ((), (1, 3, 9)),
        (((2, 4),), (1, 5, 9)),
        (((1, 2), (3, 3)), (4, 9)),
        (((3, 9),), (1,)),
        (((1, 9),), ()),
    ],
)
def test_a_rung_in_a_quiet_epoch_moves_behind_it(quiet: Any, expected: tuple[int, ...]) -> None:
    assert schedulers.rungs(9, 1, 3, quiet) == expected


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
    assert schedulers.first_stop(
        grace, epochs, ScheduleConfig(name="cosine")
    ) == schedulers.epochs_of(grace, epochs)
