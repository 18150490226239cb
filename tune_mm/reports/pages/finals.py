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
from tune_mm.reports.pages.cells import finite, soft, spread, words
from tune_mm.reports.pages.html import Grid, Html, PageCell, plot, section, tag
from tune_mm.reports.pages.points import points
from tune_mm.reports.pages.search import Search
from tune_mm.reports.pages.surface import heat
from tune_mm.reports.runs.stored_run import StoredRun


@dataclass(frozen=True)
class FinalGroup:
    """The final runs of one setting. val, test: the objective's by seed."""

    source: str
    role: str
    settings: Mapping[str, Any]
    val: Mapping[int, float]
    test: Mapping[int, Mapping[str, float]]

    @property
    def title(self) -> str:
        """Its role and settings in a few words."""
        return f"{self.role} ({self.source.replace('/', ' ')}): {words(self.settings)}"


def final_groups(search: Search) -> list[FinalGroup]:
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


def _stated(group: Mapping[str, Any]) -> FinalGroup:
    val = {int(seed): float(value) for seed, value in group["val"].items()}
    test = {}
    for seed, found in group["test"].items():
        test[int(seed)] = {k: float(v) for k, v in found.items()}
    return FinalGroup(str(group["source"]), str(group["role"]), dict(group["settings"]), val, test)


def _from_runs(search: Search) -> list[FinalGroup]:
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
        groups.append(FinalGroup(source, role, searches.settings(runs[0], domains), val, test))
    return groups


def winner(search: Search, groups: Sequence[FinalGroup]) -> FinalGroup | None:
    """The best by mean validation objective, the baseline aside: how the search itself chooses.
    Never by test.
    """
    sign = -1 if search.mode == "min" else 1
    own = []
    for g in groups:
        if g.role != "baseline":
            own.append((g, finite(g.val.values())))
    return max(
        ((g, v) for g, v in own if v),
        key=lambda p: sign * statistics.fmean(p[1]),
        default=(None, []),
    )[0]


def finals(search: Search, groups: Sequence[FinalGroup]) -> Html:
    """The part of the page: gain, and the table of groups."""
    title = "Final runs"
    if not groups:
        if search.open:
            why = "The search has not come to its final runs."
        else:
            why = "No final runs."
        return section(title, tag("p", why))
    names = sorted(
        {
            k
            for g in groups
            for found in g.test.values()
            for k in found
            if k.startswith(f"{search.test}/")
        }
    )
    shown = (search.test, *names)
    modalities = [n.rpartition("/")[2] for n in names]
    heads = ["from", "role", "settings", "runs", search.objective, search.test, *modalities]
    best = winner(search, groups)
    rows = []
    for group in groups:
        test = [spread(found.get(n, math.nan) for found in group.test.values()) for n in shown]
        text = [
            PageCell(group.source.replace("/", " ")),
            PageCell(group.role),
            PageCell(words(group.settings), wide=True),
        ]
        rows.append(
            [
                *text,
                PageCell(str(len(group.val)), len(group.val)),
                spread(group.val.values()),
                *test,
            ]
        )
    marked = frozenset(i for i, g in enumerate(groups) if g is best)
    told = "Mean ± standard deviation over seeds; marked: best by validation, which is how settings are chosen. "
    unfinished = [r for r in search.finals if r.status != "completed"]
    if unfinished:
        few = len(unfinished) == 1
        told += (
            f"{len(unfinished)} final run{' is' if few else 's are'} not completed and left out. "
        )
    table = Grid(heads, rows, marked, sortable=True).html()
    if modalities:
        told += f"Columns {', '.join(modalities)}: {search.test} of a modality alone through the fusion. "
    return section(
        title, tag("p", _gain(search)), table, soft(told), *_drawn(search, groups, shown, best)
    )


def _drawn(
    search: Search, groups: Sequence[FinalGroup], shown: Sequence[str], best: FinalGroup | None
) -> list[Html]:
    """Means by setting, and over a grid of two settings as a heat map."""
    if len(groups) < 3:
        return []
    settings = [g.settings for g in groups]
    lines = {}
    for n in shown:
        lines[n] = [[found.get(n, math.nan) for found in g.test.values()] for g in groups]
    names = ("all together", *(n.rpartition("/")[2] for n in shown[1:]))
    over = points(settings, dict(zip(names, lines.values(), strict=True)), search.test)
    told = f"Mean and standard deviation of {search.test} over seeds. Data: {search.data}."
    parts = [plot(over, told, least=600)]
    at = next((i for i, g in enumerate(groups) if g is best), None)
    if search.exhaustive:
        cells = heat(settings, lines[search.test], search.test, search.mode == "min", at)
    else:
        cells = None
    if cells is not None:
        framed = (
            f"Mean ± standard deviation of {search.test} over n seeds; framed: best by validation."
        )
        parts.append(plot(cells, f"{framed} Data: {search.data}.", least=600))
    return parts


def _gain(search: Search) -> str:
    stated = search.summary.get("finals")
    if isinstance(stated, dict):
        gain = stated.get("gain")
    else:
        gain = None
    if search.exhaustive:
        if search.open:
            ran = "The points of the grid are still being run"
        else:
            ran = "Every point of the grid was run"
        return f"{ran}; nothing was tuned, so there is no gain to state."
    if not isinstance(gain, dict) or not isinstance(gain.get("mean"), (int, float)):
        return "No gain over a tuned baseline is stated" + (
            ": the search has not ended." if search.open else "."
        )
    interval = gain.get("interval95")
    inside = isinstance(interval, list) and len(interval) == 2 and interval[0] <= 0 <= interval[1]
    if inside:
        sure = "; zero lies within: no difference is shown"
    else:
        sure = ""
    if isinstance(interval, list):
        ends = f"95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}{sure}"
    else:
        ends = "no interval"
    size = f"{gain['mean']:+.4f} ± {gain.get('std', 0.0):.4f} {gain.get('metric', search.test)}"
    return f"Gain over the tuned baseline: {size}, {gain.get('n')} paired seeds, {ends}."
