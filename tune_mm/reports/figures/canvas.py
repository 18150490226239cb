"""The look of figures and what every caption says: data set, real or synthetic, how many seeds, and
what is missing.

matplotlib's objects are used without pyplot, so that no window system and no global state is
needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from tune_mm.errors import UserError
from tune_mm.reports.runs.select import Choice, Selection
from tune_mm.reports.spec.spec import Report
from tune_mm.reports.spec.wording import PAPERS, seed_count

# Okabe and Ito's colours, which people with any colour vision tell apart; black is the multimodal
# model's.
BLACK, GREY = "#000000", "#555555"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
Dash = Literal["-", "--", ":", "-."]
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
# inches: one column of a two-column page, and both
COLUMN = 3.35
PAGE = 6.9
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "tune_mm",  # the same runs give the same file
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Figure:
    """A figure, its caption in plain text, and the commands that make the runs it lacks (empty:
    none lacking).
    """

    name: str
    figure: Canvas
    caption: str
    missing: tuple[str, ...]


def canvas(rows: int, columns: int) -> tuple[Canvas, list[Any]]:
    """An empty figure and its axes, row by row. Draw under `styled`."""
    width = COLUMN if columns == 1 else PAGE
    figure = Canvas(figsize=(width, 2.3 * rows + 0.4), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def styled() -> Any:
    """A context in which figures are drawn and saved with STYLE; the process's own settings come
    back after it.
    """
    return mpl.rc_context(STYLE)


def save(figure: Figure, folder: Path) -> list[Path]:
    """Write <folder>/<name>.png (200 dpi) and .svg; returns both. Raises UserError when the folder
    takes no files.
    """
    paths = []
    for kind in ("png", "svg"):
        paths.append(folder / f"{figure.name}.{kind}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with styled():
            figure.figure.savefig(paths[0], dpi=200)
            figure.figure.savefig(paths[1], metadata={"Date": None})
    except OSError as error:
        raise UserError(f"--out: cannot write to {folder}: {error.strerror or error}") from None
    return paths


def data_of(report: Report, choice: Choice) -> str:
    """The data set: --data, or the report's own."""
    return choice.data or report.data


def key(label: str, colour: str = GREY, style: Dash = "-") -> Line2D:
    """An entry of a legend: a line of a colour and a dash."""
    return Line2D([], [], color=colour, label=label, linestyle=style)


def empty(axes: Any, text: str) -> None:
    """Say in an axes why nothing is drawn in it."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, wrap=True
    )


def missing(report: Report, choice: Choice, absent: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The commands that make what is absent, and the sentence that says so; both empty when nothing
    is absent.
    """
    if not absent:
        return (), ""
    commands = tuple(line.replace("{data}", data_of(report, choice)) for line in report.fill)
    what = ", ".join(dict.fromkeys(absent))
    return commands, f"Missing: {what}; to make the runs: {'; '.join(commands)}."


def caption(
    report: Report,
    choice: Choice,
    chosen: Mapping[str, Selection],
    counts: Iterable[int],
    said: Iterable[str],
) -> str:
    """Title, source, data and n, then the sentences `said`, the report's note and the selections'
    notes.

    chosen: the runs drawn, by label; counts: runs behind each mean that is drawn.
    """
    used = [s for s in chosen.values() if s.records]
    kinds = sorted({s.kind for s in used})
    about = f"{data_of(report, choice)} ({' and '.join(kinds) or 'no runs'})"
    numbers = list(counts)
    many = f", {seed_count(numbers)}" if numbers else ""
    if numbers and max(numbers) > 1:
        spread = "; mean and standard deviation over seeds"
    else:
        spread = ""
    if len(kinds) > 1:
        mixed = ["Real and synthetic data are mixed: not comparable."]
    else:
        mixed = []
    notes = [note for selection in chosen.values() for note in selection.notes]
    sentences = [
        f"{report.title}. {PAPERS[report.paper]}, {report.source}. Data: {about}{many}{spread}.",
        *mixed,
        *said,
        report.note,
        *notes,
    ]
    whole = []
    for s in dict.fromkeys(sentences):
        if s.strip():
            whole.append(s.strip().rstrip(".") + ".")
    return " ".join(whole)
