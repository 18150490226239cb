"""Numbers of the finals: spreads, pairing by seed, who wins and by what."""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from rich.console import Console

from tests.tune.conftest import TOY
from tune_mm.tune.output import finals, summary, tables
from tune_mm.tune.plan import plan as plans
from tune_mm.tune.plan.plan import Options, Plan
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Ledger, Point


def plan(root: Path, objective: str) -> Plan:
    (root / "below.yaml").write_text(TOY.replace("val/accuracy", objective))
    text = TOY.replace("val/accuracy", objective).replace(
        "{top: 0}", f"{{top: 2, baseline: {root}/below.yaml}}"
    )
    (root / "toy.yaml").write_text(text)
    return plans.resolve(Options(root=root, space=str(root / "toy.yaml")))


def ledger(root: Path, mode: str, points: list[Point], name: str) -> Ledger:
    def suggest(trial: Any) -> dict[str, Any]:
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-5, 1e-1, log=True)}

    def point(number: int) -> Point | None:
        return points[number] if number < len(points) else None

    return Ledger(
        open_storage(root / "journal"), name, mode, suggest, lambda n: RandomSampler(seed=n), point
    )


@pytest.mark.parametrize(("objective", "sign"), [("val/accuracy", 1), ("val/mae", -1)])
def test_the_winner_is_chosen_by_validation_and_the_gain_is_paired(
    tmp_path: Path, objective: str, sign: int
) -> None:
    """search/0 is better by validation, search/1 by test: search/0 wins."""
    mode, metric = ("max", "test/accuracy") if sign > 0 else ("min", "test/mae")
    val = {"search/0": 0.80, "search/1": 0.70, "baseline/0": 0.75}
    test = {
        "search/0": (0.60, 0.70, 0.65),
        "search/1": (0.9, 0.9, 0.9),
        "baseline/0": (0.58, 0.69, 0.6),
    }
    points = [
        Point(
            {},
            {
                "values": {"seed": seed},
                "source": source,
                "role": "baseline" if "base" in source else "tuned",
            },
        )
        for source in val
        for seed in (1, 2, 3)
    ]
    tuned = ledger(tmp_path, mode, [], "s/search")
    chosen = {}
    for source in val:
        given = tuned.ask()
        tuned.complete(given.number, 0.5)
        chosen[source] = given.values
    book = ledger(tmp_path, mode, points, "s/final")
    for one in points:
        given, seed = book.ask(), one.attrs["values"]["seed"]
        source = one.attrs["source"]
        book.complete(
            given.number, sign * val[source], test={metric: sign * test[source][seed - 1]}, epochs=3
        )
    found = finals.finals(plan(tmp_path, objective), book, chosen)
    assert [g.source for g in found.groups] == ["search/0", "search/1", "baseline/0"]
    assert found.metric == metric
    assert found.gain is not None
    assert found.gain.mean == pytest.approx((0.02 + 0.01 + 0.05) / 3)
    assert found.gain.n == 3
    out = Console(width=160, record=True, quiet=True)
    text = summary.summary(
        plan(tmp_path, objective),
        {"search": tuned, "final": book},
        found,
        "real",
        "completed",
        1.0,
        "x",
    )
    assert json.loads(json.dumps(text))["finals"]["groups"][0]["result"]["mean"] == pytest.approx(
        sign * 0.65
    )
    tables.show(out, plan(tmp_path, objective), {"search": tuned, "final": book}, found)


def test_a_seed_that_failed_is_left_out_of_the_pairs(tmp_path: Path) -> None:
    points = [
        Point({}, {"values": {"seed": seed}, "source": source, "role": role})
        for source, role in (("search/0", "tuned"), ("baseline/0", "baseline"))
        for seed in (1, 2, 3)
    ]
    tuned = ledger(tmp_path, "max", [], "s/search")
    given = tuned.ask()
    tuned.complete(given.number, 0.5)
    chosen = {"search/0": given.values, "baseline/0": given.values}
    book = ledger(tmp_path, "max", points, "s/final")
    for number in range(6):
        given = book.ask()
        if number == 1:
            book.fail(given.number, "ValueError: no")
        else:
            book.complete(given.number, 0.5, test={"test/accuracy": 0.1 * number})
    found = finals.finals(plan(tmp_path, "val/accuracy"), book, chosen)
    assert found.gain is not None
    assert found.gain.n == 2
    assert found.gain.mean == pytest.approx(((0.0 - 0.3) + (0.2 - 0.5)) / 2)
    failed, diverged = summary.failures({"final": book})
    assert failed == ["final 1: ValueError: no"]
    assert diverged == []


def test_points_of_a_grid_stay_in_order_and_are_compared_with_the_first(tmp_path: Path) -> None:
    grid = TOY.replace("loguniform: [1e-5, 1e-1]", "grid: [1e-3, 1e-2]").replace(
        "{top: 0}", "{top: all, seeds: 2}"
    )
    (tmp_path / "toy.yaml").write_text(grid.replace("{name: tpe, startup: 4}", "grid"))
    ablation = plans.resolve(Options(root=tmp_path, space=str(tmp_path / "toy.yaml")))
    test = {"grid/0": (0.60, 0.70), "grid/1": (0.65, 0.79)}
    points = [
        Point({}, {"values": {"seed": seed}, "source": source, "role": "grid"})
        for source in test
        for seed in (1, 2)
    ]
    book = ledger(tmp_path, "max", points, "s/final")
    for one in points:
        given, source = book.ask(), one.attrs["source"]
        accuracy = test[source][one.attrs["values"]["seed"] - 1]
        book.complete(
            given.number,
            0.9 if source == "grid/1" else 0.8,
            test={"test/accuracy": accuracy},
            epochs=3,
        )
    found = finals.finals(
        ablation, book, {"grid/0": {"optim.lr": 1e-3}, "grid/1": {"optim.lr": 1e-2}}
    )
    assert [g.source for g in found.groups] == ["grid/0", "grid/1"]
    assert found.winner is found.groups[1]
    assert found.gain is None
    gain = found.over(found.groups[1], found.groups[0])
    assert gain is not None
    assert gain.mean == pytest.approx((0.05 + 0.09) / 2)
    assert gain.std == pytest.approx(statistics.stdev([0.05, 0.09]))
    out = Console(width=160, file=io.StringIO(), record=True)
    tables.show(out, ablation, {"final": book}, found)
    text = out.export_text()
    assert "every point of the grid" in text
    assert "over the first" in text
    assert "+0.0700" in text
    assert "baseline" not in text
