"""What tests of tables share: reports, choices, hand-made runs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import yaml

from tests.reports import sample_runs
from tune_mm.reports import catalogue
from tune_mm.reports.runs.select import Choice
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import TableReport
from tune_mm.reports.tables.tables import Table, TableCell

MINE = """
kind: table
title: Mine
paper: dgl
source: Table 9
data: avdigits
fill: ["make {data} {method}"]
reference: Joint
columns:
  - {label: Accuracy, metric: test/accuracy, scale: 100}
rows:
  - {label: Joint, where: {method: joint}, published: {Accuracy: 50.0}}
  - {label: DGL, where: {method: dgl}}
  - {label: CGGM, where: {method: cggm}}
"""


def shipped(name: str) -> TableReport:
    report = catalogue.load(catalogue.resolve(name)[1])
    assert isinstance(report, TableReport)
    return report


def mine(**changes: object) -> TableReport:
    """MINE with some keys replaced."""
    return TableReport.model_validate_json(json.dumps({**yaml.safe_load(MINE), **changes}))


def choice(data: str | None = None, run: str | None = None) -> Choice:
    return Choice(data=data, since=None, run=run)


def cell(table: Table, row: str, column: str) -> TableCell:
    (found,) = [
        c
        for line in table.rows
        for head, c in zip(table.columns, line.cells, strict=True)
        if (line.label, head.title) == (row, column)
    ]
    return found


def made(
    method: str,
    values: Mapping[int, float],
    search: str = "s-1",
    metric: str = "test/accuracy",
    **tags: str,
) -> list[StoredRun]:
    """Completed final runs on avdigits, a seed each; tags that are not given: real data."""
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=int(search.rpartition("-")[2]))
    own = {"dataset": "avdigits", "data_kind": "real", "method": method, "search": search, **tags}
    return [
        StoredRun(
            id=f"{search}/{method}/{seed}",
            name="",
            space="mine",
            search=search,
            parent=f"{search}/parent",
            stage="final",
            status=own.get("status", "completed"),
            started=start + timedelta(minutes=seed),
            tags={**own, "seed": str(seed)},
            params={},
            metrics={metric: value},
        )
        for seed, value in values.items()
    ]


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values, 1))


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean of three values; 4.302653: the tabulated quantile at two
    degrees of freedom.
    """
    half = 4.302653 * statistics.stdev(differences) / math.sqrt(3)
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def percents(number: int, less: float = 0.0) -> list[float]:
    """100 x (test/accuracy - less) by seed, of a cell of sample_runs.TRUNCATION."""
    return [
        100 * (sample_runs.final(sample_runs.TRUNCATION[number], number, s) - less)
        for s in sample_runs.SEEDS
    ]
