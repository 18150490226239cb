"""Tables, figures and pages of the papers from the runs of a tracking store; nothing else is read,
nothing is trained.

python -m tune_mm.report list                               which reports there are, and the runs they have
python -m tune_mm.report dgl_table3 --data avdigits         a table: Markdown, CSV, LaTeX; a figure: PNG, SVG
python -m tune_mm.report table3 cggm_fig5a --out reports    several; table3: the end of a name will do
python -m tune_mm.report my_table.yaml                      a report of one's own
python -m tune_mm.report search ablation_alpha-1            a search as one HTML page
python -m tune_mm.report paper dgl                          a paper's tables and figures as one HTML page
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_mm.cli import Parser, run_cli
from tune_mm.errors import UserError, nearest

if TYPE_CHECKING:  # mlflow and matplotlib take seconds to import, and --help does without
    from tune_mm.reports.figures.figures import Figure
    from tune_mm.reports.runs.select import Choice
    from tune_mm.reports.runs.store import Reader
    from tune_mm.reports.runs.stored_run import StoredRun
    from tune_mm.reports.spec.spec import Report
    from tune_mm.reports.tables.tables import Table

EPILOG = """Files go to --out and, as artifacts below reports/, to the runs of the searches that were used. A table or a
figure with cells or lines missing is no mistake: it says what is missing, and the command that makes it.
exit codes: 0 done; 2 a mistake in what was asked for, or a store that cannot be read"""
ATTACHED = "reports"  # the folder of artifacts


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        example = "2026-11-21 or 2026-11-21T14:30"
        raise argparse.ArgumentTypeError(
            f"must be a date or a time such as {example}, got '{text}'"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="tune_mm.report", description=__doc__, epilog=EPILOG)
    p.add_argument(
        "what",
        nargs="*",
        metavar="NAME",
        help="reports, or: list | search NAME | paper dgl | paper cggm",
    )
    p.add_argument("--all", action="store_true", help="every report of configs/paper")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="for the files (default: reports)",
    )
    p.add_argument(
        "--data", metavar="NAME", help="of runs on this data set, not on the report's own"
    )
    p.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="of runs that began then or later: 2026-11-21T14:30",
    )
    p.add_argument("--run", metavar="NAME", help="of this search (or run of tune_mm.train) alone")
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (else MLFLOW_TRACKING_URI, else mlruns/mlflow.db)",
    )
    p.add_argument(
        "--no-attach", action="store_true", help="leave the store as it is: files go to --out only"
    )
    return p


def say(text: str) -> None:
    """Print. A reader that has seen enough (`| head`) does not keep the files from being written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Job:
    """What was asked for, and the store."""

    given: argparse.Namespace
    reader: Reader
    records: list[StoredRun]

    @property
    def choice(self) -> Choice:
        """What the reports are narrowed down to."""
        from tune_mm.reports.runs.select import Choice

        return Choice(data=self.given.data, since=self.given.since, run=self.given.run)

    def make(self, report: Report, name: str) -> tuple[Table | Figure, tuple[str, ...]]:
        """A table or a figure, and the runs of the searches that it is made of."""
        from tune_mm.reports import catalogue
        from tune_mm.reports.figures import figures
        from tune_mm.reports.spec.spec import CurvesReport, SweepReport, TableReport
        from tune_mm.reports.tables import tables

        if isinstance(report, TableReport):
            table = tables.build(report, self.records, self.choice, name)
            return table, table.parents
        draw: Any = figures.scatter
        if isinstance(report, (CurvesReport, SweepReport)):
            if isinstance(report, CurvesReport):
                draw = figures.curves
            else:
                draw = figures.sweep
        figure: Figure = draw(report, self.records, self.reader, self.choice, name)
        return figure, tuple(sorted(catalogue.parents(report, self.records, self.choice)))

    def write(self, name: str, text: str) -> Path:
        """A file in --out. Raises UserError when it cannot be written."""
        path: Path = self.given.out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--out: cannot write to {path.parent}: {error.strerror or error}"
            ) from None
        return path

    def finish(self, files: Sequence[Path], parents: Iterable[str]) -> None:
        """Attach the files to the runs, and say where they are."""
        attached = 0
        for parent in [] if self.given.no_attach else parents:
            try:
                for file in files:
                    self.reader.attach(parent, file, ATTACHED)
                attached += 1
            except (
                UserError
            ) as error:  # somebody else's store may be for reading only; the files are there
                print(f"not attached: {error}", file=sys.stderr)
        if attached:
            searches = f"; attached to {attached} search{'' if attached == 1 else 'es'}"
        else:
            searches = ""
        say(f"written: {', '.join(map(str, files))}{searches}")


def opened(given: argparse.Namespace) -> Job:
    """The job, with the store's runs read. Raises UserError for a store or a choice that does not
    exist.
    """
    from tune_mm.reports.runs.store import Reader

    job = Job(given, reader := Reader.open(given.tracking_uri, Path.cwd()), reader.records())
    job.choice.check(job.records)
    for note in reader.notes:
        print(f"note: {note}", file=sys.stderr)
    return job


def reports(job: Job, found: dict[str, Report]) -> None:
    """Write tables and figures, and print what they say."""
    from tune_mm.reports.figures import figures
    from tune_mm.reports.tables.tables import Table, render_csv, render_latex, render_markdown

    for name, report in found.items():
        made, parents = job.make(report, name)
        if isinstance(made, Table):
            text = render_markdown(made)
            kinds = {"md": text, "csv": render_csv(made), "tex": render_latex(made)}
            files = []
            for kind, content in kinds.items():
                files.append(job.write(f"{name}.{kind}", content))
        else:
            text = f"{made.caption}\n"
            files = figures.save(made, job.given.out)
            files.append(job.write(f"{name}.md", f"![{report.title}]({name}.png)\n\n{text}"))
        say(text)
        job.finish(files, parents)
        say("")


def listing(given: argparse.Namespace) -> None:
    """Print all reports: what they are, the runs they have by data set, and the commands that make
    these.
    """
    from tune_mm.reports import catalogue
    from tune_mm.reports.spec.wording import PAPERS

    found = _load(catalogue.names())
    records: list[StoredRun] = []
    try:
        records = opened(given).records
    except UserError as error:
        if given.tracking_uri or given.data or given.run:
            raise
        say(f"{error}\n")
    width = max(map(len, found), default=0)
    for name, report in found.items():
        counts = catalogue.runs(
            report, [r for r in records if given.since is None or r.started >= _zoned(given)]
        )
        runs = ", ".join(f"{data} {n}" for data, n in counts.most_common()) or "none"
        say(f"{name:{width}}  {PAPERS[report.paper]}, {report.source}: {report.title}")
        say(f"{'':{width}}    runs: {runs}")
        for line in report.fill:
            command = line.replace("{data}", given.data or report.data).replace(
                "{method}", "METHOD"
            )
            say(f"{'':{width}}    made by: {command}")


def _zoned(given: argparse.Namespace) -> datetime:
    since: datetime = given.since
    return since.astimezone()  # a time without a zone is local


def search(given: argparse.Namespace, name: str) -> None:
    """Write the page of a search."""
    from tune_mm.reports.pages.search_page import search_page

    job = opened(given)
    plain = re.sub(r"[^-.\w]", "_", name)
    file = job.write(f"search_{plain}.html", search_page(job.reader, name))
    own = []
    for r in job.records:
        if r.parent is None and name in (r.search, r.tags.get("search")):
            own.append(r)
    job.finish([file], [r.id for r in own[-1:]])


def paper(given: argparse.Namespace, name: str) -> None:
    """Write the page of a paper."""
    from tune_mm.reports import catalogue
    from tune_mm.reports.figures.figures import Figure
    from tune_mm.reports.pages.paper_page import paper_page
    from tune_mm.reports.spec.wording import PAPERS
    from tune_mm.reports.tables.tables import Table

    if name not in PAPERS:
        raise UserError(
            f"paper: no '{name}'{nearest(name, PAPERS)}; available: {', '.join(PAPERS)}"
        )
    found = {}
    for n, r in _load(catalogue.names()).items():
        if r.paper == name:
            found[n] = r
    job = opened(given)
    made = [job.make(report, n) for n, report in found.items()]
    tables = [m for m, _ in made if isinstance(m, Table)]
    figures = [m for m, _ in made if isinstance(m, Figure)]
    file = job.write(f"paper_{name}.html", paper_page(name, tables, figures, job.reader.shown))
    job.finish([file], sorted({p for _, parents in made for p in parents}))


def _load(names: Iterable[str]) -> dict[str, Report]:
    """Reports by name. Raises ConfigError."""
    from tune_mm.reports import catalogue

    paths = dict(map(catalogue.resolve, names))
    return {name: catalogue.load(path) for name, path in paths.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    given = parser().parse_intermixed_args(arguments)
    word, *rest = given.what or [""]
    if word in ("list", "search", "paper"):
        wanted = 0 if word == "list" else 1
        if len(rest) != wanted or given.all:
            raise UserError(
                f"tune_mm.report: {word} takes {'one name' if wanted else 'no name'}, got {len(rest)}"
            )
        if word == "list":
            listing(given)
        else:
            (search if word == "search" else paper)(given, rest[0])
        return 0
    if bool(given.what) == given.all:
        raise UserError(
            "tune_mm.report: give names of reports, or --all; `python -m tune_mm.report list` shows them"
        )
    from tune_mm.reports import catalogue

    found = _load(catalogue.names() if given.all else given.what)
    reports(opened(given), found)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
