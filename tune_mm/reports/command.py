"""What `python -m tune_mm.report` does: files of tables, figures and pages, and where they go."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tune_mm.errors import UserError, nearest
from tune_mm.reports import catalogue
from tune_mm.reports.figures import figures
from tune_mm.reports.figures.figures import Figure
from tune_mm.reports.pages.paper_page import paper_page
from tune_mm.reports.pages.search_page import search_page
from tune_mm.reports.runs.select import Choice
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import CurvesReport, Report, ScatterReport, SweepReport, TableReport
from tune_mm.reports.spec.wording import PAPERS
from tune_mm.reports.tables import tables
from tune_mm.reports.tables.tables import Table, render_csv, render_latex, render_markdown

# The folder of artifacts.
ATTACHED = "reports"


@dataclass(frozen=True)
class Request:
    """The options of the command line. None: not given."""

    # For the files.
    out: Path
    # The data set, in place of the report's own.
    data: str | None
    # Of runs that began then or later.
    since: datetime | None
    # Of this search, or run of tune_mm.train, alone.
    run: str | None
    # The MLflow store.
    tracking_uri: str | None
    # Whether files are attached to the runs that they are made of.
    attach: bool

    @property
    def choice(self) -> Choice:
        """What the reports are narrowed down to."""
        return Choice(data=self.data, since=self.since, run=self.run)


@dataclass(frozen=True)
class Job:
    """What was asked for, and the store."""

    request: Request
    reader: Reader
    records: list[StoredRun]

    def make(self, report: Report, name: str) -> tuple[Table | Figure, tuple[str, ...]]:
        """A table or a figure, and the runs of the searches that it is made of."""
        choice = self.request.choice
        if isinstance(report, TableReport):
            table = tables.build(report, self.records, choice, name)
            return table, table.parents
        if isinstance(report, CurvesReport):
            figure = figures.curves(report, self.records, self.reader, choice, name)
        elif isinstance(report, SweepReport):
            figure = figures.sweep(report, self.records, self.reader, choice, name)
        else:
            assert isinstance(report, ScatterReport)
            figure = figures.scatter(report, self.records, self.reader, choice, name)
        parents = catalogue.parents(report, self.records, choice)
        return figure, tuple(sorted(parents))

    def write(self, name: str, text: str) -> Path:
        """A file in --out. Raises UserError when it cannot be written."""
        path = self.request.out / name
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
        if self.request.attach:
            for parent in parents:
                attached += self._attach(parent, files)
        said = f"written: {', '.join(map(str, files))}"
        if attached:
            searches = "search" if attached == 1 else "searches"
            said += f"; attached to {attached} {searches}"
        say(said)

    def _attach(self, parent: str, files: Sequence[Path]) -> bool:
        """Whether the run took them: somebody else's store may be for reading only."""
        try:
            for file in files:
                self.reader.attach(parent, file, ATTACHED)
        except UserError as error:
            print(f"not attached: {error}", file=sys.stderr)
            return False
        return True


def say(text: str) -> None:
    """Print. A reader that has seen enough (`| head`) does not keep the files from being written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def opened(request: Request) -> Job:
    """The job, with the store's runs read.

    Raises UserError for a store or a choice that does not exist.
    """
    reader = Reader.open(request.tracking_uri, Path.cwd())
    records = reader.records()
    request.choice.check(records)
    for note in reader.notes:
        print(f"note: {note}", file=sys.stderr)
    return Job(request, reader, records)


def load(names: Iterable[str]) -> dict[str, Report]:
    """Reports by name. Raises ConfigError."""
    paths = dict(map(catalogue.resolve, names))
    found = {}
    for name, path in paths.items():
        found[name] = catalogue.load(path)
    return found


def write_reports(request: Request, found: Mapping[str, Report]) -> None:
    """Write tables and figures, and print what they say."""
    job = opened(request)
    for name, report in found.items():
        made, parents = job.make(report, name)
        if isinstance(made, Table):
            text = render_markdown(made)
            files = [
                job.write(f"{name}.md", text),
                job.write(f"{name}.csv", render_csv(made)),
                job.write(f"{name}.tex", render_latex(made)),
            ]
        else:
            text = f"{made.caption}\n"
            files = figures.save(made, request.out)
            files.append(job.write(f"{name}.md", f"![{report.title}]({name}.png)\n\n{text}"))
        say(text)
        job.finish(files, parents)
        say("")


def show_catalogue(request: Request) -> None:
    """Print all reports: what they are, their runs by data set, and the commands that make these."""
    found = load(catalogue.names())
    records = _records_if_any(request)
    if request.since is not None:
        since = request.since.astimezone()  # a time without a zone is local
        records = [record for record in records if record.started >= since]
    width = max(map(len, found), default=0)
    indent = " " * width
    for name, report in found.items():
        counts = catalogue.runs(report, records).most_common()
        runs = ", ".join(f"{data} {count}" for data, count in counts) or "none"
        say(f"{name:{width}}  {PAPERS[report.paper]}, {report.source}: {report.title}")
        say(f"{indent}    runs: {runs}")
        for line in report.fill:
            command = line.replace("{data}", request.data or report.data)
            command = command.replace("{method}", "METHOD")
            say(f"{indent}    made by: {command}")


def _records_if_any(request: Request) -> list[StoredRun]:
    """The store's runs; [] where there is no store and none was named."""
    try:
        return opened(request).records
    except UserError as error:
        if request.tracking_uri or request.data or request.run:
            raise
        say(f"{error}\n")
        return []


def write_search(request: Request, name: str) -> None:
    """Write the page of a search."""
    job = opened(request)
    plain = re.sub(r"[^-.\w]", "_", name)
    file = job.write(f"search_{plain}.html", search_page(job.reader, name))
    parents = []
    for record in job.records:
        named = name in (record.search, record.tags.get("search"))
        if record.parent is None and named:
            parents.append(record.id)
    job.finish([file], parents[-1:])


def write_paper(request: Request, paper: str) -> None:
    """Write the page of a paper."""
    if paper not in PAPERS:
        hint = nearest(paper, PAPERS)
        raise UserError(f"paper: no '{paper}'{hint}; available: {', '.join(PAPERS)}")
    reports = load(catalogue.names())
    job = opened(request)
    made_tables: list[Table] = []
    made_figures: list[Figure] = []
    parents: set[str] = set()
    for name, report in reports.items():
        if report.paper != paper:
            continue
        made, used = job.make(report, name)
        parents.update(used)
        if isinstance(made, Table):
            made_tables.append(made)
        else:
            made_figures.append(made)
    page = paper_page(paper, made_tables, made_figures, job.reader.shown)
    file = job.write(f"paper_{paper}.html", page)
    job.finish([file], sorted(parents))
