"""Samplers on ask and tell without Ray: what is drawn, in which order, and what Optuna is told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_mm.tune.propose import tpe
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Ledger, Point
from tune_mm.tune.propose.samplers import make_sampler
from tune_mm.tune.propose.searcher import AskTell
from tune_mm.tune.space.domains import Domain, SearcherName, parse
from tune_mm.tune.space.drawing import draw, grid


def domains(**raw: Any) -> dict[str, Domain]:
    found = {k.replace("__", "."): parse(v) for k, v in raw.items()}
    return {k: d for k, d in found.items() if isinstance(d, Domain)}


SIMPLE = domains(lr={"loguniform": [1e-4, 1]}, layers={"randint": [1, 4]})
SWITCH = domains(
    name={"choice": ["sgd", "adam"]}, momentum={"uniform": [0, 0.9], "when": {"name": "sgd"}}
)


def ledger(
    path: Path,
    space: dict[str, Domain],
    name: SearcherName = "tpe",
    points: tuple[Point, ...] = (),
    mode: str = "max",
) -> Ledger:
    sampler = partial(_sampler, name, any(d.when for d in space.values()))
    suggest = partial(draw, space, {})
    return Ledger(
        open_storage(path / "j"),
        "s/search",
        mode,
        suggest,
        sampler,
        lambda n: points[n] if n < len(points) else None,
    )


def _sampler(name: SearcherName, conditional: bool, number: int) -> Any:
    return make_sampler(name, 7, number, 3, conditional)


def result(epoch: int, value: float, **more: Any) -> dict[str, Any]:
    return {
        "training_iteration": epoch,
        "objective": value,
        "best_epoch": epoch,
        "finished": False,
        **more,
    }


@pytest.mark.parametrize("name", [n for n in get_args(SearcherName) if n != "grid"])
def test_every_sampler_draws_from_every_domain(tmp_path: Path, name: SearcherName) -> None:
    book = ledger(tmp_path, SIMPLE, name)
    drawn = []
    for _ in range(8):
        given = book.ask()
        book.report(given.number, 1, given.values["lr"])
        book.complete(given.number, given.values["lr"])
        drawn.append(given.values)
    assert all(SIMPLE[k].contains(v) for values in drawn for k, v in values.items())
    assert len({v["lr"] for v in drawn}) > (
        3 if name == "nsgaii" else 7
    )  # crossover may repeat a value


def test_conditional_settings_are_drawn_only_where_they_apply(tmp_path: Path) -> None:
    book = ledger(tmp_path, SWITCH)
    for _ in range(12):
        given = book.ask()
        assert ("momentum" in given.values) == (given.values["name"] == "sgd")
        book.complete(given.number, 0.5)
    assert {t.params["name"] for t in book.trials()} == {"sgd", "adam"}


def test_a_grid_is_the_exact_product() -> None:
    space = domains(a={"grid": [1, 2]}, b={"quniform": [0, 1, 0.5]}, c={"choice": ["x", None]})
    points = grid(space, {})
    assert [tuple(p.values()) for p in points] == list(
        itertools.product((1, 2), (0, 0.5, 1.0), ("x", None))
    )


def test_a_conditional_grid_has_no_duplicates() -> None:
    space = domains(
        name={"grid": ["sgd", "adam"]}, momentum={"grid": [0, 0.5, 0.9], "when": {"name": "sgd"}}
    )
    assert grid(space, {}) == [
        {"name": "sgd", "momentum": 0},
        {"name": "sgd", "momentum": 0.5},
        {"name": "sgd", "momentum": 0.9},
        {"name": "adam"},
    ]
    with pytest.raises(
        ValueError, match="lr: a grid needs choice, grid, randint or quniform, got loguniform"
    ):
        grid(SIMPLE, {})


def test_a_condition_may_look_at_what_is_configured() -> None:
    space = domains(momentum={"grid": [0, 0.5], "when": {"optim.name": "sgd"}})
    assert len(grid(space, {"optim.name": "sgd"})) == 2
    assert grid(space, {"optim.name": "adam"}) == [{}]


def test_points_run_first_and_leave_the_rest_to_the_sampler(tmp_path: Path) -> None:
    book = ledger(tmp_path, SIMPLE, points=(Point({"lr": 0.5, "layers": 2}), Point({"layers": 3})))
    assert book.ask().values == {"lr": 0.5, "layers": 2}
    assert book.ask().values["layers"] == 3


def test_a_reopened_ledger_draws_what_the_undisturbed_one_does(tmp_path: Path) -> None:
    drawn: dict[str, list[Any]] = {"whole": [], "halved": []}
    for case, values in drawn.items():
        book = ledger(tmp_path / case, SIMPLE)
        for i in range(20):
            if case == "halved" and i == 13:
                book = ledger(tmp_path / case, SIMPLE)
            given = book.ask()
            book.complete(given.number, -abs(math.log10(given.values["lr"]) + 2))
            values.append(given.values)
    assert drawn["whole"] == drawn["halved"]


def test_a_long_search_draws_the_same_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpe, "SHOWN", 8)
    monkeypatch.setattr(tpe, "BEST", 3)
    test_a_reopened_ledger_draws_what_the_undisturbed_one_does(tmp_path / "simple")
    book = ledger(tmp_path / "conditional", SWITCH)
    for _ in range(24):
        given = book.ask()
        assert ("momentum" in given.values) == (given.values["name"] == "sgd")
        book.complete(given.number, given.values.get("momentum", 0.1))


def plain_tpe(seed: int, startup: int, conditional: bool) -> TPESampler:
    return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=conditional)


def drawn(
    make: Callable[[int, int, bool], TPESampler], trials: list[FrozenTrial], conditional: bool
) -> list[dict[str, float]]:
    """Five proposals of a study that has `trials`; none of them is told."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    out: list[dict[str, float]] = []
    for seed in range(5):
        study.sampler = make(seed, 3, conditional)
        trial = study.ask()
        out.append({k: trial.suggest_float(k, 0, 1) for k in "xy"})
        study.tell(trial, state=TrialState.FAIL)
    return out


def made(number: int, state: TrialState, value: float, step: int = 1) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {k: FloatDistribution(0, 1) for k in "xy"}
    params = {"x": (number * 0.618) % 1, "y": (number * 0.414) % 1}
    trial = create_trial(
        state=state,
        value=None if state in (TrialState.FAIL, TrialState.RUNNING) else value,
        params=params,
        distributions=distributions,
        intermediate_values={} if state == TrialState.FAIL else {step: value},
    )
    trial.number = number
    return trial


@pytest.mark.filterwarnings("ignore:Argument ``group``:optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("conditional", [False, True])
def test_tpe_on_a_window_that_leaves_nothing_out_is_optuna_s(
    monkeypatch: pytest.MonkeyPatch, conditional: bool
) -> None:
    """Failed trials make the study longer than the window, and TPE does not look at them."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = [made(i, states[i % 3], math.sin(i)) for i in range(30)]
    plain = drawn(plain_tpe, trials, conditional)
    assert drawn(tpe.WindowedTPE, trials, conditional) == plain  # shorter than the window
    monkeypatch.setattr(tpe, "SHOWN", 20)
    assert (
        drawn(tpe.WindowedTPE, trials, conditional) == plain
    )  # 20 of 30 have ended well: through the window
    monkeypatch.setattr(tpe, "SHOWN", 12)
    monkeypatch.setattr(tpe, "BEST", 2)
    assert drawn(tpe.WindowedTPE, trials, conditional) != plain


@pytest.mark.parametrize("direction", list(StudyDirection)[1:])
@pytest.mark.parametrize("completed", [7, 40])
def test_the_window_has_the_best_and_the_latest(direction: StudyDirection, completed: int) -> None:
    """Expected by hand: complete ones by value, then pruned ones by their last step, then by value
    there.
    """
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    trials = [
        made(
            i,
            TrialState.COMPLETE if i < completed else TrialState.PRUNED,
            math.sin(i),
            step=1 + i % 3,
        )
        for i in range(1000)
    ]
    trials += [made(1000 + i, TrialState.RUNNING, 0.0) for i in range(300)] + [
        made(1300, TrialState.FAIL, 0.0)
    ]
    complete = sorted(range(completed), key=lambda i: sign * math.sin(i))
    pruned = sorted(range(completed, 1000), key=lambda i: (-(i % 3), sign * math.sin(i)))
    best = {*complete, *pruned[: 25 - completed]} if completed < 25 else set(complete[:25])
    latest = sorted(set(range(1000)) - best)[-475:]
    shown = [t.number for t in tpe.Window(direction).of(trials)]
    assert shown == [*sorted({*best, *latest}), *range(1050, 1300)]


def test_a_window_that_is_kept_has_what_a_new_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials end in another order than they began in: number n after n + 7 * (n % 3) more; every
    fifth fails.
    """
    for name, value in {"SHOWN": 20, "BEST": 4, "SHOWN_RUNNING": 5}.items():
        monkeypatch.setattr(tpe, name, value)
    kept, states = tpe.Window(StudyDirection.MAXIMIZE), (TrialState.COMPLETE, TrialState.PRUNED)
    for now in range(1, 80, 3):
        trials = [
            made(n, TrialState.RUNNING, 0.0)
            if n + 7 * (n % 3) >= now
            else made(
                n, TrialState.FAIL if n % 5 == 4 else states[n % 2], math.sin(n), step=1 + n % 3
            )
            for n in range(now)
        ]
        shown = [t.number for t in kept.of(trials)]
        assert shown == [t.number for t in tpe.Window(StudyDirection.MAXIMIZE).of(trials)]
        ended = [t.number for t in trials if t.state in states]
        by_value = sorted((n for n in ended if n % 2 == 0), key=lambda n: -math.sin(n))
        by_step = sorted((n for n in ended if n % 2), key=lambda n: (-(n % 3), -math.sin(n)))
        best = {*(by_value + by_step)[:4]}
        others = [n for n in ended if n not in best]
        running = [t.number for t in trials if t.state == TrialState.RUNNING]
        expected = ended if len(ended) <= 20 else [*best, *others[-16:]]
        assert shown == sorted([*expected, *running[-5:]])


def test_asha_s_stop_is_told_as_pruned_and_nan_as_failed(tmp_path: Path) -> None:
    book = ledger(tmp_path, SIMPLE)
    searcher = AskTell(book, target=4, capacity=lambda: 4)
    for name in "abcd":
        assert isinstance(searcher.suggest(name), dict)
    assert str(searcher.suggest("e")) == "FINISHED"
    searcher.on_trial_result("a", result(1, 0.3))
    searcher.on_trial_complete("a", result(2, 0.4, **{"best_metrics/val/accuracy": 0.4}))
    searcher.on_trial_complete("b", result(3, 0.6, finished=True))
    searcher.on_trial_complete("c", result(2, math.nan, diverged=True, finished=True))
    searcher.on_trial_complete("d", error=True)
    searcher.tell_lost("d", "RayActorError: the node died")
    pruned, complete, diverged, lost = book.trials()
    assert (pruned.state, pruned.value, pruned.intermediate_values) == (
        TrialState.PRUNED,
        0.4,
        {1: 0.3, 2: 0.4},
    )
    assert pruned.user_attrs["best_metrics"] == {"val/accuracy": 0.4}
    assert (complete.state, complete.value) == (TrialState.COMPLETE, 0.6)
    assert (diverged.state, diverged.user_attrs["diverged"]) == (TrialState.FAIL, True)
    assert "not finite in epoch 2" in diverged.user_attrs["reason"]
    assert (lost.state, lost.user_attrs["reason"]) == (
        TrialState.FAIL,
        "RayActorError: the node died",
    )


def test_capacity_holds_trials_back(tmp_path: Path) -> None:
    searcher = AskTell(ledger(tmp_path, SIMPLE), target=3, capacity=lambda: 1)
    assert isinstance(searcher.suggest("a"), dict)
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", result(1, 0.5, finished=True))
    assert isinstance(searcher.suggest("b"), dict)


def test_unfinished_trials_are_handed_out_again_first_from_their_checkpoint(tmp_path: Path) -> None:
    book = ledger(tmp_path, SIMPLE)
    first, second = book.ask(), book.ask()
    for epoch, value in ((1, 0.2), (2, 0.3), (3, 0.35)):
        book.report(first.number, epoch, value)
    book.note(first.number, checkpoint={"path": "/somewhere/2", "epoch": 2})
    searcher = AskTell(ledger(tmp_path, SIMPLE), target=3, capacity=lambda: 9)
    configs = [searcher.suggest(i) for i in "abc"]
    assert configs[0] == {"number": 0, "values": first.values, "checkpoint": "/somewhere/2"}
    assert configs[1] == {"number": 1, "values": second.values, "checkpoint": None}
    assert isinstance(configs[2], dict)
    assert configs[2]["number"] == 2
    assert str(searcher.suggest("d")) == "FINISHED"
    assert searcher.resumed[0].reported == ((1, 0.2), (2, 0.3))
    searcher.on_trial_result("a", result(3, 0.35))
    searcher.on_trial_result("a", result(4, 0.4))
    assert searcher.ledger.frozen(0).intermediate_values == {1: 0.2, 2: 0.3, 3: 0.35, 4: 0.4}
