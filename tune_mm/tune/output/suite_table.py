"""What came out of a suite: every method beside its baseline, from the summaries of their searches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm.core import metrics
from tune_mm.tune.output.results import LEVEL, Spread

Summary = Mapping[str, Any]
MARKS = ("best", "second")
STYLES = {"best": "bold", "second": "underline"}


@dataclass(frozen=True)
class Row:
    """One method. val, test: the objective over the finals' seeds at the best validation epoch;
    gain: by how much it is better than `baseline` in test, paired by seed; cost: seconds of an
    epoch relative to the suite's baseline.
    """

    name: str
    method: str
    status: str
    trials: int
    val: Spread | None
    test: Spread | None
    baseline: str
    gain: Spread | None
    cost: float | None
    settings: Mapping[str, Any]
    deviations: tuple[str, ...]
    mark: str = ""


def metric_of(objective: str) -> str:
    """The test metric that belongs to an objective."""
    return "test/" + objective.removeprefix("val/")


def rows(
    summaries: Mapping[str, Summary],
    baselines: Mapping[str, str],
    reference: str,
    objective: str,
    deviations: Mapping[str, Sequence[str]],
) -> list[Row]:
    """A row per search, in the order of `summaries` (summary.json by name; {}: it has not begun).

    baselines: whose tests its gain is stated over, by name; reference: whose epochs are the unit of
    cost.
    """
    metric = metric_of(objective)
    sign = 1 if metrics.mode(objective) == "max" else -1
    groups = {name: _winner(summary) for name, summary in summaries.items()}
    tests = {name: _tests(group, metric) for name, group in groups.items()}
    seconds = {name: _median(group.get("epoch_seconds", {})) for name, group in groups.items()}
    spreads = {name: _spread(list(values.values())) for name, values in tests.items()}
    marked = _marks({name: sign * s.mean for name, s in spreads.items() if s is not None})
    out = []
    for name, summary in summaries.items():
        against, unit = baselines[name], seconds.get(reference)
        own = tests[name] if against != name else {}
        both = [seed for seed in own if seed in tests.get(against, {})]
        gain = _spread([sign * (own[seed] - tests[against][seed]) for seed in both])
        cost = seconds[name]
        out.append(
            Row(
                name,
                str(summary.get("method", "")),
                str(summary.get("status", "not begun")),
                sum(summary.get("stages", {}).get("search", {}).values()),
                _spread(list(groups[name].get("val", {}).values())),
                spreads[name],
                against,
                gain,
                cost / unit if cost and unit else None,
                groups[name].get("settings", {}),
                tuple(deviations.get(name, ())),
                marked.get(name, ""),
            )
        )
    return out


def _winner(summary: Summary) -> Mapping[str, Any]:
    """The tuned setting that validation chose; {} before the finals."""
    groups = (summary.get("finals") or {}).get("groups", [])
    return next((g for g in groups if g["role"] == "tuned"), {})


def _tests(group: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The test metric by seed (text, as JSON has it)."""
    return {seed: found[metric] for seed, found in group.get("test", {}).items() if metric in found}


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def _median(values: Mapping[str, float]) -> float | None:
    return statistics.median(values.values()) if values else None


def _marks(scores: Mapping[str, float]) -> dict[str, str]:
    """best and second; equal ones share a mark."""
    levels = sorted(set(scores.values()), reverse=True)[: len(MARKS)]
    return {name: MARKS[levels.index(score)] for name, score in scores.items() if score in levels}


def verdict(gain: Spread | None) -> str:
    """Whether zero lies within the gain's interval: `no difference shown`, `better`, `worse`; ""
    without one.
    """
    if gain is None or gain.n < 2:
        return ""
    if gain.mean - gain.half > 0:
        return "better"
    return "worse" if gain.mean + gain.half < 0 else "no difference shown"


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of summary.json: intervals that one seed cannot have are null."""
    out = []
    for row in found:
        told = asdict(row)
        for key, spread in (("val", row.val), ("test", row.test), ("gain", row.gain)):
            told[key] = spread and {"mean": spread.mean, "std": spread.std, "n": spread.n}
        if row.gain is not None:
            told["gain"]["interval95"] = _interval(row.gain)
        out.append({**told, "verdict": verdict(row.gain)})
    return out


def _interval(gain: Spread) -> list[float] | None:
    return None if math.isnan(gain.half) else [gain.mean - gain.half, gain.mean + gain.half]


def show(
    console: Console, title: str, objective: str, reference: str, found: Sequence[Row]
) -> None:
    """The last table, and how to read it."""
    metric = metric_of(objective)
    way = "lower" if metrics.mode(objective) == "min" else "higher"
    table = Table(title=title, title_justify="left")
    names = (
        "method",
        "trials",
        objective,
        metric,
        "",
        "gain",
        "over",
        f"{LEVEL:.0%} interval",
        "zero within",
        "epoch",
    )
    for name in (*names, f"differs from {reference} in"):
        right = name in ("trials", objective, metric, "gain", f"{LEVEL:.0%} interval", "epoch")
        table.add_column(name, justify="right" if right else "left")
    for row in found:
        table.add_row(*map(Text, _cells(row)), style=STYLES.get(row.mark, ""))
    console.print(table)
    judged = sum(row.gain is not None and row.gain.n > 1 for row in found)
    told = f"{metric}: {way} is better; gain: by how much, paired by seed; epoch: its time relative to {reference}'s"
    if judged > 1:
        told += f"; of {judged} intervals at {LEVEL:.0%}, {judged * (1 - LEVEL):.1f} would miss zero by chance alone"
    console.print(Text(told))


def _cells(row: Row) -> list[str]:
    gain, between, zero = "", "", ""
    if row.gain is not None:
        gain = f"{row.gain.mean:+.4f} ± {row.gain.std:.4f}"
        interval = _interval(row.gain)
        between = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "one seed"
        zero = {"no difference shown": "yes", "": ""}.get(
            verdict(row.gain), f"no: {verdict(row.gain)}"
        )
    ended = row.status == "completed" or row.test is not None
    return [
        row.name if ended else f"{row.name} ({row.status})",
        str(row.trials),
        row.val.text() if row.val else "-",
        row.test.text() if row.test else "-",
        row.mark,
        gain,
        row.baseline if row.gain is not None else "",
        between,
        zero,
        f"{row.cost:.2f}x" if row.cost else "-",
        "; ".join(row.deviations),
    ]
