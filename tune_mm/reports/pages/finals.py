"""The final runs of a search: groups of one setting over seeds, which of them won, and the gain
over the baseline.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_mm.reports.pages import search as searches
from tune_mm.reports.pages.blocks import Block, Chart, Grid, PageCell, PageSection, Text
from tune_mm.reports.pages.cells import finite, spread_cell, words
from tune_mm.reports.pages.points import points
from tune_mm.reports.pages.search import Search
from tune_mm.reports.pages.surface import heat
from tune_mm.reports.runs.stored_run import StoredRun


@dataclass(frozen=True)
class SettingGroup:
    """The final runs of one setting."""

    # Where the setting comes from: search/7, baseline/2, grid/0.
    source: str
    # tuned, baseline or grid.
    role: str
    settings: Mapping[str, Any]
    # The objective by seed.
    val: Mapping[int, float]
    # All test metrics by seed.
    test: Mapping[int, Mapping[str, float]]

    @property
    def title(self) -> str:
        """Its role and settings in a few words."""
        return f"{self.role} ({self.source.replace('/', ' ')}): {words(self.settings)}"


def final_groups(search: Search) -> list[SettingGroup]:
    """As summary.json has them; from the runs while there is none that can be read."""
    stated = search.summary.get("finals")
    try:
        if isinstance(stated, dict):
            groups = [_stated(g) for g in stated["groups"]]
        else:
            groups = []
    except (KeyError, TypeError, ValueError, AttributeError):
        groups = []
    return groups or _from_runs(search)


def _stated(group: Mapping[str, Any]) -> SettingGroup:
    val = {int(seed): float(value) for seed, value in group["val"].items()}
    test = {}
    for seed, found in group["test"].items():
        test[int(seed)] = {k: float(v) for k, v in found.items()}
    return SettingGroup(
        str(group["source"]), str(group["role"]), dict(group["settings"]), val, test
    )


def _from_runs(search: Search) -> list[SettingGroup]:
    sources: dict[str, list[StoredRun]] = {}
    for record in search.finals:
        sources.setdefault(record.tags.get("source", "?"), []).append(record)
    groups = []
    for source, runs in sources.items():
        role = runs[0].tags.get("role", "?")
        domains = search.domains.get("baseline" if role == "baseline" else "search", {})
        done = [r for r in runs if r.status == "completed"]
        val = {}
        for r in done:
            val[r.seed] = r.metrics.get(f"best/{search.objective}", math.nan)
        test = {r.seed: {k: v for k, v in r.metrics.items() if k.startswith("test/")} for r in done}
        groups.append(SettingGroup(source, role, searches.settings(runs[0], domains), val, test))
    return groups


def winner(search: Search, groups: Sequence[SettingGroup]) -> SettingGroup | None:
    """The best by mean validation objective, the baseline aside, as the search itself chooses.

    Never by test.
    """
    sign = -1 if search.mode == "min" else 1
    best: SettingGroup | None = None
    best_score = -math.inf
    for group in groups:
        values = finite(group.val.values())
        if group.role == "baseline" or not values:
            continue
        score = sign * statistics.fmean(values)
        if best is None or score > best_score:
            best = group
            best_score = score
    return best


def finals(search: Search, groups: Sequence[SettingGroup]) -> PageSection:
    """The part of the page: gain, and the table of groups."""
    title = "Final runs"
    if not groups:
        why = "No final runs."
        if search.open:
            why = "The search has not come to its final runs."
        return PageSection(title, [Text(why)])
    metrics = (search.test, *_of_modalities(search, groups))
    best = winner(search, groups)
    blocks: list[Block] = [
        Text(_gain(search)),
        _table(search, groups, metrics, best),
        Text(_reading(search, metrics), "soft"),
        *_charts(search, groups, metrics, best),
    ]
    return PageSection(title, blocks)


def _of_modalities(search: Search, groups: Sequence[SettingGroup]) -> list[str]:
    """The test metrics of modalities alone, sorted."""
    found: set[str] = set()
    for group in groups:
        for values in group.test.values():
            found |= {name for name in values if name.startswith(f"{search.test}/")}
    return sorted(found)


def _modality(metric: str) -> str:
    return metric.rpartition("/")[2]


def _by_seed(group: SettingGroup, metric: str) -> list[float]:
    """NaN where a seed lacks the metric."""
    found = []
    for values in group.test.values():
        found.append(values.get(metric, math.nan))
    return found


def _table(
    search: Search,
    groups: Sequence[SettingGroup],
    metrics: Sequence[str],
    best: SettingGroup | None,
) -> Grid:
    modalities = map(_modality, metrics[1:])
    heads = ["from", "role", "settings", "runs", search.objective, search.test, *modalities]
    rows = []
    for group in groups:
        row = [
            PageCell(group.source.replace("/", " ")),
            PageCell(group.role),
            PageCell(words(group.settings), wide=True),
            PageCell(str(len(group.val)), len(group.val)),
            spread_cell(group.val.values()),
        ]
        for metric in metrics:
            row.append(spread_cell(_by_seed(group, metric)))
        rows.append(row)
    marked = [number for number, group in enumerate(groups) if group is best]
    return Grid(heads, rows, frozenset(marked), sortable=True)


def _reading(search: Search, metrics: Sequence[str]) -> str:
    """How to read the table."""
    parts = [
        "Mean ± standard deviation over seeds; marked: best by validation, "
        "which is how settings are chosen."
    ]
    unfinished = sum(run.status != "completed" for run in search.finals)
    if unfinished == 1:
        parts.append("1 final run is not completed and left out.")
    elif unfinished:
        parts.append(f"{unfinished} final runs are not completed and left out.")
    modalities = ", ".join(map(_modality, metrics[1:]))
    if modalities:
        parts.append(f"Columns {modalities}: {search.test} of a modality alone through the fusion.")
    return " ".join(parts)


def _charts(
    search: Search,
    groups: Sequence[SettingGroup],
    metrics: Sequence[str],
    best: SettingGroup | None,
) -> list[Chart]:
    """Means by setting, and over a grid of two settings as a heat map."""
    if len(groups) < 3:
        return []
    settings = [group.settings for group in groups]
    lines: dict[str, list[list[float]]] = {}
    for metric in metrics:
        if metric == search.test:
            name = "all together"
        else:
            name = _modality(metric)
        lines[name] = [_by_seed(group, metric) for group in groups]
    over = points(settings, lines, search.test)
    told = f"Mean and standard deviation of {search.test} over seeds. Data: {search.data}."
    charts = [Chart(over, told, least=600)]
    if not search.exhaustive:
        return charts
    at = None if best is None else groups.index(best)
    minimized = search.mode == "min"
    cells = heat(settings, lines["all together"], search.test, minimized, at)
    if cells is not None:
        framed = (
            f"Mean ± standard deviation of {search.test} over n seeds; framed: best by validation."
        )
        charts.append(Chart(cells, f"{framed} Data: {search.data}.", least=600))
    return charts


def _gain(search: Search) -> str:
    if search.exhaustive:
        ran = "Every point of the grid was run"
        if search.open:
            ran = "The points of the grid are still being run"
        return f"{ran}; nothing was tuned, so there is no gain to state."
    stated = search.summary.get("finals")
    if isinstance(stated, dict):
        gain = stated.get("gain")
    else:
        gain = None
    if not isinstance(gain, dict) or not isinstance(gain.get("mean"), (int, float)):
        why = ": the search has not ended." if search.open else "."
        return f"No gain over a tuned baseline is stated{why}"
    size = f"{gain['mean']:+.4f} ± {gain.get('std', 0.0):.4f} {gain.get('metric', search.test)}"
    ends = _interval(gain.get("interval95"))
    return f"Gain over the tuned baseline: {size}, {gain.get('n')} paired seeds, {ends}."


def _interval(interval: object) -> str:
    if not isinstance(interval, list) or len(interval) != 2:
        return "no interval"
    low, high = interval
    text = f"95 % interval {low:+.4f} to {high:+.4f}"
    if low <= 0 <= high:
        text += "; zero lies within: no difference is shown"
    return text
