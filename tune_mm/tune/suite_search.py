"""A suite from its plan to its table: one search after another in one Ray."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm.data import base as data
from tune_mm.data.base import Source
from tune_mm.errors import UserError
from tune_mm.tune import preview, search
from tune_mm.tune.execute import ray_session
from tune_mm.tune.execute.factory import Build
from tune_mm.tune.output import suite_table
from tune_mm.tune.output.display import span
from tune_mm.tune.output.finals import metric_in_test
from tune_mm.tune.plan import suite_plan
from tune_mm.tune.plan.plan import Options, Plan
from tune_mm.tune.plan.plan import resolve as resolve_search
from tune_mm.tune.plan.suite_plan import SuitePlan
from tune_mm.tune.propose.ledger import Busy, Lock
from tune_mm.tune.search import FAILED, INTERRUPTED, SUMMARY
from tune_mm.tune.space.suite import Member, deviations


@dataclass(frozen=True)
class _Field:
    """Which members of a suite take part."""

    # Of the members' searches, by the member's name.
    plans: Mapping[str, Plan]
    # Why the others do not, by the member's name.
    left_out: Mapping[str, str]


def run(
    options: Options, console: Console, *, dry: bool = False, build: Build | None = None
) -> int:
    """Search each space of a suite as `options` say; the exit code.

    build: what a trial runs instead of core's Run (tests). A method that cannot train these data
    or this fusion is left out, and said so.

    Returns 0; 1 when trials failed in any search; 130 when it was interrupted. Raises UserError
    before anything has started.
    """
    plan = suite_plan.resolve(options)
    reference = plan.spaces[plan.suite.spec.baseline]
    source = data.resolve(
        reference.base.data, plan.options.data_root, require_real=plan.options.require_real
    )
    if dry:
        with tempfile.TemporaryDirectory() as scratch:
            field = _field(plan, Path(scratch), source)
        _announce(console, field, source)
        _show_plan(console, plan, field, source)
        return 0
    try:
        lock = Lock(plan.folder / "lock")
    except Busy as error:
        raise UserError(f"{error}; wait for it, or give this one another --name") from None
    with contextlib.closing(lock):
        field = _field(plan, plan.folder, source)
        plan.save()
        _announce(console, field, source)
        return _searches(plan, field, console, build)


def _field(plan: SuitePlan, folder: Path, source: Source) -> _Field:
    """Plan every search and ask whether its models fit.

    folder: for the spaces' files. Raises UserError when a baseline does not fit.
    """
    plans: dict[str, Plan] = {}
    left_out: dict[str, str] = {}
    for member in plan.suite.members:
        options = plan.member_options(member, folder) or plan.resumed_options(member)
        found = resolve_search(options)
        try:
            preview.fits(found, source)
        except UserError as error:
            left_out[member.name] = str(error).removeprefix(f"{found.space.name}: ")
        else:
            plans[member.name] = found
    for member in plan.suite.members:
        if member.name in plans and member.baseline in left_out:
            raise UserError(
                f"{plan.suite.name}: {member.baseline}, the baseline of {member.name}, "
                f"does not fit: {left_out[member.baseline]}"
            )
    baseline = plan.suite.spec.baseline
    if baseline in left_out:
        raise UserError(f"{plan.suite.name}: the baseline does not fit: {left_out[baseline]}")
    return _Field(plans, left_out)


def _members(plan: SuitePlan, field: _Field) -> list[Member]:
    """Those that take part, in the suite's order."""
    found = []
    for member in plan.suite.members:
        if member.name in field.plans:
            found.append(member)
    return found


# ---- running


def _searches(plan: SuitePlan, field: _Field, console: Console, build: Build | None) -> int:
    start = time.monotonic()
    code = 0
    reference = field.plans[plan.suite.spec.baseline]
    try:
        ray_there = ray_session.connect(
            plan.options.address, reference.cpus, plan.options.concurrency
        )
        with contextlib.closing(ray_there):
            code = _one_after_another(plan, field, console, build)
    except KeyboardInterrupt:
        code = INTERRUPTED
    return _close(plan, field, console, code, time.monotonic() - start)


def _one_after_another(
    plan: SuitePlan, field: _Field, console: Console, build: Build | None
) -> int:
    """The worst exit code of the searches that had not ended before."""
    members = _members(plan, field)
    unfinished: dict[str, Options] = {}
    for member in members:
        options = plan.member_options(member, plan.folder)
        if options is not None:
            unfinished[member.name] = options
    budget = plan.options.time_budget
    if budget is not None and unfinished:
        budget /= len(unfinished)
    worst = 0
    for number, member in enumerate(members, 1):
        heading = f"{plan.name} {number}/{len(members)}: {member.name}"
        if member.name not in unfinished:
            console.print(Text(f"{heading}, ended before", style="bold"))
            continue
        console.print(Text(heading, style="bold"))
        options = replace(unfinished[member.name], time_budget=budget)
        worst = max(worst, search.run(options, console, build=build))
        if worst == INTERRUPTED:
            break
    return worst


def _close(plan: SuitePlan, field: _Field, console: Console, code: int, seconds: float) -> int:
    """Table, summary.json, and what to do next; the exit code."""
    folders = {}
    for m in _members(plan, field):
        folders[m.name] = plan.options.searches / plan.search(m)
    unfinished = [name for name, folder in folders.items() if not suite_plan.ended(folder)]
    summaries = {name: suite_plan.read_summary(folder) for name, folder in folders.items()}
    rows = _rows(plan, field, summaries)
    status = "completed"
    if unfinished:
        status = "unfinished"
    if code == INTERRUPTED:
        status = "interrupted"
    facts = _summary(plan, field, rows, status, seconds)
    unwritten = search.write_summary(plan.folder / SUMMARY, facts)
    _show_table(console, plan, field, rows)
    _say_left_out(console, field.left_out)
    search.say_summary(console, plan.folder / SUMMARY, unwritten, seconds)
    stores = []
    for one in summaries.values():
        if "tracking_uri" in one:
            stores.append(one["tracking_uri"])
    if stores and stores[0]:
        console.print(Text(search.compare(stores[0], plan.suite.name)))
    if unfinished:
        console.print(Text(f"unfinished: {', '.join(unfinished)}"))
        console.print(
            Text(f"resume all of them with: python -m tune_mm.search --name {plan.name} --resume")
        )
    if code == INTERRUPTED:
        return INTERRUPTED
    failed = any(one.get("failed") for one in summaries.values())
    if code or failed or unwritten:
        return FAILED
    return 0


def _rows(
    plan: SuitePlan, field: _Field, summaries: Mapping[str, Mapping[str, Any]]
) -> list[suite_table.SuiteRow]:
    reference = plan.suite.spec.baseline
    baselines: dict[str, str] = {}
    unlike: dict[str, list[str]] = {}
    for member in _members(plan, field):
        baselines[member.name] = member.baseline
        unlike[member.name] = deviations(plan.spaces[member.name], plan.spaces[reference])
    return suite_table.rows(summaries, baselines, reference, plan.suite.spec.objective, unlike)


def _show_table(
    console: Console, plan: SuitePlan, field: _Field, rows: Sequence[suite_table.SuiteRow]
) -> None:
    spec = plan.suite.spec
    seeds = ", ".join(map(str, field.plans[spec.baseline].final_seeds))
    title = (
        f"{plan.name}: {plan.trials} trials each, finals over seeds {seeds}; "
        "mean ± standard deviation"
    )
    suite_table.show(console, title, spec.objective, spec.baseline, rows)


def _summary(
    plan: SuitePlan,
    field: _Field,
    rows: Sequence[suite_table.SuiteRow],
    status: str,
    seconds: float,
) -> dict[str, Any]:
    """What summary.json holds."""
    reference = field.plans[plan.suite.spec.baseline]
    return {
        "format": 1,
        "name": plan.name,
        "suite": plan.suite.name,
        "config": reference.space.spec.config,
        "objective": plan.suite.spec.objective,
        "metric": metric_in_test(plan.suite.spec.objective),
        "status": status,
        "trials": plan.trials,
        "epochs": {"search": reference.epochs, "final": reference.final_epochs},
        "final_seeds": list(reference.final_seeds),
        "baseline": plan.suite.spec.baseline,
        "seconds": round(seconds, 1),
        "methods": suite_table.as_json(rows),
        "left_out": dict(field.left_out),
    }


# ---- what was decided


def _announce(console: Console, field: _Field, source: Source) -> None:
    if source.message:
        console.print(Text(source.message, style="yellow"))
    _say_left_out(console, field.left_out)


def _say_left_out(console: Console, left_out: Mapping[str, str]) -> None:
    for name, why in left_out.items():
        console.print(Text(f"left out: {name}: {why}", style="yellow"))


def _show_plan(console: Console, plan: SuitePlan, field: _Field, source: Source) -> None:
    """--dry-run: what holds for all, and a row per search."""
    reference = plan.suite.spec.baseline
    common = Table(
        title=f"plan of {plan.name}, for all its searches", title_justify="left", show_header=False
    )
    for name, value in _common(plan, field, source):
        common.add_row(Text(name), Text(value))
    console.print(common)
    table = Table(title=f"{len(field.plans)} searches, one after another", title_justify="left")
    table.add_column("search")
    table.add_column("of space")
    table.add_column("trials", justify="right")
    table.add_column("searched")
    table.add_column("over")
    table.add_column(f"differs from {reference} in")
    for member in _members(plan, field):
        one = field.plans[member.name]
        if member.baseline == member.name:
            over = ""
        else:
            over = member.baseline
        unlike = deviations(plan.spaces[member.name], plan.spaces[reference])
        table.add_row(
            Text(one.name),
            Text(member.origin),
            Text(str(one.trials)),
            Text(", ".join(one.space.domains)),
            Text(over),
            Text("; ".join(unlike)),
        )
    console.print(table)


def _common(plan: SuitePlan, field: _Field, source: Source) -> Iterator[tuple[str, str]]:
    reference = field.plans[plan.suite.spec.baseline]
    spec = reference.space.spec
    seeds = ", ".join(map(str, reference.final_seeds))
    yield "config", spec.config
    yield "objective", f"{spec.objective} ({reference.space.mode})"
    for key, value in plan.record["overrides"].items():
        yield f"  --set {key}", str(value)
    yield "trials", f"{plan.trials} of each search"
    yield "searcher", f"{spec.searcher.name}, seed {reference.seed}"
    yield "scheduler", f"{spec.scheduler.name}, {reference.epochs} epochs"
    yield (
        "finals",
        f"best 1 of each, {reference.final_epochs} epochs, seeds {seeds}; test computed once each",
    )
    yield "baseline", f"{plan.suite.spec.baseline}, tuned like the others"
    yield "budget", _budget(plan, field)
    yield "data", f"{source.kind}: {source.root}"
    yield "results", f"{plan.folder}, and {plan.name}-<method> beside it"


def _budget(plan: SuitePlan, field: _Field) -> str:
    reference = field.plans[plan.suite.spec.baseline]
    count = len(field.plans)
    tuning = count * plan.trials * reference.epochs
    final = count * len(reference.final_seeds) * reference.final_epochs
    text = f"at most {tuning} epochs of tuning and {final} of finals"
    limit = plan.options.time_budget
    if limit is None:
        return text
    return f"{text}; tuning stops after {span(limit / count)} per search"
