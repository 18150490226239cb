"""Tables as Markdown, CSV and LaTeX. Whatever comes from a run or a file is escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

from tune_mm.reports.tables.cells import Table, TableCell, TableLine
from tune_mm.reports.tables.layout import Head
from tune_mm.stats import Comparison

MISSING = "missing"
DASH = "–"
Body = dict[str, list[str]]  # cells by the row's label
# What Markdown would read as markup where it stands; names such as a_b and brackets around numbers
# it leaves alone.
_SIGNS = re.compile(r"[\\`*|]|<(?=[a-zA-Z/!?])|](?=[(\[:])|(?<!\w)_|_(?!\w)|^[#>]")
FIELDS = (
    "report",
    "paper",
    "source",
    "row",
    "column",
    "data",
    "metric",
    "scale",
    "status",
    "mean",
    "std",
    "n",
    "published",
    "published_on",
    "best",
    "second",
    "reference",
    "difference",
    "low",
    "high",
    "p",
    "n_paired",
    "why",
    "fill",
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "±": r"$\pm$",
    "−": r"$-$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def number(cell: TableCell, head: Head, several: bool) -> str:
    """Our mean ± standard deviation as plain text, with n when `several`: cells of the table differ
    in it.
    """
    if cell.ours is None:
        if cell.applies:
            return MISSING
        return DASH
    if cell.ours.std is None:
        std = ""
    else:
        std = f" ± {cell.ours.std:.{head.digits}f}"
    return f"{cell.ours.mean:.{head.digits}f}{std}" + (f" (n = {cell.ours.n})" if several else "")


def published(cell: TableCell, head: Head) -> str:
    """The paper's value in brackets; "" without one."""
    if cell.published is None:
        return ""
    return f"[{cell.published:.{head.digits}f}]"


def compared(found: Comparison | None, head: Head) -> str:
    """A difference in words: "+1.20 [0.40, 2.00], p = 0.25"; "" without one."""
    if found is None:
        return ""
    text = f"{found.difference:+.{head.digits}f}"
    if found.low is None or found.high is None or found.p is None:
        return f"{text} (n = {found.n}: too few for a claim)"
    return f"{text} [{found.low:.{head.digits}f}, {found.high:.{head.digits}f}], p = {found.p:.2g}"


# ---- Markdown


def render_markdown(table: Table) -> str:
    """Title, the table, differences to the reference row, caption, and what is missing with its
    commands.
    """
    several = len(table.counts) > 1
    names = [_markdown(head.title) for head in table.columns]
    body = {}
    for row in table.rows:
        body[row.label] = [_cell(c, head, several, _marked) for head, c in _row(table, row)]
    parts = [f"# {_markdown(table.title)}", _grid(names, body)]
    if table.compared:
        parts.append(f"Difference to {_markdown(str(table.reference))}:")
        parts.append(_grid(names, _differences(table, _markdown)))
    parts.append(_markdown(table.caption))
    absent = [
        f"- {_markdown(what)}: {_markdown(why)}" + "".join(f"\n\n      {line}" for line in fill)
        for what, why, fill in table.absent()
    ]
    if absent:
        parts += ["Missing:", "\n".join(absent)]
    return "\n\n".join(parts) + "\n"


def _grid(names: list[str], body: Body) -> str:
    lines = [
        ["", *names],
        ["---", *["---:"] * len(names)],
        *([_markdown(a), *cells] for a, cells in body.items()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _marked(text: str, cell: TableCell) -> str:
    text = _markdown(text)
    if cell.best:
        return f"**{text}**"
    if cell.second:
        return f"<u>{text}</u>"
    return text


def _markdown(text: str) -> str:
    return _SIGNS.sub(r"\\\g<0>", " ".join(text.split()))


# ---- CSV


def render_csv(table: Table) -> str:
    """A line per cell, numbers unrounded. status: measured, missing or none (a cell that does not
    apply).
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for head, cell in zip(table.columns, row.cells, strict=True):
            writer.writerow(_fields(table, row.label, head, cell))
    return out.getvalue()


def _fields(table: Table, label: str, head: Head, cell: TableCell) -> dict[str, object]:
    ours = cell.ours
    found = cell.comparison
    if ours is not None:
        status = "measured"
    elif cell.applies:
        status = "missing"
    else:
        status = "none"
    values: dict[str, object] = {
        "report": table.name,
        "paper": table.paper,
        "source": table.source,
        "row": label,
        "column": head.title,
        "data": head.data,
        "metric": head.metric,
        "scale": head.scale,
        "status": status,
        "published": cell.published,
        "best": int(cell.best),
        "second": int(cell.second),
        "why": cell.why,
        "fill": "; ".join(cell.fill),
    }
    if cell.published is not None:
        values["published_on"] = head.paper_data
    if ours is not None:
        values |= {"mean": ours.mean, "std": ours.std, "n": ours.n}
    if found is not None:
        values |= {
            "reference": table.reference,
            "difference": found.difference,
            "n_paired": found.n,
        }
        values |= {"low": found.low, "high": found.high, "p": found.p}
    return values


# ---- LaTeX


def render_latex(table: Table) -> str:
    """A table environment for booktabs, which its preamble must load; what is missing follows as
    comments.
    """
    several = len(table.counts) > 1
    body = {}
    for row in table.rows:
        body[row.label] = [_cell(c, head, several, _typeset) for head, c in _row(table, row)]
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_latex(table.caption)}}}",
    ]
    lines += [f"\\label{{tab:{re.sub('[^a-zA-Z0-9]+', '-', table.name)}}}"]
    lines += _tabular(table, body)
    if table.compared:
        lines += [
            "",
            "\\medskip",
            f"Difference to {_latex(str(table.reference))}",
            "",
            "\\smallskip",
        ]
        lines += _tabular(table, _differences(table, _latex))
    lines += ["\\end{table}"]
    for what, why, fill in table.absent():
        lines += [
            f"% missing: {' '.join(what.split())}: {' '.join(why.split())}",
            *(f"%   {line}" for line in fill),
        ]
    return "\n".join(lines) + "\n"


def _tabular(table: Table, body: Body) -> list[str]:
    lines = [f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}", "\\toprule"]
    if any(name for name, _ in table.groups):
        spans = []
        rules = []
        at = 2
        for name, width in table.groups:
            spans.append(f"\\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}")
            rules += [f"\\cmidrule(lr){{{at}-{at + width - 1}}}"] if name else []
            at += width
        lines += [f" & {' & '.join(spans)} \\\\", " ".join(rules)]
    lines += [f" & {' & '.join(_latex(head.label) for head in table.columns)} \\\\", "\\midrule"]
    # The braces keep a bracket that opens a row from being read as the option of the line break
    # before it.
    for label, cells in body.items():
        lines.append(f"{{{_latex(label)}}} & {' & '.join(cells)} \\\\")
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _typeset(text: str, cell: TableCell) -> str:
    text = _latex(text)
    if cell.best:
        return f"\\textbf{{{text}}}"
    if cell.second:
        return f"\\underline{{{text}}}"
    return text


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


# ---- both


def _row(table: Table, row: TableLine) -> list[tuple[Head, TableCell]]:
    return list(zip(table.columns, row.cells, strict=True))


def _differences(table: Table, escaped: Callable[[str], str]) -> Body:
    """The differences to the reference row, of the rows that have any."""
    found = {}
    for row in table.compared:
        found[row.label] = [
            escaped(compared(cell.comparison, head)) for head, cell in _row(table, row)
        ]
    return found


def _cell(
    cell: TableCell, head: Head, several: bool, marked: Callable[[str, TableCell], str]
) -> str:
    """Ours, marked, and the paper's."""
    beside = published(cell, head)
    escape = TableCell()
    return " ".join(
        filter(None, [marked(number(cell, head, several), cell), beside and marked(beside, escape)])
    )
