"""The description of a search's parent run, as MLflow's page shows it (Markdown): what it is, and
what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune_mm.track import limits

TAG = "mlflow.note.content"
DIGITS = 4


def heading(name: str, facts: Mapping[str, Any]) -> str:
    """The first lines. facts: method, dataset, data_kind, objective, mode (min, max), trials,
    epochs, searcher, scheduler.
    """
    better = "higher" if facts["mode"] == "max" else "lower"
    data = f"{facts['data_kind']} data"
    if facts["data_kind"] == "synthetic":
        data += ": the numbers say nothing about the real data set"
    budget = f"{facts['trials']} trials of up to {facts['epochs']} epochs"
    return (
        f"Search **{name}**: {facts['method']} on {facts['dataset']}, {data}.\n"
        f"Objective {facts['objective']} ({better} is better); {budget}; searcher {facts['searcher']}, "
        f"scheduler {facts['scheduler']}."
    )


def outcome(summary: Mapping[str, Any]) -> str:
    """What came out, from the content of summary.json: gain, status, finals, best trials; what it
    lacks is left out.

    The gain comes first: MLflow shows four lines until it is asked for more.
    """
    finals = summary["finals"] or {"gain": None, "groups": []}
    parts = (
        _gain(finals["gain"]),
        _status(summary),
        _finals(finals["groups"]),
        _best(summary["best"], summary["objective"]),
    )
    return "\n\n".join(filter(None, parts))


def links(name: str, experiment_id: str, run_id: str) -> str:
    """Where the rest is: addresses inside MLflow's pages."""
    run = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts"
    files = ", ".join(
        f"[{file}]({run}/{file})" for file in ("summary.json", "config.yaml", "space.json")
    )
    page = f"[reports]({run}/reports)"
    return f"Files: {files}. `python -m tune_mm.report search {name}` puts a page with plots of the search into {page}."


def text(*parts: str) -> str:
    """The description of several parts, no longer than a tag may be."""
    return limits.text("\n\n".join(filter(None, parts)), limits.TAG)


def _status(summary: Mapping[str, Any]) -> str:
    stages = (
        (stage, ", ".join(f"{n} {s}" for s, n in counts.items()))
        for stage, counts in summary["stages"].items()
    )
    told = "; ".join(f"{stage}: {counts}" for stage, counts in stages if counts)
    if told:
        return f"Status: {summary['status']} ({told})."
    return f"Status: {summary['status']}."


def _best(best: Mapping[str, Sequence[Mapping[str, Any]]], objective: str) -> str:
    rows = []
    for stage, found in best.items():
        if found:
            first = found[0]
            value = _number(first["value"])
            chosen = _settings(first["settings"])
            rows.append(f"{stage} {first['trial']}: {value} {objective}; {chosen}")
    return _list("Best trials:", rows)


def _finals(groups: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for group in groups:
        if r := group["result"]:
            result = f"**{_number(r['mean'])} ± {_number(r['std'])}** {r['metric']}, n = {r['n']}"
            rows.append(
                f"{group['source'].replace('/', ' ')}: {result}; {_settings(group['settings'])}"
            )
    return _list("Finals, mean ± standard deviation over seeds:", rows)


def _gain(gain: Mapping[str, Any] | None) -> str:
    if not gain:
        return ""
    said = f"Gain over the tuned baseline: **{gain['mean']:+.{DIGITS}f}** {gain['metric']}"
    if gain["interval95"] is None:
        return f"{said}, one seed, no interval."
    low, high = gain["interval95"]
    if low <= 0 <= high:
        verdict = "; zero lies within: no difference is shown"
    else:
        verdict = ""
    return f"{said}, {gain['n']} paired seeds, 95 % interval {low:+.{DIGITS}f} to {high:+.{DIGITS}f}{verdict}."


def _list(title: str, rows: Sequence[str]) -> str:
    """A list, for MLflow sets the columns of a table without a gap."""
    if rows:
        return "\n".join([title, "", *(f"* {row}" for row in rows)])
    return ""


def _settings(values: Mapping[str, Any]) -> str:
    """Sections (a grid's point may replace one whole) are left out."""
    plain = {}
    for key, value in values.items():
        if not isinstance(value, Mapping):
            plain[key] = value
    return " ".join(
        f"{key}={f'{v:.3g}' if isinstance(v, float) else v}" for key, v in plain.items()
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.{DIGITS}f}"
