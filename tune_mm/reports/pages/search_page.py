"""One HTML page about one search: what was searched, what came out, every trial, and how the best
ones learned.

The page needs no server and no network: plotly.js (4.9 MB) is in it. A search that has not ended
gives an honest page about what is there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from optuna.study import Study
from plotly.graph_objects import Figure

from tune_mm.reports.pages import epochs, plots, surface
from tune_mm.reports.pages import search as searches
from tune_mm.reports.pages.cells import duration, figure, finite, headings, setting, soft, tally
from tune_mm.reports.pages.finals import FinalGroup, final_groups, finals
from tune_mm.reports.pages.html import Grid, Html, PageCell, facts, page, plot, section, tag
from tune_mm.reports.pages.search import Search
from tune_mm.reports.pages.study import study
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import Curve, StoredRun

ROWS = 8  # groups of final runs whose curves are drawn
FAMILIES = ("grad/norm_multi/", "grad/norm_uni/")


def search_page(reader: Reader, search: str) -> str:
    """The page of a search by name or unique id. Raises UserError when the store has no such
    search.
    """
    found = searches.load(reader, search)
    groups = final_groups(found)
    return page(
        f"{found.name} · tune_mm",
        *_header(found, reader.shown),
        finals(found, groups),
        *_tuning(reader, found),
        _curves(reader, found, groups),
        _trials(found),
        interactive=True,
    )


# ---- the head of the page


def _header(search: Search, store: str) -> list[Html]:
    parent = search.parent
    first = parent or search.runs[0]
    status = parent.status if parent else "unknown"
    kind = first.tags.get("data_kind", "unknown")
    badges = []
    for text in (status, f"{kind} data"):
        badges.append(tag("span", text, class_=f"badge {text.split()[0]}"))
    warnings = [tag("p", note) for note in search.notes]
    if kind == "synthetic":
        warnings.append(
            tag(
                "p",
                "The data are synthetic: the numbers say nothing about the real data.",
                class_="warn",
            )
        )
    if search.open:
        words = "The search has not ended: this page shows what its runs say so far."
        reason = parent.tags.get("reason", "") if parent else ""
        warnings.append(tag("p", f"{words} {reason}", class_="warn"))
    return [
        tag("h1", search.name),
        tag("p", badges[0], Html(" "), badges[1]),
        *warnings,
        _facts(search, first, store),
    ]


def _facts(search: Search, first: StoredRun, store: str) -> Html:
    tags = first.tags
    samples = search.about.get("samples")
    if isinstance(samples, dict):
        sizes = ", ".join(f"{k} {v}" for k, v in samples.items())
    else:
        sizes = ""
    versions = ", ".join(
        f"{k.removeprefix('version.')} {v}" for k, v in tags.items() if k.startswith("version.")
    )
    if tags.get("git_dirty") == "true":
        dirty = " with changes"
    else:
        dirty = ""
    seconds = search.summary.get("seconds")
    counts = {}
    for s, trials in search.trials.items():
        counts[s] = [t.record.status for t in trials]
    counts |= {"final": [r.status for r in search.finals]} if search.finals else {}
    runs = "; ".join(
        f"{s}: {', '.join(f'{n} {w}' for w, n in tally(found))}" for s, found in counts.items()
    )
    return facts(
        [
            ("space", first.space),
            ("method", first.value("method") or ""),
            (
                "objective",
                f"{search.objective} ({'lower' if search.mode == 'min' else 'higher'} is better)",
            ),
            ("data", ", ".join(filter(None, [tags.get("dataset", ""), sizes]))),
            ("searcher", tags.get("searcher", "")),
            ("scheduler", first.params.get("scheduler", "")),
            ("trials planned", "" if search.exhaustive else first.params.get("trials", "")),
            ("epochs", first.params.get("epochs", "")),
            ("started", first.started.strftime("%Y-%m-%d %H:%M:%S %Z")),
            ("took", duration(seconds) if isinstance(seconds, (int, float)) else ""),
            ("runs", runs),
            ("unique id", search.uid),
            ("versions", versions),
            ("git commit", tags.get("git_commit", "") + dirty),
            ("store", store),
        ]
    )


# ---- tuning


def _tuning(reader: Reader, search: Search) -> list[Html]:
    if not search.trials.get("search"):
        if search.exhaustive:
            why = "every point of the grid goes into the final runs"
        else:
            why = "no trial has started"
        return [section("Trials", tag("p", f"Nothing was tuned: {why}."))]
    one = study(search)
    done = []
    for t in search.trials["search"]:
        if t.record.status == "completed" and t.value is not None:
            done.append(t)
    dots = "Dots: completed trials at their best; line: the best so far." + _crosses(search)
    parts = [section("History", _plot(search, plots.history(search), dots))]
    parts.append(
        section("Early stopping", _plot(search, plots.lives(search), _stopping(search), least=760))
    )
    changed = epochs.changed(search)
    if changed:
        parts.append(section("Settings over time", _schedules(reader, search)))
    if not done:
        return [
            *parts,
            section("Settings", tag("p", "No trial has completed with a finite objective yet.")),
        ]
    named = "Completed trials, coloured by the objective; point at a line to read it." + _last(
        changed
    )
    parts.append(
        section(
            "Parallel coordinates", _plot(search, plots.parallel(search, one), named, least=900)
        )
    )
    words = (
        "Dots: completed trials, darker the later they came." + _crosses(search) + _last(changed)
    )
    figures = list(plots.slices(search, one))
    slices = []
    for f in figures:
        slices.append(_plot(search, f, words if f is figures[-1] else "", least=860))
    parts.append(section("Slices", *slices))
    parts += _contour(search, one, _last(changed))
    weights = plots.importances(search, one)
    if isinstance(weights, str):
        return [*parts, section("Importances", tag("p", weights))]
    told = f"Optuna's default importances (PED-ANOVA) over {len(done)} completed trials"
    told += ": a hint, no more, from so few." if len(done) < plots.FEW else "."
    return [*parts, section("Importances", _plot(search, weights, told + _last(changed)))]


def _plot(search: Search, figure: Figure, caption: str, least: int = 0) -> Html:
    """A figure whose caption ends with the data."""
    return plot(figure, f"{caption} Data: {search.data}." if caption else "", least)


def _crosses(search: Search) -> str:
    any_pruned = any(plots.pruned(search, stage) for stage in search.trials)
    if any_pruned:
        return " Crosses: trials that were pruned, at the best value that they reached."
    return ""


def _last(changed: Sequence[str]) -> str:
    """What settings mean where population-based training changed them."""
    if not changed:
        return ""
    words = " Settings changed during training; shown are those that a trial ended with,"
    return f"{words} which need not be those of its best epoch."


def _schedules(reader: Reader, search: Search) -> Html:
    """The settings that population-based training changed, by epoch."""
    names = [epochs.CHANGED + key for key in epochs.changed(search)]
    found = []
    for t in search.trials["search"]:
        found.append((t, reader.curves(t.record, names)))
    told = "Population-based training: what each trial was trained with, epoch by epoch; one line per trial, coloured "
    told += "by its best objective, the best trial thick. A poor trial goes on from a better one's weights, with that "
    told += "one's settings or with changed ones."
    rest = []
    for k in search.domains["search"]:
        if k not in epochs.changed(search):
            rest.append(k)
    if rest:
        told += (
            f" Not kept by epoch, and shown as drawn at the start everywhere: {', '.join(rest)}."
        )
    return _plot(search, epochs.schedules(search, found), told, least=900)


def _contour(search: Search, one: Study, last: str) -> list[Html]:
    """The objective over the two settings that matter most; nothing where there are no two numbers."""
    keys = surface.pair(search, one)
    if keys is None:
        return []
    title = f"Contour of {keys[0]} and {keys[1]}"
    figure = surface.contour(search, keys)
    if isinstance(figure, str):
        return [section(title, tag("p", figure))]
    return [section(title, _plot(search, figure, surface.told(search, figure).strip() + last))]


def _stopping(search: Search) -> str:
    trials = search.trials["search"]
    spent = sum(t.epochs for t in trials)
    full = max((t.epochs for t in trials), default=0) * len(trials)
    told = "Left: how long each trial lived. Right: its best so far; thick: the best trial."
    if epochs.changed(search):
        told += (
            " Population-based training stops none: a poor one goes on from a better one's weights."
        )
    return f"{told} {spent} epochs were trained, of {full} if every trial had lived as long as the longest."


def _trials(search: Search) -> Html:
    trials = [(stage, t) for stage, found in search.trials.items() for t in found]
    if not trials:
        return Html("")
    keys = list(dict.fromkeys(k for stage in search.trials for k in search.domains.get(stage, {})))
    alone = sorted(
        {
            k
            for _, t in trials
            for k in t.record.metrics
            if k.startswith(f"best/{search.objective}/")
        }
    )
    modalities = [k.rpartition("/")[2] for k in alone]
    reasons = any("reason" in t.record.tags for _, t in trials)
    heads = ["stage", "trial", "status", search.objective, "epochs", *modalities, *headings(keys)]
    heads += ["reason"] if reasons else []
    best = search.best()
    rows = []
    for stage, t in trials:
        rows.append(
            [
                PageCell(stage),
                PageCell(str(t.number), t.number),
                PageCell(t.record.status),
                figure(t.value),
                PageCell(str(t.epochs), t.epochs),
                *(figure(t.record.metrics.get(k)) for k in alone),
                *(setting(t.settings.get(k, "")) for k in keys),
                *([PageCell(t.record.tags.get("reason", ""), wide=True)] if reasons else []),
            ]
        )
    marked = frozenset(i for i, (_, t) in enumerate(trials) if t is best)
    hint = f"{search.objective} is the best of the epochs that a trial lived"
    hint += f"; {', '.join(modalities)}: of a modality alone at that epoch" if modalities else ""
    hint += f". Click a heading to sort.{_last(epochs.changed(search))}"
    return section("All trials", soft(hint), Grid(heads, rows, marked, sortable=True).html())


# ---- curves


def _curves(reader: Reader, search: Search, groups: Sequence[FinalGroup]) -> Html:
    """The modalities' curves of the best trial, and of the final runs."""
    parts: list[Html] = []
    best = search.best()
    if best is not None:
        rows = {f"trial {best.number}": [best.record]}
        parts += [tag("h3", "Best trial"), _figure(reader, search, rows)]
    chosen = _drawn(search, groups)
    if chosen:
        rows = {}
        for g in chosen:
            rows[g.title] = [r for r in search.finals if r.tags.get("source") == g.source]
        if len(chosen) < len(groups):
            more = f" The best {len(chosen)} of {len(groups)} by validation."
        else:
            more = ""
        several = "Mean and standard deviation over seeds"
        running = any(r.status == "running" for r in search.finals)
        several += (
            ", over fewer of them at the epochs that not all runs have come to." if running else "."
        )
        told = several + more
        parts += [tag("h3", "Final runs"), _figure(reader, search, rows, told)]
    return section("Modalities", *(parts or [tag("p", "No run has metrics yet.")]))


def _drawn(search: Search, groups: Sequence[FinalGroup]) -> list[FinalGroup]:
    """The groups to draw, at most ROWS: the best by validation, in their own order."""
    sign = -1 if search.mode == "min" else 1
    ranked = sorted(
        groups, key=lambda g: -sign * statistics.fmean(finite(g.val.values()) or [-sign * math.inf])
    )
    kept = ranked[:ROWS]
    return [g for g in groups if g in kept]


def _figure(
    reader: Reader, search: Search, rows: Mapping[str, Sequence[StoredRun]], told: str = ""
) -> Html:
    heads = (f"{search.objective}/", *FAMILIES)
    found: dict[str, list[dict[str, Curve]]] = {}
    for name, runs in rows.items():
        wanted = sorted(
            {k for r in runs for k in r.metrics if k == search.objective or k.startswith(heads)}
        )
        read = [reader.curves(r, wanted) for r in runs]
        found |= {name: read} if any(read) else {}  # a run that has just begun has none
    if not found:
        return tag("p", "These runs have no curves.")
    gradients = "Gradient norms: solid, what the multimodal loss sends to an encoder; dashed, the unimodal losses. "
    gradients += "Zeros are left out of log axes."
    if any(
        not math.isfinite(v)
        for runs in found.values()
        for one in runs
        for c in one.values()
        for _, v in c
    ):
        told += " Values that are not finite are left out."
    shown = any(
        name.startswith(FAMILIES) for runs in found.values() for one in runs for name in one
    )
    figure = epochs.curves(search.objective, found)
    return _plot(search, figure, f"{told} {gradients if shown else ''}".strip(), least=860)
