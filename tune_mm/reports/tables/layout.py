"""Rows and columns of a table as they are shown: `{modality}` filled in, data sets chosen, each
cell's commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tune_mm import plugins
from tune_mm.config import file_names
from tune_mm.reports.runs.select import Choice
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import ANY, MODALITY, Column, Scalar, TableReport, TableRow, Where

# Settings that name a plug-in, and its kind.
NAMED = {
    "method": "methods",
    "method.name": "methods",
    "fusion": "fusions",
    "model.fusion.name": "fusions",
    "model.encoder.name": "encoders",
}


@dataclass(frozen=True)
class Head:
    """A column as shown."""

    # By which rows refer to it.
    name: str
    # By which rows refer to its group.
    heading: str
    group: str
    label: str
    metric: str
    where: Where
    # Its runs' data set.
    data: str
    # The paper's data set.
    paper_data: str
    scale: float
    digits: int
    best: Literal["max", "min", "none"]
    fill: tuple[str, ...]

    @property
    def title(self) -> str:
        """Group and label in one."""
        return f"{self.group} {self.label}".strip()


def heads(report: TableReport, records: Sequence[StoredRun], choice: Choice) -> list[Head]:
    """The columns. With --data: those on that data set; where there are none, those of the first
    one, on it instead.
    """
    found = []
    for column in _columns(report, choice):
        data = choice.data or _own(report, column)
        if MODALITY in column.metric:
            known = _modalities(report, column, records, data)
        else:
            known = [""]
        found += [_head(report, column, data, m) for m in known]
    return found


def rows(report: TableReport, records: Sequence[StoredRun], choice: Choice) -> list[TableRow]:
    """The rows."""
    columns = _columns(report, choice)
    known = []
    for c in columns:
        for m in _modalities(report, c, records, choice.data or _own(report, c)):
            known.append(m)
    out = []
    for row in report.rows:
        out += [_filled(row, m) for m in dict.fromkeys(known)] if MODALITY in row.label else [row]
    return out


def applies(row: TableRow, head: Head) -> bool:
    """Whether a row has a cell in a column."""
    return not row.only or head.name in row.only or head.label in row.only


def where(row: TableRow, head: Head) -> Where:
    """What the runs of a cell match, on top of the report's."""
    return {**row.where, **({} if row.fixed else head.where)}


def unbuilt(wanted: Where, data: str) -> str:
    """Why no command makes such runs: a method, a fusion, an encoder or a data set that is not
    there ("": it is).
    """
    for key, kind in NAMED.items():
        given = wanted.get(key)
        if isinstance(given, str) and given != ANY and given not in plugins.available(kind):
            return f"{kind.removesuffix('s')} '{given}' is not built yet"
    if data in file_names("configs"):
        return ""
    return f"data set '{data}' has no configuration yet"


def commands(report: TableReport, row: TableRow, head: Head, wanted: Where) -> tuple[str, ...]:
    """The commands that make a cell's runs."""
    method = wanted.get("method", wanted.get("method.name", "joint"))
    lines = row.fill_below.get(head.heading) or row.fill or head.fill or report.fill
    return tuple(
        line.replace("{data}", head.data).replace("{method}", str(method)) for line in lines
    )


def _columns(report: TableReport, choice: Choice) -> list[Column]:
    columns = list(report.columns)
    if choice.data is None:
        return columns
    on = []
    for c in columns:
        if _own(report, c) == choice.data:
            on.append(c)
    return on or [c for c in columns if _own(report, c) == _own(report, columns[0])]


def _own(report: TableReport, column: Column) -> str:
    return column.data or report.data


def _head(report: TableReport, column: Column, data: str, modality: str) -> Head:
    own = _own(report, column)

    def filled(text: str) -> str:
        return text.replace(MODALITY, modality)

    return Head(
        name=filled(column.name),
        heading=column.group,
        group=data if column.group and column.data and data != own else column.group,
        label=filled(column.label),
        metric=filled(column.metric),
        where=column.where,
        data=data,
        paper_data=own,
        scale=column.scale,
        digits=column.digits,
        best=column.best,
        fill=column.fill,
    )


def _filled(row: TableRow, modality: str) -> TableRow:
    def one(value: Scalar) -> Scalar:
        if isinstance(value, str):
            return value.replace(MODALITY, modality)
        return value

    def lines(given: Iterable[str]) -> tuple[str, ...]:
        return tuple(line.replace(MODALITY, modality) for line in given)

    return row.model_copy(
        update={
            "label": row.label.replace(MODALITY, modality),
            "where": {
                k: tuple(map(one, v)) if isinstance(v, tuple) else one(v)
                for k, v in row.where.items()
            },
            "only": lines(row.only),
            "fill": lines(row.fill),
            "fill_below": {group: lines(given) for group, given in row.fill_below.items()},
        }
    )


def _modalities(
    report: TableReport, column: Column, records: Iterable[StoredRun], data: str
) -> list[str]:
    """The declared modalities and, in alphabetical order, others that runs on the data log; on
    other data than declared only what runs log, if there are any.
    """
    declared = list(column.modalities or report.modalities)
    logged = sorted(set(_logged(report, records, data)))
    if data == _own(report, column):
        return declared + [m for m in logged if m not in declared]
    return logged or declared


def _logged(report: TableReport, records: Iterable[StoredRun], data: str) -> Iterator[str]:
    """Modalities by which runs split a table's metrics (test/accuracy/audio) or their validation
    loss.
    """
    heads = {c.metric.removesuffix(f"/{MODALITY}") + "/" for c in report.columns} | {"val/loss/"}
    for record in records:
        if record.tags.get("dataset") == data and record.stage in ("final", "train"):
            for key in record.metrics:
                last = key.rpartition("/")[2]
                if key.removesuffix(last) in heads:
                    yield last
