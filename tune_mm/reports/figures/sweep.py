"""A metric against one setting, or its gain over a reference paired by seed, and where its maximum
lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from matplotlib.figure import Figure as Canvas

from tune_mm.errors import ConfigError
from tune_mm.reports.figures import canvas
from tune_mm.reports.figures.canvas import GREY, MARKERS, PALETTE, Figure
from tune_mm.reports.runs.select import Choice, Selection, by_seed, lacking, matches, select
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.runs.together import together
from tune_mm.reports.spec.spec import SweepReport, SweepSeries, Where
from tune_mm.reports.spec.wording import file_name

SYMBOLS = {"method.rho": "ρ", "method.lam": "λ", "method.alpha": "α"}
FEWEST = 3  # values of a setting that can show an interior maximum
Values = Mapping[int, float]  # seed -> value


@dataclass(frozen=True)
class SweepLine:
    """A series as drawn: settings ascending, and at each the values by seed (differences where a
    gain is shown).
    """

    label: str
    settings: tuple[float, ...]
    values: tuple[Values, ...]

    @property
    def mean(self) -> np.ndarray:
        """Means over seeds, one per setting."""
        return np.array([np.mean(list(v.values())) for v in self.values])

    @property
    def std(self) -> np.ndarray:
        """Standard deviations of a sample, one per setting; 0 for one seed."""
        return np.array(
            [np.std(list(v.values()), ddof=1) if len(v) > 1 else 0.0 for v in self.values]
        )


def sweep(
    report: SweepReport,
    records: Sequence[StoredRun],
    reader: object,
    choice: Choice,
    name: str = "",
) -> Figure:
    """Mean and standard deviation at every value of the setting that was run. `reader` is not
    needed: as the others.

    The points of a series come from one search, the one that tried most values (the latest of
    them), and so does the reference where that search has it. Raises ConfigError for a gain over
    nothing (no `baseline`).
    """
    if report.gain and not report.baseline:
        raise ConfigError(
            f"baseline: must say which runs the gain is over, got none ({report.title})"
        )
    chosen: dict[str, Selection] = {}
    lines = []
    said = []
    absent = []
    for series in report.series:
        line, notes = _line(report, series, records, choice, chosen)
        said += notes
        if line.settings:
            lines.append(line)
            said.append(_peak(report, line))
        elif not any(key.startswith(f"{series.label} at ") for key in chosen):
            absent.append(f"runs of {series.label}")
        if 0 < len(line.settings) < FEWEST:
            absent.append(f"more values of {SYMBOLS.get(report.x, report.x)} for {series.label}")
    reference = report.reference or "the reference"
    if report.gain and not any(
        chosen[key].records for key in chosen if key.startswith(f"{reference}, for ")
    ):
        absent.append(f"runs of {reference}, over which gains are stated")
    commands, lacking = canvas.missing(report, choice, absent)
    counts = [len(v) for line in lines for v in line.values]
    said += (
        [f"Grey: the paper's values, on {report.data}"]
        if any(s.published for s in report.series)
        else []
    )
    text = canvas.caption(report, choice, chosen, counts, [*said, lacking])
    return Figure(file_name(report, name), _draw(report, lines), text, commands)


def _line(
    report: SweepReport,
    series: SweepSeries,
    records: Sequence[StoredRun],
    choice: Choice,
    chosen: dict[str, Selection],
) -> tuple[SweepLine, list[str]]:
    """One series and what is to be said of it. Adds the runs it rests on to `chosen`."""
    where = {**report.where, **series.where}
    found, note = _points(report, where, records, choice)
    chosen.update({f"{series.label} at {x:g}": selection for x, selection in found.items()})
    values = {}
    for x, s in found.items():
        values[x] = by_seed(s.records, report.metric)
    if note:
        notes = [f"{series.label}: {note[0].lower()}{note[1:]}"]
    else:
        notes = []
    broken = {x: lacking(s.records, report.metric) for x, s in sorted(found.items())}
    notes += [f"{series.label} at {x:g}: {what}" for x, what in broken.items() if what]
    if report.gain:
        key = f"{report.reference or 'the reference'}, for {series.label}"
        chosen[key] = _reference(report, records, choice, found)
        base = by_seed(chosen[key].records, report.metric)
        differences = {
            x: {s: v - base[s] for s, v in at.items() if s in base} for x, at in values.items()
        }
        unpaired = ", ".join(
            f"{x:g}" for x in sorted(values) if base and values[x] and not differences[x]
        )
        values = differences
        if unpaired:
            notes.append(
                f"{series.label}: left out for want of a seed in common with the reference: {unpaired}"
            )
    kept = {
        x: {seed: report.scale * v for seed, v in at.items()}
        for x, at in sorted(values.items())
        if at
    }
    return SweepLine(series.label, tuple(kept), tuple(kept.values())), notes


def _points(
    report: SweepReport, where: Where, records: Sequence[StoredRun], choice: Choice
) -> tuple[dict[float, Selection], str]:
    """Runs by value of the setting, all of one search, and a note."""
    numbers = {_number(record.value(report.x)) for record in records if matches(record, where)} - {
        None
    }
    wheres: dict[float, Where] = {}
    for x in numbers:
        if x is not None:
            wheres[x] = {**where, report.x: x}
    return together(records, report, wheres, choice)


def _reference(
    report: SweepReport,
    records: Sequence[StoredRun],
    choice: Choice,
    found: Mapping[float, Selection],
) -> Selection:
    """The reference's runs: of the search that the points are of, or of any where it has none."""
    searches = set()
    for selection in found.values():
        for r in selection.records:
            searches.add(r.search)
    where = {**report.where, **report.baseline}
    own = select([r for r in records if r.search in searches], report, where, choice)
    if own.records:
        return own
    return select(list(records), report, where, choice)


def _number(text: str | None) -> float | None:
    """A parameter's text as a finite number; None for any other."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    if math.isfinite(number):
        return number
    return None


def _peak(report: SweepReport, line: SweepLine) -> str:
    """Where the maximum of the means lies, and by how much it exceeds the ends."""
    mean = line.mean
    x = line.settings
    symbol = SYMBOLS.get(report.x, report.x)
    top = int(np.argmax(mean))
    at = f"{line.label}: largest mean {mean[top]:{'+' if report.gain else ''}.2f} at {symbol} = {x[top]:g}"
    if len(x) < FEWEST:
        return f"{at}; {len(x)} value{'s' if len(x) > 1 else ''} cannot show an interior maximum"
    if top in (0, len(x) - 1):
        return f"{at}, an end of the range: no interior maximum"
    if np.isclose(mean[top], max(mean[0], mean[-1]), rtol=1e-9):
        return f"{at}; no interior maximum: an end of the range is as high"
    end = 0 if mean[0] >= mean[-1] else len(x) - 1
    shared = []
    for seed in line.values[top]:
        if seed in line.values[end]:
            shared.append(seed)
    gaps = [line.values[top][seed] - line.values[end][seed] for seed in shared]
    if len(gaps) < 2:
        return f"{at}, an interior maximum; too few seeds to say how far above the ends"
    above = f"{np.mean(gaps):.2f} ± {np.std(gaps, ddof=1):.2f}"
    return f"{at}, an interior maximum: {above} above the better end ({symbol} = {x[end]:g}), paired by seed"


def _draw(report: SweepReport, lines: Sequence[SweepLine]) -> Canvas:
    with canvas.styled():
        figure, (axes,) = canvas.canvas(1, 1)
        for i, line in enumerate(lines):
            colour = PALETTE[i % len(PALETTE)]
            marker = MARKERS[i % len(MARKERS)]
            axes.errorbar(
                np.array(line.settings),
                line.mean,
                yerr=line.std,
                label=line.label,
                color=colour,
                marker=marker,
                capsize=2,
            )
        for series, marker in zip(report.series, MARKERS, strict=False):
            if series.published:
                x, y = zip(*sorted(series.published.items()), strict=True)
                axes.plot(
                    x,
                    y,
                    "--",
                    color=GREY,
                    marker=marker,
                    fillstyle="none",
                    label=f"{series.label}, paper",
                )
        if report.gain:
            axes.axhline(0, color=GREY, linestyle=":", linewidth=0.8)
        if report.log:
            axes.set_xscale("log")
        axes.set(xlabel=SYMBOLS.get(report.x, report.x), ylabel=report.label)
        ticks = sorted(
            {*chain(*(line.settings for line in lines), *(s.published for s in report.series))}
        )
        if ticks:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
            axes.legend(frameon=False)
        if not lines:
            canvas.empty(axes, "no runs: see the caption")
    return figure
