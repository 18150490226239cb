"""Tables of the papers from the runs of a store: our means over seeds beside the published values.

    table = build(report, reader.records(), choice)
    print(render_markdown(table))

What a table cannot show it says: which cells are missing and the command that fills them, which
data its numbers are of, and from how many seeds. Nothing is written into a cell that no run has
measured and no paper has stated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tune_mm.reports.runs.select import KINDS, Choice, Selection, by_seed, lacking, matches, select
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.runs.together import together
from tune_mm.reports.spec.spec import TableReport, TableRow, Where
from tune_mm.reports.spec.wording import PAPERS, file_name, seed_count
from tune_mm.reports.tables import layout
from tune_mm.reports.tables.cells import Table, TableCell, TableLine
from tune_mm.reports.tables.layout import Head
from tune_mm.reports.tables.render import render_csv, render_latex, render_markdown
from tune_mm.stats import FEWEST, Comparison, Spread, compare, smallest_p, spread

__all__ = [
    "Table",
    "TableCell",
    "TableLine",
    "build",
    "render_csv",
    "render_latex",
    "render_markdown",
]

Place = tuple[int, int]  # numbers of a row and a column
Values = Mapping[int, float]  # by seed, in the unit that is shown
SEVERAL = 3  # rows from which on a remark does not name them
NONE = Selection([], "", "", (), ())


@dataclass(frozen=True)
class _Found:
    """What the runs say. kinds: real or synthetic, by data set; notes: what a reader should know."""

    selections: Mapping[Place, Selection]
    values: Mapping[Place, Values]
    kinds: Mapping[str, str]
    notes: tuple[str, ...]


def build(
    report: TableReport, records: Sequence[StoredRun], choice: Choice, name: str = ""
) -> Table:
    """The table of a report. name: the file's (else made of the paper and the place in it).

    Cells on one data set are of runs on real data, or all of synthetic stand-ins, and of one search
    as far as it has them. Best and second, and comparisons with the reference row, are within a
    column.
    """
    heads = layout.heads(report, records, choice)
    rows = layout.rows(report, records, choice)
    found = _collect(report, rows, heads, records, choice)
    reference = next((i for i, row in enumerate(rows) if row.label == report.reference), None)
    columns = []
    for j, head in enumerate(heads):
        columns.append(_column(report, rows, j, head, found, reference))
    lines = tuple(
        TableLine(row.label, tuple(column[i] for column in columns)) for i, row in enumerate(rows)
    )
    absent = [
        line for j, _ in enumerate(heads) for i, _ in enumerate(rows) for line in columns[j][i].fill
    ]
    used = []
    for selection in found.selections.values():
        for r in selection.records:
            used.append(r)
    return Table(
        name=file_name(report, name),
        paper=report.paper,
        source=report.source,
        title=report.title,
        caption=_caption(report, heads, lines, found),
        columns=tuple(heads),
        rows=lines,
        reference=report.reference if reference is not None else None,
        missing=tuple(dict.fromkeys(absent)),
        parents=tuple(sorted({r.parent for r in used if r.parent is not None})),
    )


# ---- runs


def _collect(
    report: TableReport,
    rows: Sequence[TableRow],
    heads: Sequence[Head],
    records: Sequence[StoredRun],
    choice: Choice,
) -> _Found:
    places = [
        (i, j)
        for i, row in enumerate(rows)
        for j, head in enumerate(heads)
        if layout.applies(row, head)
    ]
    selections: dict[Place, Selection] = {}
    kinds: dict[str, str] = {}
    notes: list[str] = []
    remarks: dict[str, list[str]] = {}  # with the rows that they are about
    for data in dict.fromkeys(head.data for head in heads):
        here = [(i, j) for i, j in places if heads[j].data == data]
        # Columns that differ in the metric alone are of the same runs: they are chosen once.
        wheres = {}
        for place in here:
            wheres[place] = layout.where(rows[place[0]], heads[place[1]])
        chosen, kinds[data], said = _on(report, wheres, records, replace(choice, data=data))
        selections |= chosen
        notes += said
    values = {}
    for (i, j), selection in selections.items():
        scale = heads[j].scale
        metric = heads[j].metric
        values[i, j] = {seed: scale * v for seed, v in by_seed(selection.records, metric).items()}
        lost = lacking(selection.records, metric)
        for remark in (*selection.notes, *([lost] if lost else [])):
            remarks.setdefault(remark, []).append(rows[i].label)
    for remark, labels in remarks.items():
        about = list(dict.fromkeys(labels))
        notes.append(remark if len(about) > SEVERAL else f"{', '.join(about)}: {remark}")
    return _Found(selections, values, kinds, tuple(notes))


def _on(
    report: TableReport, wheres: Mapping[Place, Where], records: Sequence[StoredRun], choice: Choice
) -> tuple[dict[Place, Selection], str, list[str]]:
    """The runs on one data set, real ones if there are any; which they are ("" without any), and
    notes.
    """
    distinct = {}
    for where in wheres.values():
        distinct[_key(where)] = where
    found: dict[str, Selection] = {}
    note = kind = ""
    for kind in KINDS:
        pool = [r for r in records if r.tags.get("data_kind", "") == kind]
        shared, note = together(pool, report, distinct, choice)
        found = {}
        for key, w in distinct.items():
            found[key] = shared.get(key) or select(pool, report, w, choice)
        if any(s.records for s in found.values()):
            break
    else:
        # What did not come to its end is worth a note, wherever it ran.
        found = {key: select(list(records), report, w, choice) for key, w in distinct.items()}
        kind = ""
    chosen = {place: found[_key(w)] for place, w in wheres.items()}
    notes = [note] if note else []
    left = []
    for r in records:
        if kind and r.tags.get("data_kind", "") != kind and _wanted(r, report, wheres, choice):
            left.append(r)
    if left:
        notes.append(f"{len(left)} such runs are not on {kind} data: left out")
    used = sorted({s for selection in found.values() for s in selection.searches})
    if len(used) > 1:
        notes.append(f"runs on {choice.data} are of several searches: {', '.join(used)}")
    return chosen, kind, notes


def _wanted(
    record: StoredRun, report: TableReport, wheres: Mapping[Place, Where], choice: Choice
) -> bool:
    """Whether a cell would take the run, whatever kind its data are of."""
    ended = record.status == "completed" and record.stage in ("final", "train")
    on = record.tags.get("dataset") == choice.data and choice.admits(record)
    return (
        ended
        and on
        and any(matches(record, {**report.where, **where}) for where in wheres.values())
    )


def _key(where: Where) -> str:
    """The same text for the same settings."""
    return repr(sorted(where.items()))


# ---- cells


def _column(
    report: TableReport,
    rows: Sequence[TableRow],
    j: int,
    head: Head,
    found: _Found,
    reference: int | None,
) -> list[TableCell]:
    """The cells of a column, with best and second and the comparison with the reference row."""
    if reference is not None:
        base = found.values.get((reference, j), {})
    else:
        base = {}
    spreads = {i: spread(list(found.values.get((i, j), {}).values())) for i, _ in enumerate(rows)}
    best, second = _ranked(spreads, head)
    cells = []
    for i, row in enumerate(rows):
        if not layout.applies(row, head):
            cells.append(TableCell(applies=False))
            continue
        ours = spreads[i]
        why, fill = (
            _absent(report, row, head, found.selections.get((i, j), NONE))
            if ours is None
            else ("", ())
        )
        cells.append(
            TableCell(
                ours=ours,
                published=row.published.get(head.name),
                best=i in best,
                second=i in second,
                comparison=compare(found.values[i, j], base) if ours and i != reference else None,
                why=why,
                fill=fill,
            )
        )
    return cells


def _ranked(spreads: Mapping[int, Spread | None], head: Head) -> tuple[set[int], set[int]]:
    """Rows with the best and the second mean, as shown: equal numbers share a place. None where
    there is one only.
    """
    shown = {}
    for i, s in spreads.items():
        if s is not None:
            shown[i] = round(s.mean, head.digits)
    if head.best == "none" or len(shown) < 2:
        return set(), set()
    order = sorted(set(shown.values()), reverse=head.best == "max")
    places = []
    for at in order[:2]:
        places.append({i for i, value in shown.items() if value == at})
    # Two that share the first place leave no second.
    return places[0], places[1] if len(places) > 1 and len(places[0]) == 1 else set()


def _absent(
    report: TableReport, row: TableRow, head: Head, selection: Selection
) -> tuple[str, tuple[str, ...]]:
    """Why a cell has no value of ours, and the commands that give it one."""
    wanted = {**report.where, **layout.where(row, head)}
    if selection.records:
        return lacking(selection.records, head.metric), ()
    unbuilt = layout.unbuilt(wanted, head.data)
    if unbuilt:
        return unbuilt, ()
    return "no completed runs", layout.commands(report, row, head, wanted)


# ---- caption


def _caption(
    report: TableReport, heads: Sequence[Head], lines: Sequence[TableLine], found: _Found
) -> str:
    cells = [cell for line in lines for cell in line.cells]
    counts = []
    for cell in cells:
        if cell.ours is not None:
            counts.append(cell.ours.n)
    about = ", ".join(f"{data} ({kind or 'no runs'})" for data, kind in found.kinds.items())
    if counts:
        many = f", {seed_count(counts)}; mean ± standard deviation over seeds"
    else:
        many = ""
    sentences = [f"{report.title}. {PAPERS[report.paper]}, {report.source}. Data: {about}{many}"]
    if any(cell.published is not None for cell in cells):
        elsewhere = sorted({h.paper_data for h in heads if h.data != h.paper_data})
        sentences.append(
            "In brackets: the paper's values"
            + (f", on {', '.join(elsewhere)}" if elsewhere else "")
        )
    if any(cell.best for cell in cells):
        sentences.append("Bold: best; underlined: second")
    sentences += _tested(report, [cell.comparison for cell in cells if cell.comparison is not None])
    absent = []
    for line in lines:
        for c in line.cells:
            if c.applies and c.ours is None:
                absent.append(c)
    sentences += (
        [f"Missing: {len(absent)} of {sum(c.applies for c in cells)} cells"] if absent else []
    )
    sentences += [report.note, *found.notes]
    return " ".join(_sentence(s) for s in dict.fromkeys(sentences) if s)


def _tested(report: TableReport, comparisons: Iterable[Comparison]) -> list[str]:
    """What the comparisons are, and what they cannot show."""
    counts = sorted({c.n for c in comparisons})
    if not counts:
        return []
    enough = [n for n in counts if n >= FEWEST]
    said = [f"Differences are to {report.reference}, paired by seed"]
    if enough:
        said[0] += ", with the 95 % t interval and the p of Wilcoxon's signed-rank test"
    if enough and smallest_p(enough[-1]) >= 0.05:
        said.append(
            f"With {enough[-1]} seeds p cannot be below {smallest_p(enough[-1]):g}: 6 are needed for p < 0.05"
        )
    if len(enough) < len(counts):
        said.append(f"Fewer than {FEWEST} seeds in common are too few for any claim")
    return said


def _sentence(text: str) -> str:
    whole = text.strip().rstrip(".")
    return f"{whole[0].upper()}{whole[1:]}."
