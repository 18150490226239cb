"""What came out of a suite: every method beside its baseline, from the summaries of their searches."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm.stats import LEVEL, Spread, paired_gain, sign, spread, verdict
from tune_mm.tune.output.finals import metric_in_test
from tune_mm.tune.output.tables import better_way, mean_and_deviation

Summary = Mapping[str, Any]  # summary.json
MARKS = ("best", "second")
STYLES = {"best": "bold", "second": "underline"}


@dataclass(frozen=True)
class SuiteRow:
    """One method of a suite."""

    name: str
    method: str
    status: str
    trials: int
    val: Spread | None  # the objective over the finals' seeds, at the best validation epoch
    test: Spread | None  # its test metric at that epoch
    baseline: str  # what the gain is stated over
    gain: Spread | None  # by how much it is better in test, paired by seed
    cost: float | None  # seconds of an epoch relative to the suite's baseline
    settings: Mapping[str, Any]
    deviations: tuple[str, ...]  # in what its ground differs from the suite's baseline
    mark: str = ""  # best or second in test


def rows(
    summaries: Mapping[str, Summary],
    baselines: Mapping[str, str],
    reference: str,
    objective: str,
    deviations: Mapping[str, Sequence[str]],
) -> list[SuiteRow]:
    """A row per search, in the order of `summaries` (summary.json by name; {}: it has not begun).

    baselines: whose tests its gain is stated over, by name.
    reference: whose epochs are the unit of cost.
    """
    metric = metric_in_test(objective)
    groups = {name: _winner(summary) for name, summary in summaries.items()}
    tests = {name: _tests(group, metric) for name, group in groups.items()}
    seconds = {name: _median(group.get("epoch_seconds", {})) for name, group in groups.items()}
    unit = seconds.get(reference)
    out: list[SuiteRow] = []
    for name, summary in summaries.items():
        group = groups[name]
        against = baselines[name]
        gain = None
        if against != name:
            gain = paired_gain(tests[name], tests.get(against, {}), metric)
        cost = None
        epoch = seconds[name]
        if epoch and unit:
            cost = epoch / unit
        row = SuiteRow(
            name=name,
            method=str(summary.get("method", "")),
            status=str(summary.get("status", "not begun")),
            trials=sum(summary.get("stages", {}).get("search", {}).values()),
            val=spread(group.get("val", {}).values()),
            test=spread(tests[name].values()),
            baseline=against,
            gain=gain,
            cost=cost,
            settings=group.get("settings", {}),
            deviations=tuple(deviations.get(name, ())),
        )
        out.append(row)
    return _marked(out, sign(metric))


def _winner(summary: Summary) -> Mapping[str, Any]:
    """The tuned setting that validation chose; {} before the finals."""
    finals = summary.get("finals") or {}
    return next((group for group in finals.get("groups", []) if group["role"] == "tuned"), {})


def _tests(group: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The test metric by seed (text, as JSON has it)."""
    values: dict[str, float] = {}
    for seed, metrics in group.get("test", {}).items():
        if metric in metrics:
            values[seed] = metrics[metric]
    return values


def _median(values: Mapping[str, float]) -> float | None:
    if not values:
        return None
    return statistics.median(values.values())


def _marked(table: Sequence[SuiteRow], better: int) -> list[SuiteRow]:
    """Best and second in test; equal ones share a mark."""
    scores = {row.name: better * row.test.mean for row in table if row.test is not None}
    levels = sorted(set(scores.values()), reverse=True)[: len(MARKS)]
    out: list[SuiteRow] = []
    for row in table:
        score = scores.get(row.name)
        if score not in levels:
            mark = ""
        else:
            mark = MARKS[levels.index(score)]
        out.append(replace(row, mark=mark))
    return out


def as_json(table: Sequence[SuiteRow]) -> list[dict[str, Any]]:
    """The rows of summary.json: intervals that one seed cannot have are null."""
    out: list[dict[str, Any]] = []
    for row in table:
        told = asdict(row)
        for key in ("val", "test", "gain"):
            found: Spread | None = getattr(row, key)
            if found is not None:
                told[key] = {"mean": found.mean, "std": found.std or 0.0, "n": found.n}
        if row.gain is not None:
            told["gain"]["interval95"] = row.gain.interval and list(row.gain.interval)
        told["verdict"] = verdict(row.gain) or ""
        out.append(told)
    return out


def show(
    console: Console, title: str, objective: str, reference: str, found: Sequence[SuiteRow]
) -> None:
    """The last table, and how to read it."""
    metric = metric_in_test(objective)
    interval = f"{LEVEL:.0%} interval"
    numbers = ("trials", objective, metric, "gain", interval, "epoch")
    table = Table(title=title, title_justify="left")
    for name in (
        "method",
        "trials",
        objective,
        metric,
        "",
        "gain",
        "over",
        interval,
        "zero within",
        "epoch",
        f"differs from {reference} in",
    ):
        table.add_column(name, justify="right" if name in numbers else "left")
    for row in found:
        cells = [Text(cell) for cell in _cells(row)]
        table.add_row(*cells, style=STYLES.get(row.mark, ""))
    console.print(table)
    legend = f"{metric}: {better_way(metric)} is better; gain: by how much, paired by seed"
    legend += f"; epoch: its time relative to {reference}'s"
    judged = sum(verdict(row.gain) is not None for row in found)
    if judged > 1:
        by_chance = judged * (1 - LEVEL)
        legend += f"; of {judged} intervals at {LEVEL:.0%}, {by_chance:.1f} would miss zero by chance alone"
    console.print(Text(legend))


def _cells(row: SuiteRow) -> list[str]:
    ended = row.status == "completed" or row.test is not None
    return [
        row.name if ended else f"{row.name} ({row.status})",
        str(row.trials),
        mean_and_deviation(row.val),
        mean_and_deviation(row.test),
        row.mark,
        "" if row.gain is None else mean_and_deviation(row.gain, signed=True),
        "" if row.gain is None else row.baseline,
        _interval(row.gain),
        _zero_within(row.gain),
        f"{row.cost:.2f}x" if row.cost else "-",
        "; ".join(row.deviations),
    ]


def _interval(gain: Spread | None) -> str:
    if gain is None:
        return ""
    if gain.interval is None:
        return "one seed"
    low, high = gain.interval
    return f"{low:+.4f} to {high:+.4f}"


def _zero_within(gain: Spread | None) -> str:
    if gain is None or gain.interval is None:
        return ""
    found = verdict(gain)
    if found is None:
        return "too few seeds"
    if found == "no difference shown":
        return "yes"
    return f"no: {found}"
