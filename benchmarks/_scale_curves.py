"""Recorded learning curves, and which of them a simulated trial replays."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

SHIPPED = Path(__file__).resolve().parent / "scale_curves.json.gz"
SEARCHED = {
    "method.rho": ("uniform", 0.8, 2.0),
    "method.lam": ("loguniform", 0.01, 0.3),
}  # what curves differ by
OBJECTIVE, SECONDS = "val/accuracy", "time/epoch"
DERIVED = "objective"  # the search's own metric, which the driver logs anew
DIGITS = 4  # significant


@dataclass(frozen=True)
class Curve:
    """One run. seconds: of each epoch; metrics: of each epoch, by name."""

    settings: Mapping[str, float]
    seconds: Sequence[float]
    metrics: Sequence[Mapping[str, float]]


class Curves:
    """A surrogate of training: a trial with any settings replays the run whose settings are
    nearest.
    """

    def __init__(self, runs: Sequence[Curve]) -> None:
        self._groups: dict[tuple[float, ...], list[Curve]] = {}
        for run in runs:
            self._groups.setdefault(_place(run.settings), []).append(run)
        self.epochs = min(len(run.metrics) for run in runs)
        self.runs = len(runs)
        self.names = tuple(runs[0].metrics[0])

    def of(self, number: int, settings: Mapping[str, Any]) -> Curve:
        """The curve of trial `number`, which chooses among runs that differ by their seed alone."""
        here = _place(settings)
        group = self._groups[min(self._groups, key=lambda there: math.dist(here, there))]
        return group[number % len(group)]


def _place(settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Settings as coordinates from 0 to 1 over their range."""
    out = []
    for key, (kind, low, high) in SEARCHED.items():
        scale = math.log if kind == "loguniform" else float
        out.append((scale(settings[key]) - scale(low)) / (scale(high) - scale(low)))
    return tuple(out)


def load(path: Path = SHIPPED, keep: int | None = None) -> Curves:
    """Curves that `record` wrote, with all of their metrics or as many as `keep` says, the
    objective among them.
    """
    found = json.loads(gzip.decompress(path.read_bytes()))
    places = sorted(enumerate(found["metrics"]), key=lambda place: place[1] != OBJECTIVE)[:keep]
    return Curves(
        [
            Curve(
                run["settings"],
                run["seconds"],
                [{name: row[i] for i, name in places} for row in run["values"]],
            )
            for run in found["runs"]
        ]
    )


def record(uri: str, wanted: str, path: Path) -> int:
    """Write the curves of the runs in the MLflow store `uri` that the filter `wanted` finds; how
    many there are.

    Only metrics that all of them have, to four significant digits, as many epochs as the shortest
    has.
    """
    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = [_run(client, run) for run in client.search_runs(experiments, wanted, max_results=1000)]
    runs = [run for run in runs if run[1]]
    names = sorted(set.intersection(*(set(curves) for _, curves in runs)) - {DERIVED})
    epochs = min(len(curves[OBJECTIVE]) for _, curves in runs)
    rows = []
    for settings, curves in runs:
        seconds = [_short(curves[SECONDS][i]) for i in range(epochs)]
        rows.append(
            {
                "settings": settings,
                "seconds": seconds,
                "values": [[_short(curves[n][i]) for n in names] for i in range(epochs)],
            }
        )
    text = json.dumps({"metrics": names, "runs": rows}, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(rows)


def _run(client: MlflowClient, run: Any) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Settings and the metrics that it has of every epoch; none of a run that has not ended."""
    settings = {key: float(run.data.params[key]) for key in SEARCHED}
    if run.info.status != "FINISHED":
        return settings, {}
    found = {
        name: [
            m.value
            for m in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
        ]
        for name in run.data.metrics
    }
    return settings, {
        name: values for name, values in found.items() if len(values) == len(found[OBJECTIVE])
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
