"""The undocumented parts of Ray's schedulers that `_ray_internals` uses are what it takes them for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from tune_mm.tune.stop._ray_internals import brackets, put_in_bracket, rung_count


def asha(count: int) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="t",
        metric="m",
        mode="max",
        max_t=9,
        grace_period=1,
        reduction_factor=3,
        brackets=count,
    )


def test_brackets_have_rungs_at_powers_of_the_reduction() -> None:
    """Rungs of bracket s with grace 1, reduction 3, up to 9: 3^s, 3^(s+1) ... 9: 3 - s of them."""
    assert [rung_count(b) for b in brackets(asha(3))] == [3, 2, 1]


def test_a_bracket_takes_results_of_a_trial_by_its_id() -> None:
    """Of three results at a rung with reduction 3, the least is below the best third."""
    (bracket,) = brackets(asha(1))
    decisions = []
    for name, value in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
        decisions.append(bracket.on_result(SimpleNamespace(trial_id=name), 1, value))
    assert decisions[0] == "CONTINUE"
    assert decisions[2] == "STOP"


def test_a_trial_stays_in_the_bracket_that_it_was_put_in() -> None:
    scheduler = asha(2)
    trial: Any = SimpleNamespace(trial_id="x")
    seen: list[str] = []
    stand_in = SimpleNamespace(on_result=lambda trial, t, value: seen.append(trial.trial_id))
    put_in_bracket(scheduler, "x", stand_in)
    controller: Any = None
    scheduler.on_trial_result(controller, trial, {"t": 1, "m": 0.5})
    assert seen == ["x"]
