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
from rich.text import Text

from tune_mm.data import base as data
from tune_mm.data.base import Source
from tune_mm.errors import UserError
from tune_mm.filesystem import write_json
from tune_mm.track.tags import Stage
from tune_mm.tune import preview, stages
from tune_mm.tune.execute.callback import StopSwitch
from tune_mm.tune.execute.factory import Build, train
from tune_mm.tune.execute.resources import Resources, prepared
from tune_mm.tune.output import finals, summary, tables
from tune_mm.tune.output.display import Board, span
from tune_mm.tune.output.ranking import ranked, values_of
from tune_mm.tune.plan import plan as plans
from tune_mm.tune.plan.plan import Options, Plan
from tune_mm.tune.plan.search_file import RECORD
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Busy, Ledger, Lock, last_end
from tune_mm.tune.space.domains import Values
from tune_mm.tune.stages import SearchContext
from tune_mm.tune.tracking import Tracker

FAILED = 1
INTERRUPTED = 130
SUMMARY = "summary.json"


def run(
    options: Options, console: Console, *, dry: bool = False, build: Build | None = None
) -> int:
    """Search as `options` say. build: what a trial runs instead of core's Run (benchmarks, tests).

    Returns 0; 1 when trials failed; 130 when it was interrupted. Raises UserError before anything
    has started.
    """
    plan = plans.resolve(options)
    options = plan.options  # of a resumed search, with what it began with
    needed: Source | None = None  # the data that every node must have
    if build is None:
        needed = data.resolve(
            plan.space.base.data, options.data_root, require_real=options.require_real
        )
        about = preview.fits(plan, needed)
        source = needed
        if options.data_root is None:
            root = None
        else:
            root = str(options.data_root)
        build = partial(train, source=source, root=root)
    else:
        about = {}
        source = Source(plan.folder, "synthetic")
    for line in (source.message, *about.get("notes", ())):
        if line:
            console.print(Text(line, style="yellow"))
    if dry:
        preview.show_plan(console, plan, source)
        return 0
    try:
        lock = Lock(plan.folder / "lock")
    except Busy as error:
        raise UserError(f"{error}; wait for it, or give this one another --name") from None
    with contextlib.closing(lock):
        plans.still_free(plan)
        try:
            with prepared(plan, needed, console) as resources:
                return _search(plan, source, about, console, build, resources)
        except KeyboardInterrupt:
            # Before the stages, after them, or a second signal that did not wait for them.
            if not (plan.folder / RECORD).exists():
                raise
            console.print(Text(f"interrupted. resume with: {_again(plan)}"))
            return INTERRUPTED


def _search(
    plan: Plan,
    source: Source,
    about: Mapping[str, Any],
    console: Console,
    build: Build,
    resources: Resources,
) -> int:
    """Run all stages under the search's lock; the exit code."""
    with contextlib.closing(Tracker(plan, source.kind, about)) as tracker:
        journal = plan.folder / "optuna.journal"
        left_open = journal.exists() and not plan.record.get("closed")
        plan.save(closed=False)
        console.print(Text(_opening(plan, resources.slots, source)))
        stop = StopSwitch()
        storage = open_storage(journal)
        context = SearchContext(
            plan=plan,
            storage=storage,
            tracking=tracker,
            board=Board(console, plan.space.spec.objective, plan.space.mode, plan.epochs),
            stop=stop,
            resources=resources,
            build=build,
            last_end=last_end(storage) if left_open else None,
        )
        start = time.monotonic()
        with _signals(stop), context.board:
            ledgers, found = _stages(context)
        seconds = time.monotonic() - start
        code = _close(context, tracker, ledgers, found, source, seconds)
        tracker.close()
        # On a full disk it stays open: the next driver looks at tracking once more, that is all.
        with contextlib.suppress(UserError):
            plan.save(closed=True)
        return code


def _stages(context: SearchContext) -> tuple[dict[str, Ledger], finals.Finals | None]:
    """Search, baseline, finals: their ledgers, and what the finals say.

    A time budget ends a tuning stage early; a signal or hopeless trials end everything.
    """
    plan = context.plan
    ledgers: dict[str, Ledger] = {}
    if not plan.space.exhaustive:
        _tune(context, ledgers)
        if context.stop.reason:
            return ledgers, None
    top = plan.space.spec.finals.top
    if top == 0:
        return ledgers, None
    if top == "all":
        chosen = stages.every_point(plan)
    else:
        chosen = _chosen(ledgers, top)
    ledgers["final"] = stages.run(context, stages.finals(plan, chosen, _final_trials(context)))
    if context.stop.reason:
        return ledgers, None
    return ledgers, finals.finals(plan, ledgers["final"], chosen)


def _tune(context: SearchContext, ledgers: dict[str, Ledger]) -> None:
    """The search and its baseline, within the time budget."""
    plan = context.plan
    stop = context.stop
    budget = plan.options.time_budget
    tuned: list[Stage] = ["search"]
    if plan.baseline is not None:
        tuned.append("baseline")
    for stage in tuned:
        stop.deadline = stages.deadline(plan, stage, budget)
        began = time.monotonic()
        ledgers[stage] = stages.run(context, stages.tuning(plan, stage))
        if budget is not None:
            budget = max(0.0, budget - (time.monotonic() - began))
        if stop.reason == "time budget":
            trials = context.board.done
            context.board.say(f"{stage}: the time budget is spent after {trials} trials")
            stop.reason = ""
        if stop.reason:
            return
    stop.deadline = None


def _chosen(ledgers: Mapping[str, Ledger], top: int) -> dict[str, Values]:
    """The settings that go into the finals, by source."""
    found: dict[str, Values] = {}
    for trial in ranked(ledgers["search"])[:top]:
        found[f"search/{trial.number}"] = values_of(trial)
    if "baseline" in ledgers:
        for trial in ranked(ledgers["baseline"])[:1]:
            found[f"baseline/{trial.number}"] = values_of(trial)
    return found


def _final_trials(context: SearchContext) -> list[FrozenTrial]:
    """Final runs that the study has already (after a resume or an extension)."""
    plan = context.plan
    base = plan.config(plan.space, plan.final_epochs)
    empty = stages.StagePlan("final", plan.space, base, target=0, points=())
    return stages.ledger_of(context, empty).trials()


def _close(
    context: SearchContext,
    tracker: Tracker,
    ledgers: Mapping[str, Ledger],
    found: finals.Finals | None,
    source: Source,
    seconds: float,
) -> int:
    """Summary, tables, and what to do next; the exit code."""
    plan = context.plan
    console = context.board.console
    stopped = context.stop.reason
    failed, diverged = summary.failures(ledgers)
    unfinished = any(ledger.unfinished() for ledger in ledgers.values())
    status = stopped or _status(unfinished, bool(failed))
    uri = tracker.store.uri
    facts = summary.summary(plan, ledgers, found, source.kind, status, seconds, uri)
    text = json.dumps(facts, indent=1)
    unwritten = write_summary(plan.folder / SUMMARY, facts)
    numbers = summary.flat(found, ledgers)
    if stopped:
        tracker.summary(text, numbers, "stopped", stopped)
    else:
        tracker.summary(text, numbers, "completed")
    tables.show(console, plan, ledgers, found)
    for line in failed:
        console.print(Text(f"failed: {line}", style="red"))
    for line in diverged:
        console.print(Text(f"diverged: {line}", style="yellow"))
    if source.kind == "synthetic":
        warning = "the data are synthetic: the numbers say nothing about the real data set"
        console.print(Text(warning, style="yellow"))
    say_summary(console, plan.folder / SUMMARY, unwritten, seconds)
    if not plan.options.suite:  # which says for all its searches what is next
        console.print(Text(compare(uri, plan.space.name)))
        if stopped or unfinished:
            why = f"stopped: {stopped}. " if stopped else ""
            console.print(Text(f"{why}resume with: {_again(plan)}"))
    if stopped in ("interrupted", "terminated"):
        return INTERRUPTED
    if failed or stopped or unwritten:
        return FAILED
    return 0


def _status(unfinished: bool, failed: bool) -> str:
    if unfinished:
        return "time budget"
    if failed:
        return "completed, trials failed"
    return "completed"


def compare(uri: str, experiment: str) -> str:
    """How to look at an experiment."""
    return f"compare: mlflow ui --backend-store-uri {shlex.quote(uri)}   (experiment {experiment})"


def write_summary(path: Path, facts: Mapping[str, Any]) -> str:
    """Write summary.json; why it could not be, if so: a full disk at the end costs no results."""
    try:
        write_json(path, facts)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def say_summary(console: Console, path: Path, unwritten: str, seconds: float) -> None:
    """Where the summary is, or why it is nowhere."""
    where = _short(path)
    if unwritten:
        where = f"not written ({unwritten}); --resume writes it"
    console.print(Text(f"summary: {where}   time: {span(seconds)}"))


def _again(plan: Plan) -> str:
    return f"python -m tune_mm.search --name {plan.name} --resume"


def _short(path: Path) -> str:
    if path.is_relative_to(Path.cwd()):
        return os.path.relpath(path)
    return str(path)


@contextlib.contextmanager
def _signals(stop: StopSwitch) -> Iterator[None]:
    """Ctrl-C, a polite kill or a closed terminal stops the stage, a second one at once.

    Either can be resumed.
    """

    def handle(number: int, frame: Any) -> None:
        if stop.reason:
            raise KeyboardInterrupt
        stop.now("interrupted" if number == signal.SIGINT else "terminated")

    before: dict[int, Any] = {}
    try:
        for received in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[received] = signal.signal(received, handle)
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
    verb = "search"
    if plan.extended:
        verb = f"extended by {plan.extended}"
    elif plan.resumed:
        verb = "resumed"
    place = f"{source.kind} data in {_short(source.root)}"
    if plan.space.exhaustive:
        runs = f"{len(stages.every_point(plan))} points x {len(plan.final_seeds)} seeds"
        return f"{verb} {plan.name}: {runs}, {slots} at a time, {plan.final_epochs} epochs, {place}"
    trials = f"{plan.trials} trials"
    if plan.baseline is not None:
        trials += f" + {plan.baseline_trials} of the baseline {plan.baseline.name}"
    return f"{verb} {plan.name}: {trials}, {slots} at a time, {plan.epochs} epochs, {place}"
