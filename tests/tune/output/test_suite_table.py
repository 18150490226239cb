"""The table of a suite: gains, intervals, costs and marks, by plain arithmetic from summaries."""

from __future__ import annotations

import io
import json
import math
import statistics
from typing import Any

import pytest
from rich.console import Console

from tune_mm.stats import spread, verdict
from tune_mm.tune.output import suite_table


def told(tests: list[float], seconds: list[float], **more: Any) -> dict[str, Any]:
    """A summary with final runs of seeds 1, 2 ..."""
    seeds = [str(s) for s in range(1, len(tests) + 1)]
    group = {
        "role": "tuned",
        "settings": {"optim.lr": 0.1},
        "val": dict.fromkeys(seeds, 0.5),
        "test": {s: {"test/accuracy": v, "test/mae": v} for s, v in zip(seeds, tests, strict=True)},
        "epoch_seconds": dict(zip(seeds, seconds, strict=True)),
    }
    return {
        "status": "completed",
        "stages": {"search": {"complete": 2, "pruned": 1}},
        "finals": {"groups": [group]},
        **more,
    }


SUMMARIES = {
    "joint": told([0.70, 0.72, 0.71], [2.0, 1.0, 4.0]),
    "dgl": told([0.80, 0.83, 0.80], [3.0, 9.0, 1.0]),
    "cggm": told([0.70, 0.75, 0.70], [1.0, 1.0, 1.0]),
    "ogm": told([0.60], [1.0]),
    "none": {},
}


def table(objective: str = "val/accuracy", **baselines: str) -> dict[str, suite_table.SuiteRow]:
    against = {name: baselines.get(name, "joint") for name in SUMMARIES}
    found = suite_table.rows(SUMMARIES, against, "joint", objective, {"ogm": ["model.fusion=sum"]})
    return {row.name: row for row in found}


def test_gains_are_paired_by_seed_with_a_t_interval() -> None:
    """dgl over joint: differences .10 .11 .09, mean .10, standard deviation .01, half-width
    4.302653 * .01 / sqrt(3); 4.302653 is Student's 97.5 % quantile at two degrees of freedom. cggm:
    .00 .03 -.01, which has zero within.
    """
    rows = table()
    gain = rows["dgl"].gain
    assert gain is not None
    assert [gain.mean, gain.std, gain.n] == pytest.approx([0.10, 0.01, 3])
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert gain.interval == pytest.approx((0.10 - half, 0.10 + half), rel=1e-6)
    assert verdict(gain) == "better"
    other = rows["cggm"].gain
    assert other is not None
    assert other.mean == pytest.approx(0.02 / 3)
    assert other.std == pytest.approx(statistics.stdev([0.0, 0.03, -0.01]))
    assert verdict(other) == "no difference shown"
    assert rows["joint"].gain is None
    assert rows["ogm"].gain is not None and rows["ogm"].gain.n == 1
    assert verdict(rows["ogm"].gain) is None, "one seed has no interval"
    assert rows["none"].gain is None


def test_a_gain_may_have_a_baseline_of_its_own_and_lower_may_be_better() -> None:
    assert table(cggm="dgl")["cggm"].gain == spread([0.70 - 0.80, 0.75 - 0.83, 0.70 - 0.80])
    rows = table("val/mae")
    assert rows["dgl"].gain is not None
    assert rows["dgl"].gain.mean == pytest.approx(-0.10)
    assert verdict(rows["dgl"].gain) == "worse"
    assert {name: row.mark for name, row in rows.items() if row.mark} == {
        "ogm": "best",
        "joint": "second",
    }


def test_cost_is_the_median_time_of_an_epoch_relative_to_joint() -> None:
    """Medians 2, 3, 1, 1 seconds."""
    rows = table()
    assert [rows[n].cost for n in ("joint", "dgl", "cggm", "ogm", "none")] == [
        1.0,
        1.5,
        0.5,
        0.5,
        None,
    ]
    assert {name: row.mark for name, row in rows.items() if row.mark} == {
        "dgl": "best",
        "cggm": "second",
    }
    assert [row.trials for row in rows.values()] == [3, 3, 3, 3, 0]


def test_the_table_says_what_is_needed_to_read_it() -> None:
    out = io.StringIO()
    suite_table.show(
        Console(file=out, width=250), "title", "val/accuracy", "joint", list(table().values())
    )
    says = out.getvalue()
    line = next(line for line in says.splitlines() if "dgl" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == [
        "dgl",
        "3",
        "0.5000 ± 0.0000",
        "0.8100 ± 0.0173",
        "best",
        "+0.1000 ± 0.0100",
        "joint",
        "+0.0752 to +0.1248",
        "no: better",
        "1.50x",
        "",
    ]
    assert "none (not begun)" in says
    assert "model.fusion=sum" in says
    assert "of 2 intervals at 95%, 0.1 would miss zero by chance alone" in says
    written = suite_table.as_json(list(table().values()))
    assert json.loads(json.dumps(written, allow_nan=False))[3]["gain"]["interval95"] is None
