"""Metrics over epochs: mean and standard deviation over seeds, a colour per modality, a dash per
series.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.ticker import MaxNLocator

from tune_mm.reports.figures import canvas
from tune_mm.reports.figures.canvas import BLACK, DASHES, GREY, PALETTE, Dash, Figure
from tune_mm.reports.runs.select import Choice, Selection, select
from tune_mm.reports.runs.stored_run import Curve, StoredRun
from tune_mm.reports.runs.together import together
from tune_mm.reports.spec.spec import CurvesReport, Panel
from tune_mm.reports.spec.wording import file_name

MODALITY = "{modality}"
WORDS = {"grad/norm_multi": "multimodal loss", "grad/norm_uni": "unimodal loss"}
# Values that a metric is read against, and what they mean.
LEVELS = {
    "balance": (1.0, "dotted: B = 1, at which an encoder's gradient is left as it is"),
    "grad/cos": (0.0, "dotted: 0, at right angles to the fused head's gradient"),
    "grad/suppression": (1.0, "dotted: s = 1, below which the other modality shrinks the gradient"),
}


class CurveSource(Protocol):
    """Where curves are read from: a `store.Reader`."""

    def curves(self, record: StoredRun, metrics: Collection[str]) -> Mapping[str, Curve]:
        """Curves of a run by metric."""
        ...


@dataclass(frozen=True)
class Trace:
    """A metric of a panel."""

    metric: str
    # Its name without the modality.
    family: str
    # "" for the multimodal model.
    modality: str


@dataclass(frozen=True)
class Band:
    """What runs have at each epoch [E]."""

    epochs: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    # The least.
    low: np.ndarray
    # The greatest.
    high: np.ndarray
    # The most runs that any epoch has.
    runs: int
    # Values that were not finite.
    lost: int


def modalities(records: Iterable[StoredRun], metrics: Iterable[str]) -> tuple[str, ...]:
    """Modalities that the runs log, sorted: <m> of each val/<metric>/<m>, and of the `metrics` with
    {modality}.
    """
    keys = {key for record in records for key in record.metrics}
    prefixes = {f"{key}/" for key in keys if key.startswith("val/")}
    prefixes |= {m.removesuffix(MODALITY) for m in metrics if m.endswith(f"/{MODALITY}")}
    found = set()
    for key in keys:
        for p in prefixes:
            if key.startswith(p):
                found.add(key.removeprefix(p))
    return tuple(sorted(name for name in found if "/" not in name))


def traces(panel: Panel, known: Sequence[str]) -> list[Trace]:
    """The metrics of a panel with {modality} filled in."""
    out = []
    for metric in panel.metrics:
        if MODALITY in metric:
            family = metric.replace(f"/{MODALITY}", "")
            for m in known:
                out.append(Trace(metric.replace(MODALITY, m), family, m))
        else:
            head, _, last = metric.rpartition("/")
            out.append(Trace(metric, head, last) if last in known else Trace(metric, metric, ""))
    return out


def band(curves: Iterable[Curve]) -> Band:
    """The finite values at each epoch over runs; the standard deviation is a sample's, and 0 for
    one run.
    """
    values: dict[int, list[float]] = {}
    lost = 0
    for curve in curves:
        for epoch, value in curve:
            if math.isfinite(value):
                values.setdefault(epoch, []).append(value)
            else:
                lost += 1
    epochs = sorted(values)
    mean = np.array([np.mean(values[e]) for e in epochs])
    std = np.array([np.std(values[e], ddof=1) if len(values[e]) > 1 else 0.0 for e in epochs])
    low = np.array([min(values[e]) for e in epochs])
    high = np.array([max(values[e]) for e in epochs])
    runs = max(map(len, values.values()), default=0)
    return Band(np.array(epochs), mean, std, low, high, runs, lost)


def curves(
    report: CurvesReport,
    records: Sequence[StoredRun],
    reader: CurveSource,
    choice: Choice,
    name: str = "",
) -> Figure:
    """One axes per panel; with more than two series one per series and panel, on the same scale.

    What no run has is left out, and the caption says it with the command that makes it.
    """
    wheres = {}
    for s in report.series:
        wheres[s.label] = {**report.where, **s.where}
    found, note = together(records, report, wheres, choice)
    chosen = {}
    for label, w in wheres.items():
        chosen[label] = found.get(label) or select(list(records), report, w, choice)
    runs = []
    for selection in chosen.values():
        for r in selection.records:
            runs.append(r)
    known = modalities(runs, [m for p in report.panels for m in p.metrics])
    facets = list(_facets(report))
    with canvas.styled():
        if len(report.panels) > 1 or len(facets) == 1:
            columns = len(report.panels)
        else:
            columns = 2
        figure, axes = canvas.canvas(math.ceil(len(facets) / columns), columns)
        drawn: list[tuple[str, Trace, Band]] = []
        for place, (panel, labels) in zip(axes, facets, strict=False):
            part = [
                (label, *rest)
                for label in labels
                for rest in _bands(panel, chosen[label], reader, known)
            ]
            _draw(place, panel, part, labels, known)
            if len(labels) < len(report.series):
                place.set(title=labels[0], ylabel=f"{panel.title} {panel.unit}".strip())
            drawn += part
        for place in axes[len(facets) :]:
            place.remove()
        _share(axes, facets)
        _legend(
            figure,
            drawn,
            [s.label for s in report.series] if len(report.series) <= 2 else [],
            known,
        )
    commands, lacking = canvas.missing(report, choice, list(_absent(report, chosen, drawn)))
    said = [note, *_reading(report, drawn), _lost(drawn), lacking]
    text = canvas.caption(report, choice, chosen, [b.runs for _, _, b in drawn if b.runs], said)
    return Figure(file_name(report, name), figure, text, commands)


def _facets(report: CurvesReport) -> Iterator[tuple[Panel, list[str]]]:
    """What goes into one axes: a panel, and the series drawn over each other in it."""
    labels = [s.label for s in report.series]
    if len(labels) <= 2:
        groups = [labels]
    else:
        groups = [[label] for label in labels]
    return ((panel, group) for group in groups for panel in report.panels)


def _bands(
    panel: Panel, selection: Selection, reader: CurveSource, known: Sequence[str]
) -> Iterator[tuple[Trace, Band]]:
    """The traces of a panel that a series' runs have."""
    wanted = traces(panel, known)
    read = []
    for record in selection.records:
        read.append(reader.curves(record, [t.metric for t in wanted]))
    for trace in wanted:
        found = band(one.get(trace.metric, ()) for one in read)
        if found.runs or found.lost:
            yield trace, found


def _draw(
    axes: Any,
    panel: Panel,
    part: Sequence[tuple[str, Trace, Band]],
    labels: Sequence[str],
    known: Sequence[str],
) -> None:
    families = list(dict.fromkeys(trace.family for _, trace, _ in part))
    styles: dict[tuple[str, str], Dash] = {}
    for label in labels:
        for family in families:
            styles[label, family] = DASHES[len(styles) % len(DASHES)]
    for label, trace, found in part:
        colour = _colour(trace.modality, known)
        words = f"{label}: {trace.modality or 'multimodal'}"
        words += f", {WORDS.get(trace.family, trace.family)}" if len(families) > 1 else ""
        axes.plot(found.epochs, found.mean, styles[label, trace.family], color=colour, label=words)
        if found.runs > 1:
            # On a logarithmic axis mean - std may lie below 0, and then there is nothing to draw.
            spread = (found.mean - found.std, found.mean + found.std)
            low, high = (found.low, found.high) if panel.log else spread
            axes.fill_between(found.epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    for family in families:
        if family in LEVELS:
            axes.axhline(LEVELS[family][0], color=GREY, linestyle=":", linewidth=0.8)
    if panel.log:
        axes.set_yscale("log", nonpositive="clip")
    axes.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not part:
        canvas.empty(axes, "no runs: see the caption")
    elif len(families) > 1:
        many = len(labels) > 1
        entries = []
        for (label, family), style in styles.items():
            words = WORDS.get(family, family)
            entries.append(canvas.key(f"{label}: {words}" if many else words, style=style))
        axes.legend(handles=entries, framealpha=0.7)


def _colour(modality: str, known: Sequence[str]) -> str:
    if modality:
        return PALETTE[known.index(modality) % len(PALETTE)]
    return BLACK


def _share(axes: Sequence[Any], facets: Sequence[tuple[Panel, list[str]]]) -> None:
    """The same limits for all axes of one panel, so that series can be compared."""
    for panel in {id(p): p for p, _ in facets}.values():
        same = [a for a, (p, _) in zip(axes, facets, strict=False) if p is panel and a.lines]
        if len(same) > 1:
            limits = [a.get_ylim() for a in same]
            for a in same:
                a.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _legend(
    figure: Any,
    drawn: Sequence[tuple[str, Trace, Band]],
    labels: Sequence[str],
    known: Sequence[str],
) -> None:
    """Colours for modalities and, where two series lie over each other, dashes for them."""
    seen = {trace.modality for _, trace, _ in drawn}
    order = [m for m in ("", *known) if m in seen]
    entries = []
    for m in order:
        entries.append(canvas.key(m or "multimodal", _colour(m, known)))
    if len(labels) > 1:
        pairs = zip(labels, DASHES, strict=False)
        for label, style in pairs:
            entries.append(canvas.key(label, style=style))
    if entries:
        figure.legend(
            handles=entries, loc="outside lower center", ncols=min(len(entries), 6), frameon=False
        )


def _absent(
    report: CurvesReport, chosen: Mapping[str, Selection], drawn: Sequence[tuple[str, Trace, Band]]
) -> Iterator[str]:
    """Series without runs, and metrics that no run has though there are runs."""
    for label, selection in chosen.items():
        if not selection.records:
            yield f"runs of {label}"
    have: set[str] = set()
    for _, trace, _ in drawn:
        have |= {trace.metric, f"{trace.family}/{MODALITY}"}
    if not any(selection.records for selection in chosen.values()):
        return
    for panel in report.panels:
        for metric in panel.metrics:
            if metric not in have:
                yield f"the metric {metric}"


def _reading(report: CurvesReport, drawn: Sequence[tuple[str, Trace, Band]]) -> Iterator[str]:
    """How bands and dotted lines are to be read."""
    if any(p.log for p in report.panels) and any(b.runs > 1 for _, _, b in drawn):
        yield "On logarithmic axes bands reach from the least to the greatest of the seeds"
    families = dict.fromkeys(trace.family for _, trace, _ in drawn)
    for family in families:
        if family in LEVELS:
            yield f"{family}, {LEVELS[family][1]}"


def _lost(drawn: Sequence[tuple[str, Trace, Band]]) -> str:
    names = []
    for label, t, b in drawn:
        if b.lost:
            names.append(f"{b.lost} of {label}: {t.metric}")
    if names:
        return f"Values that are not finite are left out ({', '.join(names)})"
    return ""
