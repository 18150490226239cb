"""The reports there are: the files of configs/paper/, read strictly, and the runs that each of them
asks for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_mm.config import Section, file_names, find_file, read_yaml
from tune_mm.config.explain import explain
from tune_mm.errors import ConfigError, nearest
from tune_mm.reports.runs.select import Choice, matches
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.runs.together import together
from tune_mm.reports.spec.spec import (
    MODALITY,
    CurvesReport,
    Report,
    ScatterReport,
    SweepReport,
    TableReport,
    Where,
)

FOLDER = "paper"
KINDS: dict[str, type[Report]] = {
    "table": TableReport,
    "sweep": SweepReport,
    "curves": CurvesReport,
    "scatter": ScatterReport,
}


def names() -> tuple[str, ...]:
    """Names of all reports, sorted: of ./configs/paper and of the package."""
    return tuple(
        n.removeprefix(f"{FOLDER}/") for n in file_names("configs") if n.startswith(f"{FOLDER}/")
    )


def resolve(given: str) -> tuple[str, Path]:
    """Name and file of a report: a name, the end of only one name (table3 of dgl_table3), or the
    path of a YAML file.

    Raises ConfigError, with the nearest name, for an unknown one.
    """
    if given.endswith((".yaml", ".yml")):
        path = find_file("configs", given)
        return path.stem, path
    known = names()
    ends = [name for name in known if name.endswith(f"_{given}")]
    if given not in known and len(ends) != 1:
        if ends:
            hint = f"; it may be {' or '.join(ends)}"
        else:
            hint = nearest(given, known)
        raise ConfigError(f"report: no '{given}'{hint}; `python -m tune_mm.report list` shows all")
    name = given if given in known else ends[0]
    return name, find_file("configs", f"{FOLDER}/{name}")


def load(path: Path) -> Report:
    """The report that a file describes. Raises ConfigError with all that is wrong in it, and where."""
    document = read_yaml(path)
    kind = document.data.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        allowed = ", ".join(KINDS)
        got = "nothing" if kind is None else repr(kind)
        raise ConfigError(
            f"kind: must be one of {allowed}, got {got}{nearest(kind, KINDS)} ({document.where('kind')})"
        )
    try:
        # JSON's rules: lists are tuples, and nothing else is converted.
        return cls.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        keys = dict(_keys(cls, document.data))
        found = list(
            explain(error, document.data, keys, lambda key: (key, f" ({document.where(key)})"))
        )
        # pydantic also calls a list too short when what is in it is wrong.
        inside = set()
        for p in found:
            if "." in p.partition(":")[0]:
                inside.add(p.partition(".")[0])
        raise ConfigError(
            p for p in found if not p.startswith(tuple(f"{k}: must have at least" for k in inside))
        ) from None


def _keys(cls: type[Report], raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and annotations, with those of the sections in lists (`rows.0.label`)."""
    for key, info in cls.model_fields.items():
        yield key, info.annotation
        inner = next(
            (a for a in getattr(info.annotation, "__args__", ()) if isinstance(a, type)), None
        )
        given = raw.get(key)
        if inner is not None and issubclass(inner, Section) and isinstance(given, list):
            for i in range(len(given)):
                for name, field in inner.model_fields.items():
                    yield (f"{key}.{i}.{name}", field.annotation)


def wheres(report: Report) -> Iterator[Where]:
    """What the runs of a report must match: one per cell of a table, per series of a figure, and a
    sweep's baseline.
    """
    if isinstance(report, TableReport):
        for row in report.rows:
            own = {}
            for k, v in row.where.items():
                if v != MODALITY:
                    own[k] = v
            for column in report.columns:
                yield {**report.where, **own, **({} if row.fixed else column.where)}
    elif isinstance(report, (SweepReport, CurvesReport, ScatterReport)):
        for series in report.series:
            yield {**report.where, **series.where}
        if isinstance(report, SweepReport) and report.baseline:
            yield {**report.where, **report.baseline}


def parents(report: Report, records: Sequence[StoredRun], choice: Choice) -> set[str]:
    """Ids of the parent runs of the searches that a figure is drawn from."""
    found: set[str] = set()
    for where in _drawn(report, records):
        selections, _ = together(records, report, where, choice)
        found |= {r.parent for s in selections.values() for r in s.records if r.parent is not None}
    return found


def _drawn(report: Report, records: Sequence[StoredRun]) -> Iterator[dict[str, Where]]:
    """What a figure draws together: all series, but of a sweep the points of one."""
    if isinstance(report, SweepReport):
        for series in report.series:
            where = {**report.where, **series.where}
            values = {r.value(report.x) for r in records if matches(r, where)} - {None}
            yield {str(value): {**where, report.x: value} for value in values}
    elif isinstance(report, (CurvesReport, ScatterReport)):
        yield {series.label: {**report.where, **series.where} for series in report.series}


def runs(report: Report, records: Iterable[StoredRun]) -> Counter[str]:
    """How many completed final and single runs a report could draw on, by data set."""
    wanted = list(wheres(report))
    done = (r for r in records if r.status == "completed" and r.stage in ("final", "train"))
    return Counter(
        r.tags.get("dataset", "") for r in done if any(matches(r, where) for where in wanted)
    )
