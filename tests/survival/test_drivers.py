"""Drivers that are killed: a search that is resumed ends as one that nobody disturbed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.survival.processes import SPACE, Started, saved, summary, tracked, trials, write
from tests.survival.traced import HELD, trace

VOLATILE = {"uid", "seconds", "epoch_seconds", "tracking_uri"}
SPACES = {
    # One trial at a time: whatever the sampler and the scheduler remember decides what comes next.
    "tpe and asha": (SPACE, 1),
    # Two at a time: in which order they end is chance, so nothing may depend on it.
    "random": (
        SPACE.replace("{name: tpe, startup: 3}", "random")
        .replace("{name: asha,", "{name: none,")
        .replace(", grace: 1, reduction: 2}", "}")
        .replace("trials: 8", "trials: 6"),
        2,
    ),
}


def steady(value: Any) -> Any:
    """A summary without times and places."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE}
    return [steady(v) for v in value] if isinstance(value, list) else value


def told(trial: FrozenTrial) -> tuple[Any, ...]:
    """What the sampler knows of a trial."""
    return trial.number, trial.state, trial.params, trial.value, trial.intermediate_values


def begun(root: Path) -> Counter[tuple[float, int, int]]:
    return Counter((line["lr"], line["seed"], line["epoch"]) for line in trace(root))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a search that nobody disturbs, made when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            root, (text, concurrency) = tmp_path_factory.mktemp("undisturbed"), SPACES[name]
            found = Started()
            search = found.search(root, space=write(root, text), concurrency=concurrency)
            assert search.ends() == 0, search.says
            found.close()
            made[name] = root
        return made[name]

    return get


def line_of(root: Path, stage: str, number: int, epoch: int) -> int:
    """Where (from 1) an epoch stands in the trace of a search that ran one trial at a time."""
    lr = (
        {t.number: t for t in trials(root)}[number].params["optim.lr"]
        if stage == "search"
        else None
    )
    seed = 0 if stage == "search" else 1 + number
    for i, found in enumerate(trace(root), 1):
        if found["epoch"] == epoch and found["seed"] == seed and lr in (None, found["lr"]):
            return i
    raise AssertionError(f"{stage} {number} has no epoch {epoch}")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "number"), [("search", 5), ("final", 0)])
def test_a_killed_driver_costs_nothing(
    stage: str, number: int, undisturbed: Any, tmp_path: Path, started: Started
) -> None:
    """kill -9 of the driver while a trial is in its second epoch; TPE draws trials 6 and 7 from
    what it remembers.
    """
    reference = undisturbed("tpe and asha")
    space = write(tmp_path)
    hold = line_of(reference, stage, number, 2)
    search = started.search(tmp_path, space=space, concurrency=1, hold=hold)
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    search.until(lambda: saved(tmp_path, stage, number, 1), "its checkpoint")
    search.process.kill()
    search.process.wait()
    cut = trials(tmp_path, stage)
    assert [t.state.is_finished() for t in cut] == [True] * number + [False]

    again = started.search(tmp_path, name="toy-1", resume=True, concurrency=1)
    assert again.ends() == 0, again.says
    for kept in ("search", "final"):
        assert [*map(told, trials(tmp_path, kept))] == [*map(told, trials(reference, kept))]
    assert steady(summary(tmp_path)) == steady(summary(reference))
    assert tracked(tmp_path) == tracked(reference)
    repeated = trace(tmp_path, HELD)[0]
    assert begun(tmp_path) - begun(reference) == {(repeated["lr"], repeated["seed"], 2): 1}
    assert begun(reference) - begun(tmp_path) == {}


@pytest.mark.slow
def test_a_driver_killed_twice_with_trials_side_by_side(
    undisturbed: Any, tmp_path: Path, started: Started
) -> None:
    """The same trials with the same outcome, up to their order."""
    reference = undisturbed("random")
    space = write(tmp_path, SPACES["random"][0])
    given: dict[str, Any] = {"space": space}
    for hold in (6, 15):
        search = started.search(tmp_path, **given, concurrency=2, hold=hold)
        search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
        search.process.kill()
        search.process.wait()
        (tmp_path / HELD).unlink()
        given = {"name": "toy-1", "resume": True}
    before = trials(tmp_path)
    assert {t.state for t in before} <= {TrialState.RUNNING, TrialState.COMPLETE}
    again = started.search(tmp_path, **given, concurrency=2)
    assert again.ends() == 0, again.says
    assert [*map(told, trials(tmp_path))] == [*map(told, trials(reference))]
    ended = [told(t) for t in before if t.state.is_finished()]
    assert ended == [told(trials(tmp_path)[number]) for number, *_ in ended], (
        "what had ended is left alone"
    )
    assert steady(summary(tmp_path)) == steady(summary(reference))
    assert tracked(tmp_path) == tracked(reference)
