"""A search from its plan to its summary: `run(options)` returns the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm.data import base as data
from tune_mm.data.base import Source
from tune_mm.errors import UserError
from tune_mm.track.tags import Stage
from tune_mm.tune import preview, stages
from tune_mm.tune.execute.callback import Halt
from tune_mm.tune.execute.factory import Build, train
from tune_mm.tune.execute.resources import Site, prepared
from tune_mm.tune.output import finals, summary, tables
from tune_mm.tune.output.display import Board, span
from tune_mm.tune.output.ranking import ranked, values_of
from tune_mm.tune.plan import plan as P
from tune_mm.tune.plan.plan import Options, Plan
from tune_mm.tune.plan.search_file import RECORD
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Busy, Ledger, Lock
from tune_mm.tune.space import space as S
from tune_mm.tune.space import suite as U
from tune_mm.tune.space.domains import Values
from tune_mm.tune.stages import Context
from tune_mm.tune.tracking import Tracker

FAILED, INTERRUPTED = 1, 130
SUMMARY = "summary.json"


def spaces(console: Console) -> int:
    """--list."""
    table = Table(title="search spaces", title_justify="left")
    for column in ("space", "method", "config", "objective", "searched", "baseline"):
        table.add_column(column)
    for name in S.names():
        raw = S.read(name).data
        baseline = (raw.get("finals") or {}).get("baseline") or "-"
        cells = (name, raw.get("method", "-"), raw.get("config", "-"), raw.get("objective", "-"))
        table.add_row(*map(str, cells), ", ".join(raw.get("domains") or {}), baseline)
    console.print(table)
    _suites(console)
    return 0


def _suites(console: Console) -> None:
    found = U.names()
    if not found:
        return
    table = Table(title="suites: several spaces, searched alike and compared", title_justify="left")
    for column in ("suite", "config", "objective", "trials", "searches"):
        table.add_column(column)
    for name in found:
        suite = U.build(name, S.read(name))
        members = ", ".join(m.name for m in suite.members)
        table.add_row(
            name, suite.spec.config, suite.spec.objective, str(suite.spec.trials), members
        )
    console.print(table)


def run(
    options: Options, console: Console, *, dry: bool = False, build: Build | None = None
) -> int:
    """Search as `options` say. build: what a trial runs instead of core's Run (benchmarks, tests).

    Returns 0; 1 when trials failed; 130 when it was interrupted. Raises UserError before anything
    has started.
    """
    plan = P.resolve(options)
    source, about = Source(plan.folder, "synthetic"), dict[str, Any]()
    if build is None:
        source = data.resolve(
            plan.space.base.data, plan.options.data_root, require_real=plan.options.require_real
        )
        about = preview.fits(plan, source)
    for line in filter(None, (source.message, *about.get("notes", ()))):
        console.print(Text(line, style="yellow"))
    if dry:
        preview.show_plan(console, plan, source)
        return 0
    root = plan.options.data_root
    needed = source if build is None else None
    build = build or partial(train, source=source, root=None if root is None else str(root))
    try:
        lock = Lock(plan.folder / "lock")
    except Busy as error:
        raise UserError(f"{error}; wait for it, or give this one another --name") from None
    with contextlib.closing(lock):
        P.still_free(plan)
        try:
            with prepared(plan, needed, console) as site:
                return _locked(plan, source, about, console, build, site)
        except (
            KeyboardInterrupt
        ):  # before the stages, after them, or a second signal that did not wait for them
            if not (plan.folder / RECORD).exists():
                raise
            console.print(Text(f"interrupted. go on with: {_again(plan)}"))
            return INTERRUPTED


def _locked(
    plan: Plan, source: Source, about: Mapping[str, Any], console: Console, build: Build, site: Site
) -> int:  # fmt: skip
    with contextlib.closing(Tracker(plan, source.kind, about)) as tracker:
        journal = plan.folder / "optuna.journal"
        died = (
            journal.stat().st_mtime if journal.exists() and not plan.record.get("closed") else None
        )
        plan.save(closed=False)
        console.print(Text(_opening(plan, site.slots, source)))
        storage = open_storage(journal)
        halt = Halt()
        board = Board(console, plan.space.spec.objective, plan.space.mode, plan.epochs)
        context = Context(plan, storage, tracker, board, halt, site, build, died=died)
        start = time.monotonic()
        with _signals(halt), board:
            books, found = _stages(context)
        code = _close(context, tracker, books, found, source, time.monotonic() - start)
        tracker.close()
        with contextlib.suppress(
            UserError
        ):  # a full disk: the next driver looks at tracking once more, that is all
            plan.save(closed=True)
        return code


def _stages(context: Context) -> tuple[dict[str, Ledger], finals.Finals | None]:
    """Search, baseline, finals. A time budget ends a tuning stage early; a signal or hopeless
    trials end everything.
    """
    plan, halt, books = context.plan, context.halt, dict[str, Ledger]()
    budget = plan.options.time_budget
    tuning: tuple[Stage, ...] = ("search", "baseline") if plan.baseline else ("search",)
    for stage in () if plan.space.exhaustive else tuning:
        halt.deadline = stages.deadline(plan, stage, budget)
        began = time.monotonic()
        books[stage] = stages.run(context, stages.tuning(plan, stage))
        budget = None if budget is None else max(0.0, budget - (time.monotonic() - began))
        if halt.reason == "time budget":
            context.board.say(
                f"{stage}: the time budget is spent after {context.board.done} trials"
            )
            halt.reason = ""
        if halt.reason:
            return books, None
    halt.deadline = None
    top = plan.space.spec.finals.top
    if top == 0:
        return books, None
    chosen = stages.every_point(plan) if top == "all" else _chosen(books, top)
    final = stages.finals(plan, chosen, _there(context, plan))
    books["final"] = stages.run(context, final)
    return books, None if halt.reason else finals.finals(plan, books["final"], chosen)


def _chosen(books: Mapping[str, Ledger], top: int) -> dict[str, Values]:
    """The settings that go into the finals, by source."""
    found = {f"search/{t.number}": values_of(t) for t in ranked(books["search"])[:top]}
    if "baseline" in books:
        found |= {f"baseline/{t.number}": values_of(t) for t in ranked(books["baseline"])[:1]}
    return found


def _there(context: Context, plan: Plan) -> list[FrozenTrial]:
    """Final runs that the study has already (after a resume or an extension)."""
    empty = stages.StagePlan("final", plan.space, plan.config(plan.space, plan.final_epochs), 0, ())
    return stages.ledger(context, empty).trials()


def _close(
    context: Context, tracker: Tracker, books: Mapping[str, Ledger], found: finals.Finals | None, source: Source,
    seconds: float,
) -> int:  # fmt: skip
    """Summary, tables, and what to do next; the exit code."""
    plan, console, halt = context.plan, context.board.console, context.halt
    failed, diverged = summary.failures(books)
    unfinished = any(book.unfinished() for book in books.values())
    status = halt.reason or (
        "time budget" if unfinished else "completed, trials failed" if failed else "completed"
    )
    uri = tracker.store.uri
    text = json.dumps(
        summary.summary(plan, books, found, source.kind, status, seconds, uri), indent=1
    )
    unwritten = _write(plan.folder / SUMMARY, text + "\n")
    if halt.reason:
        tracker.summary(text, summary.flat(found, books), "stopped", halt.reason)
    else:
        tracker.summary(text, summary.flat(found, books), "completed")
    tables.show(console, plan, books, found)
    for word, lines in (("failed", failed), ("diverged", diverged)):
        for line in lines:
            console.print(Text(f"{word}: {line}", style="red" if word == "failed" else "yellow"))
    if source.kind == "synthetic":
        console.print(
            Text(
                "the data are synthetic: the numbers say nothing about the real data set",
                style="yellow",
            )
        )
    where = (
        f"not written ({unwritten}); --resume writes it"
        if unwritten
        else _short(plan.folder / SUMMARY)
    )
    console.print(Text(f"summary: {where}   time: {span(seconds)}"))
    if not plan.options.suite:  # which says for all its searches what is next
        console.print(Text(compare(uri, plan.space.name)))
        if halt.reason or unfinished:
            why = f"stopped: {halt.reason}. " if halt.reason else ""
            console.print(Text(f"{why}go on with: {_again(plan)}"))
    if halt.reason in ("interrupted", "terminated"):
        return INTERRUPTED
    return FAILED if failed or halt.reason or unwritten else 0


def compare(uri: str, experiment: str) -> str:
    """How to look at an experiment."""
    return f"compare: mlflow ui --backend-store-uri {shlex.quote(uri)}   (experiment {experiment})"


def _write(path: Path, text: str) -> str:
    """Write a file; why it could not be, if so: a full disk at the end costs no results."""
    try:
        path.write_text(text)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _again(plan: Plan) -> str:
    return f"python -m tune_mm.search --name {plan.name} --resume"


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


@contextlib.contextmanager
def _signals(halt: Halt) -> Iterator[None]:
    """Ctrl-C or a polite kill stops the stage; the second stops at once. Either way the search can
    be resumed.
    """

    def stop(number: int, frame: Any) -> None:
        if halt.reason:
            raise KeyboardInterrupt
        halt.now("interrupted" if number == signal.SIGINT else "terminated")

    try:
        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        yield
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _opening(plan: Plan, slots: int, source: Source) -> str:
    verb = (
        f"extended by {plan.extended}" if plan.extended else "resumed" if plan.resumed else "search"
    )
    baseline = (
        f" + {plan.baseline_trials} of the baseline {plan.baseline.name}" if plan.baseline else ""
    )
    place = f"{source.kind} data in {_short(source.root)}"
    if plan.space.exhaustive:
        runs = f"{len(stages.every_point(plan))} points x {len(plan.final_seeds)} seeds"
        return f"{verb} {plan.name}: {runs}, {slots} at a time, {plan.final_epochs} epochs, {place}"
    return f"{verb} {plan.name}: {plan.trials} trials{baseline}, {slots} at a time, {plan.epochs} epochs, {place}"
