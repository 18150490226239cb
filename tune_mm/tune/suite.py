"""A suite from its plan to its table: one search after another in one Ray. `run(options)` returns
the exit code.
"""

from __future__ import annotations

import contextlib
import json
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
from tune_mm.tune.plan import plan as P
from tune_mm.tune.plan import suite_plan
from tune_mm.tune.plan.plan import Options, Plan
from tune_mm.tune.plan.suite_plan import SuitePlan
from tune_mm.tune.propose.ledger import Busy, Lock
from tune_mm.tune.search import FAILED, INTERRUPTED, SUMMARY
from tune_mm.tune.space import suite as U
from tune_mm.tune.space.suite import Member


@dataclass(frozen=True)
class _Field:
    """Who takes part. plans: of the members' searches, by name; left_out: why others do not."""

    plans: Mapping[str, Plan]
    left_out: Mapping[str, str]


def run(
    options: Options, console: Console, *, dry: bool = False, build: Build | None = None
) -> int:
    """Search each space of a suite as `options` say. build: what a trial runs instead of core's Run
    (tests).

    Returns 0; 1 when trials failed in any search; 130 when it was interrupted. Raises UserError
    before anything has started. A method that cannot train these data or this fusion is left out,
    and said so.
    """
    plan = suite_plan.resolve(options)
    shared = plan.spaces[plan.suite.spec.baseline].base.data
    source = data.resolve(shared, plan.options.data_root, require_real=plan.options.require_real)
    if dry:
        with tempfile.TemporaryDirectory() as scratch:
            field = _field(plan, Path(scratch), source)
        _announce(console, plan, field, source)
        _show_plan(console, plan, field, source)
        return 0
    try:
        lock = Lock(plan.folder / "lock")
    except Busy as error:
        raise UserError(f"{error}; wait for it, or give this one another --name") from None
    with contextlib.closing(lock):
        field = _field(plan, plan.folder, source)
        plan.save()
        _announce(console, plan, field, source)
        return _searches(plan, field, console, build)


def _field(plan: SuitePlan, folder: Path, source: Source) -> _Field:
    """Every search planned, and asked whether its models fit. Raises UserError when a baseline does
    not.
    """
    plans: dict[str, Plan] = {}
    left_out: dict[str, str] = {}
    for member in plan.suite.members:
        given = plan.member_options(member, folder) or _again(plan, member)
        found = P.resolve(given)
        try:
            preview.fits(found, source)
            plans[member.name] = found
        except UserError as error:
            left_out[member.name] = str(error).removeprefix(f"{found.space.name}: ")
    for member in plan.suite.members:
        if member.name in plans and member.baseline in left_out:
            raise UserError(
                f"{plan.suite.name}: {member.baseline}, the baseline of {member.name}, does not fit: "
                f"{left_out[member.baseline]}"
            )
    if plan.suite.spec.baseline in left_out:
        raise UserError(
            f"{plan.suite.name}: the baseline does not fit: {left_out[plan.suite.spec.baseline]}"
        )
    return _Field(plans, left_out)


def _again(plan: SuitePlan, member: Member) -> Options:
    """A search that has ended, to be looked at."""
    return replace(plan.options, space=None, name=plan.search(member), resume=True, trials=None, epochs=None, seed=None,
                   overrides={}, storage=None, extend=None)  # fmt: skip


# ---- running


def _searches(plan: SuitePlan, field: _Field, console: Console, build: Build | None) -> int:
    start, code = time.monotonic(), 0
    members = [m for m in plan.suite.members if m.name in field.plans]
    left = {
        m.name: given for m in members if (given := plan.member_options(m, plan.folder)) is not None
    }
    first = field.plans[plan.suite.spec.baseline]
    try:
        with contextlib.closing(
            ray_session.connect(plan.options.address, first.cpus, plan.options.concurrency)
        ):
            for number, member in enumerate(members, 1):
                heading = f"{plan.name} {number}/{len(members)}: {member.name}"
                console.print(
                    Text(heading + ("" if member.name in left else ", ended before"), style="bold")
                )
                if member.name in left:
                    code = max(code, _search(left[member.name], plan, len(left), console, build))
                if code == INTERRUPTED:
                    break
    except KeyboardInterrupt:
        code = INTERRUPTED
    return _close(plan, field, console, code, time.monotonic() - start)


def _search(
    given: Options, plan: SuitePlan, count: int, console: Console, build: Build | None
) -> int:
    budget = plan.options.time_budget
    return search.run(replace(given, time_budget=budget and budget / count), console, build=build)


def _close(plan: SuitePlan, field: _Field, console: Console, code: int, seconds: float) -> int:
    """Table, summary.json, and what to do next; the exit code."""
    members = [m for m in plan.suite.members if m.name in field.plans]
    folders = {m.name: plan.options.searches / plan.search(m) for m in members}
    open_ = [name for name, folder in folders.items() if not suite_plan.ended(folder)]
    summaries = {name: suite_plan.read(folder / SUMMARY) or {} for name, folder in folders.items()}
    found = _rows(plan, members, summaries)
    status = "interrupted" if code == INTERRUPTED else "unfinished" if open_ else "completed"
    text = json.dumps(_summary(plan, field, found, status, seconds), indent=1)
    (plan.folder / SUMMARY).write_text(text + "\n")
    spec = plan.suite.spec
    seeds = ", ".join(map(str, field.plans[spec.baseline].final_seeds))
    title = f"{plan.name}: {plan.trials} trials each, finals over seeds {seeds}; mean ± standard deviation"
    suite_table.show(console, title, spec.objective, spec.baseline, found)
    _say_left_out(console, field.left_out)
    console.print(Text(f"summary: {plan.folder / SUMMARY}   time: {span(seconds)}"))
    uri = next((s["tracking_uri"] for s in summaries.values() if "tracking_uri" in s), None)
    if uri:
        console.print(Text(search.compare(uri, plan.suite.name)))
    if open_:
        console.print(Text(f"unfinished: {', '.join(open_)}"))
        console.print(
            Text(f"resume all of them with: python -m tune_mm.search --name {plan.name} --resume")
        )
    failed = any(summary.get("failed") for summary in summaries.values())
    return code if code == INTERRUPTED else FAILED if code or failed else 0


def _rows(
    plan: SuitePlan, members: Sequence[Member], summaries: Mapping[str, Mapping[str, Any]]
) -> list[suite_table.SuiteRow]:  # fmt: skip
    reference = plan.suite.spec.baseline
    unlike = {m.name: U.deviations(plan.spaces[m.name], plan.spaces[reference]) for m in members}
    return suite_table.rows(summaries, {m.name: m.baseline for m in members}, reference,
                            plan.suite.spec.objective, unlike)  # fmt: skip


def _summary(
    plan: SuitePlan,
    field: _Field,
    found: Sequence[suite_table.SuiteRow],
    status: str,
    seconds: float,
) -> dict[str, Any]:
    """summary.json."""
    one = field.plans[plan.suite.spec.baseline]
    return {
        "format": 1,
        "name": plan.name,
        "suite": plan.suite.name,
        "config": one.space.spec.config,
        "objective": plan.suite.spec.objective,
        "metric": metric_in_test(plan.suite.spec.objective),
        "status": status,
        "trials": plan.trials,
        "epochs": {"search": one.epochs, "final": one.final_epochs},
        "final_seeds": list(one.final_seeds),
        "baseline": plan.suite.spec.baseline,
        "seconds": round(seconds, 1),
        "methods": suite_table.as_json(found),
        "left_out": dict(field.left_out),
    }


# ---- what was decided


def _announce(console: Console, plan: SuitePlan, field: _Field, source: Source) -> None:
    if source.message:
        console.print(Text(source.message, style="yellow"))
    _say_left_out(console, field.left_out)


def _say_left_out(console: Console, left_out: Mapping[str, str]) -> None:
    for name, why in left_out.items():
        console.print(Text(f"left out: {name}: {why}", style="yellow"))


def _show_plan(console: Console, plan: SuitePlan, field: _Field, source: Source) -> None:
    """--dry-run: what holds for all, and a row per search."""
    spec, first = plan.suite.spec, field.plans[plan.suite.spec.baseline]
    common = Table(
        title=f"plan of {plan.name}, for all its searches", title_justify="left", show_header=False
    )
    for name, value in _common(plan, field, first, source):
        common.add_row(Text(name), Text(value))
    console.print(common)
    table = Table(title=f"{len(field.plans)} searches, one after another", title_justify="left")
    for name in (
        "search",
        "of space",
        "trials",
        "searched",
        "over",
        f"differs from {spec.baseline} in",
    ):
        table.add_column(name, justify="right" if name == "trials" else "left")
    for member in plan.suite.members:
        if member.name not in field.plans:
            continue
        one = field.plans[member.name]
        over = "" if member.baseline == member.name else member.baseline
        unlike = U.deviations(plan.spaces[member.name], plan.spaces[spec.baseline])
        cells = (
            one.name,
            member.origin,
            str(one.trials),
            ", ".join(one.space.domains),
            over,
            "; ".join(unlike),
        )
        table.add_row(*map(Text, cells))
    console.print(table)


def _common(
    plan: SuitePlan, field: _Field, first: Plan, source: Source
) -> Iterator[tuple[str, str]]:
    spec, count = first.space.spec, len(field.plans)
    seeds = ", ".join(map(str, first.final_seeds))
    yield "config", spec.config
    yield "objective", f"{spec.objective} ({first.space.mode})"
    yield from ((f"  --set {key}", str(value)) for key, value in plan.record["overrides"].items())
    yield "trials", f"{plan.trials} of each search"
    yield "searcher", f"{spec.searcher.name}, seed {first.seed}"
    yield "scheduler", f"{spec.scheduler.name}, {first.epochs} epochs"
    yield (
        "finals",
        f"best 1 of each, {first.final_epochs} epochs, seeds {seeds}; test computed once each",
    )
    yield "baseline", f"{plan.suite.spec.baseline}, tuned like the others"
    tuning, final = (
        count * plan.trials * first.epochs,
        count * len(first.final_seeds) * first.final_epochs,
    )
    limit = plan.options.time_budget
    each = f"; tuning stops after {span(limit / count)} per search" if limit else ""
    yield "budget", f"at most {tuning} epochs of tuning and {final} of finals{each}"
    yield "data", f"{source.kind}: {source.root}"
    yield "results", f"{plan.folder}, and {plan.name}-<method> beside it"
