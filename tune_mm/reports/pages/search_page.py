"""One HTML page about one search: what came out, every trial, and how the best ones learned.

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
from tune_mm.reports.pages.blocks import (
    Block,
    Chart,
    Facts,
    Grid,
    Heading,
    PageCell,
    PageSection,
    Text,
)
from tune_mm.reports.pages.cells import duration, figure, finite, headings, setting, tally
from tune_mm.reports.pages.finals import SettingGroup, final_groups, finals
from tune_mm.reports.pages.render import page
from tune_mm.reports.pages.search import Search, Trial
from tune_mm.reports.pages.study import study
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import Curve, StoredRun

# Groups of final runs whose curves are drawn.
ROWS = 8
# Metrics of gradients that are drawn below the objective.
FAMILIES = ("grad/norm_multi/", "grad/norm_uni/")


def search_page(reader: Reader, search: str) -> str:
    """The page of a search by name or unique id.

    Raises UserError when the store has no such search.
    """
    found = searches.load(reader, search)
    groups = final_groups(found)
    sections = [
        finals(found, groups),
        *_tuning(reader, found),
        _curves(reader, found, groups),
        *_trials(found),
    ]
    return page(
        f"{found.name} · tune_mm",
        "search.html.j2",
        interactive=True,
        search=found,
        badges=[_status(found), f"{_data_kind(found)} data"],
        head=[*_warnings(found), _facts(found, reader.shown)],
        sections=sections,
    )


# ---- the head of the page


def _first(search: Search) -> StoredRun:
    """The run whose tags say what was searched."""
    return search.parent or search.runs[0]


def _status(search: Search) -> str:
    if search.parent:
        return search.parent.status
    return "unknown"


def _data_kind(search: Search) -> str:
    return _first(search).tags.get("data_kind", "unknown")


def _warnings(search: Search) -> list[Text]:
    found = [Text(note) for note in search.notes]
    if _data_kind(search) == "synthetic":
        told = "The data are synthetic: the numbers say nothing about the real data."
        found.append(Text(told, "warn"))
    if search.open:
        told = "The search has not ended: this page shows what its runs say so far."
        if search.parent:
            reason = search.parent.tags.get("reason", "")
        else:
            reason = ""
        found.append(Text(f"{told} {reason}", "warn"))
    return found


def _facts(search: Search, store: str) -> Facts:
    first = _first(search)
    tags = first.tags
    better = "lower" if search.mode == "min" else "higher"
    seconds = search.summary.get("seconds")
    if isinstance(seconds, (int, float)):
        took = duration(seconds)
    else:
        took = ""
    commit = tags.get("git_commit", "")
    if tags.get("git_dirty") == "true":
        commit += " with changes"
    if search.exhaustive:
        planned = ""
    else:
        planned = first.params.get("trials", "")
    return Facts(
        [
            ("space", first.space),
            ("method", first.value("method") or ""),
            ("objective", f"{search.objective} ({better} is better)"),
            ("data", _data(search)),
            ("searcher", tags.get("searcher", "")),
            ("scheduler", first.params.get("scheduler", "")),
            ("trials planned", planned),
            ("epochs", first.params.get("epochs", "")),
            ("started", first.started.strftime("%Y-%m-%d %H:%M:%S %Z")),
            ("took", took),
            ("runs", _run_counts(search)),
            ("unique id", search.uid),
            ("versions", _versions(tags)),
            ("git commit", commit),
            ("store", store),
        ]
    )


def _data(search: Search) -> str:
    """The data set, and how many samples its splits have."""
    parts = [_first(search).tags.get("dataset", "")]
    samples = search.about.get("samples")
    if isinstance(samples, dict):
        for split, count in samples.items():
            parts.append(f"{split} {count}")
    return ", ".join(filter(None, parts))


def _versions(tags: Mapping[str, str]) -> str:
    parts = []
    for key, value in tags.items():
        if key.startswith("version."):
            parts.append(f"{key.removeprefix('version.')} {value}")
    return ", ".join(parts)


def _run_counts(search: Search) -> str:
    """How many runs of each stage ended how."""
    statuses = {}
    for stage, trials in search.trials.items():
        statuses[stage] = [trial.record.status for trial in trials]
    if search.finals:
        statuses["final"] = [run.status for run in search.finals]
    parts = []
    for stage, found in statuses.items():
        counts = []
        for status, count in tally(found):
            counts.append(f"{count} {status}")
        parts.append(f"{stage}: {', '.join(counts)}")
    return "; ".join(parts)


# ---- tuning


def _tuning(reader: Reader, search: Search) -> list[PageSection]:
    if not search.trials.get("search"):
        why = "no trial has started"
        if search.exhaustive:
            why = "every point of the grid goes into the final runs"
        return [PageSection("Trials", [Text(f"Nothing was tuned: {why}.")])]
    dots = "Dots: completed trials at their best; line: the best so far." + _crosses(search)
    lives = _chart(search, plots.lives(search), _stopping(search), least=760)
    sections = [
        PageSection("History", [_chart(search, plots.history(search), dots)]),
        PageSection("Early stopping", [lives]),
    ]
    if epochs.changed(search):
        sections.append(PageSection("Settings over time", [_schedules(reader, search)]))
    done = []
    for trial in search.trials["search"]:
        if _has_value(trial):
            done.append(trial)
    if not done:
        told = "No trial has completed with a finite objective yet."
        return [*sections, PageSection("Settings", [Text(told)])]
    one = study(search)
    return [
        *sections,
        _parallel(search, one),
        *_slices(search, one),
        *_contour(search, one),
        _importances(search, one, len(done)),
    ]


def _has_value(trial: Trial) -> bool:
    return trial.record.status == "completed" and trial.value is not None


def _chart(search: Search, figure: Figure, caption: str, least: int = 0) -> Chart:
    """A figure whose caption ends with the data."""
    if caption:
        caption = f"{caption} Data: {search.data}."
    return Chart(figure, caption, least)


def _parallel(search: Search, one: Study) -> PageSection:
    told = "Completed trials, coloured by the objective; point at a line to read it."
    chart = _chart(search, plots.parallel(search, one), told + _as_ended(search), least=900)
    return PageSection("Parallel coordinates", [chart])


def _slices(search: Search, one: Study) -> list[PageSection]:
    """The objective over each setting, captioned below the last row; [] where none differs."""
    figures = list(plots.slices(search, one))
    if not figures:
        return []
    told = "Dots: completed trials, darker the later they came."
    told += _crosses(search) + _as_ended(search)
    charts = []
    for above in figures[:-1]:
        charts.append(_chart(search, above, "", least=860))
    charts.append(_chart(search, figures[-1], told, least=860))
    return [PageSection("Slices", charts)]


def _contour(search: Search, one: Study) -> list[PageSection]:
    """The objective over the two settings that matter most; [] where there are no two numbers."""
    keys = surface.pair(search, one)
    if keys is None:
        return []
    title = f"Contour of {keys[0]} and {keys[1]}"
    figure = surface.contour(search, keys)
    if isinstance(figure, str):
        return [PageSection(title, [Text(figure)])]
    told = surface.told(search, figure).strip() + _as_ended(search)
    return [PageSection(title, [_chart(search, figure, told)])]


def _importances(search: Search, one: Study, count: int) -> PageSection:
    weights = plots.importances(search, one)
    if isinstance(weights, str):
        return PageSection("Importances", [Text(weights)])
    told = f"Optuna's default importances (PED-ANOVA) over {count} completed trials"
    told += ": a hint, no more, from so few." if count < plots.FEW else "."
    return PageSection("Importances", [_chart(search, weights, told + _as_ended(search))])


def _crosses(search: Search) -> str:
    if not any(plots.pruned(search, stage) for stage in search.trials):
        return ""
    return " Crosses: trials that were pruned, at the best value that they reached."


def _as_ended(search: Search) -> str:
    """What settings mean where population-based training changed them."""
    if not epochs.changed(search):
        return ""
    return (
        " Settings changed during training; shown are those that a trial ended with, "
        "which need not be those of its best epoch."
    )


def _schedules(reader: Reader, search: Search) -> Chart:
    """The settings that population-based training changed, by epoch."""
    changed = epochs.changed(search)
    names = [epochs.CHANGED + key for key in changed]
    curves = []
    for trial in search.trials["search"]:
        curves.append((trial, reader.curves(trial.record, names)))
    told = (
        "Population-based training: what each trial was trained with, epoch by epoch; "
        "one line per trial, coloured by its best objective, the best trial thick. "
        "A poor trial goes on from a better one's weights, with that one's settings "
        "or with changed ones."
    )
    kept = []
    for key in search.domains["search"]:
        if key not in changed:
            kept.append(key)
    if kept:
        keys = ", ".join(kept)
        told += f" Not kept by epoch, and shown as drawn at the start everywhere: {keys}."
    return _chart(search, epochs.schedules(search, curves), told, least=900)


def _stopping(search: Search) -> str:
    trials = search.trials["search"]
    spent = sum(trial.epochs for trial in trials)
    longest = max((trial.epochs for trial in trials), default=0)
    told = "Left: how long each trial lived. Right: its best so far; thick: the best trial."
    if epochs.changed(search):
        told += (
            " Population-based training stops none: a poor one goes on from a better one's weights."
        )
    full = longest * len(trials)
    return (
        f"{told} {spent} epochs were trained, of {full} if every trial had lived "
        "as long as the longest."
    )


# ---- all trials


def _trials(search: Search) -> list[PageSection]:
    """The table of all trials; [] before the first."""
    trials = [(stage, trial) for stage, found in search.trials.items() for trial in found]
    if not trials:
        return []
    keys = _searched_keys(search)
    alone = _alone(search, [trial for _, trial in trials])
    modalities = [key.rpartition("/")[2] for key in alone]
    with_reasons = any("reason" in trial.record.tags for _, trial in trials)
    heads = ["stage", "trial", "status", search.objective, "epochs", *modalities, *headings(keys)]
    if with_reasons:
        heads.append("reason")
    best = search.best()
    rows = []
    marked = set()
    for number, (stage, trial) in enumerate(trials):
        row = [
            PageCell(stage),
            PageCell(str(trial.number), trial.number),
            PageCell(trial.record.status),
            figure(trial.value),
            PageCell(str(trial.epochs), trial.epochs),
            *[figure(trial.record.metrics.get(key)) for key in alone],
            *[setting(trial.settings.get(key, "")) for key in keys],
        ]
        if with_reasons:
            row.append(PageCell(trial.record.tags.get("reason", ""), wide=True))
        if trial is best:
            marked.add(number)
        rows.append(row)
    hint = f"{search.objective} is the best of the epochs that a trial lived"
    if modalities:
        hint += f"; {', '.join(modalities)}: of a modality alone at that epoch"
    hint += f". Click a heading to sort.{_as_ended(search)}"
    table = Grid(heads, rows, frozenset(marked), sortable=True)
    return [PageSection("All trials", [Text(hint, "soft"), table])]


def _searched_keys(search: Search) -> list[str]:
    """What any stage searched, in the order of the spaces."""
    keys: dict[str, None] = {}
    for stage in search.trials:
        keys.update(dict.fromkeys(search.domains.get(stage, {})))
    return list(keys)


def _alone(search: Search, trials: Sequence[Trial]) -> list[str]:
    """The objective of modalities alone at the best epoch, sorted."""
    found: set[str] = set()
    prefix = f"best/{search.objective}/"
    for trial in trials:
        found |= {key for key in trial.record.metrics if key.startswith(prefix)}
    return sorted(found)


# ---- curves


def _curves(reader: Reader, search: Search, groups: Sequence[SettingGroup]) -> PageSection:
    """The modalities' curves of the best trial, and of the final runs."""
    blocks: list[Block] = []
    best = search.best()
    if best is not None:
        row = {f"trial {best.number}": [best.record]}
        blocks += [Heading("Best trial"), _modalities(reader, search, row)]
    drawn = _drawn(search, groups)
    if drawn:
        rows = {}
        for group in drawn:
            rows[group.title] = _runs_of(search, group)
        told = "Mean and standard deviation over seeds"
        if any(run.status == "running" for run in search.finals):
            told += ", over fewer of them at the epochs that not all runs have come to."
        else:
            told += "."
        if len(drawn) < len(groups):
            told += f" The best {len(drawn)} of {len(groups)} by validation."
        blocks += [Heading("Final runs"), _modalities(reader, search, rows, told)]
    if not blocks:
        blocks.append(Text("No run has metrics yet."))
    return PageSection("Modalities", blocks)


def _runs_of(search: Search, group: SettingGroup) -> list[StoredRun]:
    found = []
    for run in search.finals:
        if run.tags.get("source") == group.source:
            found.append(run)
    return found


def _drawn(search: Search, groups: Sequence[SettingGroup]) -> list[SettingGroup]:
    """The groups to draw, at most ROWS: the best by validation, in their own order."""
    sign = -1 if search.mode == "min" else 1

    def worse(group: SettingGroup) -> float:
        values = finite(group.val.values())
        if not values:
            return math.inf
        return -sign * statistics.fmean(values)

    kept = sorted(groups, key=worse)[:ROWS]
    return [group for group in groups if group in kept]


def _modalities(
    reader: Reader, search: Search, rows: Mapping[str, Sequence[StoredRun]], told: str = ""
) -> Block:
    """Curves of the objective, of modalities alone, and of gradient norms; a row per entry."""
    found: dict[str, list[dict[str, Curve]]] = {}
    for name, runs in rows.items():
        names = _drawn_metrics(search, runs)
        curves = [reader.curves(run, names) for run in runs]
        if any(curves):  # a run that has just begun has none
            found[name] = curves
    if not found:
        return Text("These runs have no curves.")
    every = [run for runs in found.values() for run in runs]
    if any(_has_gaps(curve) for run in every for curve in run.values()):
        told += " Values that are not finite are left out."
    if any(name.startswith(FAMILIES) for run in every for name in run):
        told += (
            " Gradient norms: solid, what the multimodal loss sends to an encoder; dashed, "
            "the unimodal losses. Zeros are left out of log axes."
        )
    return _chart(search, epochs.curves(search.objective, found), told.strip(), least=860)


def _drawn_metrics(search: Search, runs: Sequence[StoredRun]) -> list[str]:
    prefixes = (f"{search.objective}/", *FAMILIES)
    found: set[str] = set()
    for run in runs:
        for key in run.metrics:
            if key == search.objective or key.startswith(prefixes):
                found.add(key)
    return sorted(found)


def _has_gaps(curve: Curve) -> bool:
    return not all(math.isfinite(value) for _, value in curve)
