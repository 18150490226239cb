"""Before a search starts: whether its models fit the data, and what was decided (--dry-run)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.data import base as data
from tune_mm.data.base import Source
from tune_mm.data.summary import summary
from tune_mm.errors import UserError
from tune_mm.tune import stages
from tune_mm.tune.execute import ray_session
from tune_mm.tune.output.display import span
from tune_mm.tune.plan.plan import Plan, unlike
from tune_mm.tune.space.space import variants
from tune_mm.tune.stop import protected, schedulers


def fits(plan: Plan, source: Source) -> dict[str, Any]:
    """The data set's summary. Loads it, so that its store is built before trials ask for it.

    Raises UserError for a model, a method or an objective that does not fit the data, before
    anything starts.
    """
    dataset = None
    for space in (plan.baseline, plan.space):
        if space is None:
            continue
        config = plan.config(space, plan.epochs)
        dataset = data.load(config.data, source)
        for changes in variants(space):
            try:
                check(with_overrides(config, changes), dataset.spec)
            except ValueError as error:
                chosen = [f"{key} = {value}" for key, value in changes.items()]
                raise UserError("; ".join([f"{space.name}: {error}", *chosen])) from None
    assert dataset is not None
    return summary(dataset)


def show_plan(console: Console, plan: Plan, source: Source) -> None:
    """--dry-run: everything that was decided."""
    table = Table(title=f"plan of {plan.name}", title_justify="left", show_header=False)
    for name, value in [*_searched(plan), *_budgeted(plan), *_placed(plan, source)]:
        table.add_row(Text(name), Text(value))  # brackets would be read as markup
    console.print(table)


def _searched(plan: Plan) -> Iterator[tuple[str, str]]:
    """What is searched, and what is fixed."""
    space = plan.space
    spec = space.spec
    yield "space", f"{space.name} ({spec.config} with method {space.base.method.name})"
    yield "objective", f"{spec.objective} ({space.mode})"
    for key, domain in space.domains.items():
        yield f"  {key}", domain.text()
    for number, default in enumerate(space.defaults):
        settings = [f"{key} = {value}" for key, value in default.items()]
        yield f"  default {number}", ", ".join(settings)
    for key, value in plan.record["overrides"].items():
        yield f"  --set {key}", str(value)


def _budgeted(plan: Plan) -> Iterator[tuple[str, str]]:
    """How many trials, who decides about them, and what is compared in the end."""
    spec = plan.space.spec
    trials = str(plan.trials)
    if plan.space.exhaustive:
        trials = "none: every point of the grid goes into the finals"
    yield "trials", trials
    yield "searcher", f"{spec.searcher.name}, seed {plan.seed}"
    yield "scheduler", _scheduler(plan)
    if plan.baseline is None:
        yield "baseline", "none"
    else:
        yield "baseline", f"{plan.baseline.name}, {plan.baseline_trials} trials"
    for key in unlike(plan):
        yield "  differs in", key
    yield "finals", _finals(plan)


def _placed(plan: Plan, source: Source) -> Iterator[tuple[str, str]]:
    """Where it runs and where its results lie."""
    options = plan.options
    if plan.gpus == "auto":
        gpus = "a measured part of a"
    else:
        gpus = f"{plan.gpus:g}"
    yield "resources", f"{plan.cpus:g} CPU, {gpus} GPU per trial"
    as_many_as_fit = f"what fits ({ray_session.processors()} CPUs here)"
    yield "concurrency", str(options.concurrency or as_many_as_fit)
    yield "budget", _budget(plan)
    yield "data", f"{source.kind}: {source.root}"
    yield "results", str(plan.folder)
    yield "checkpoints", plan.storage
    store = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    yield "tracking", store or "mlruns/mlflow.db"
    cluster = options.address or os.environ.get("RAY_ADDRESS")
    yield "ray", cluster or "started on this machine"


def _scheduler(plan: Plan) -> str:
    spec = plan.space.spec.scheduler
    text = f"{spec.name}, {plan.epochs} epochs"
    if spec.name != "asha":
        return text
    base = plan.config(plan.space, plan.epochs)
    drop = base.schedule if spec.after_drop else None
    first = schedulers.first_stop(spec.grace, plan.epochs, drop)
    dips = protected.shared(plan.space, base)
    rungs = schedulers.rungs(plan.epochs, first, spec.reduction, dips)
    when = "never"
    if rungs:
        when = f"after {', '.join(map(str, rungs))} passes over the data"
    text += f", decides {when}, keeps 1 in {spec.reduction:g}"
    if first > schedulers.epochs_of(spec.grace, plan.epochs):
        text += " (not before the learning rate's drop: scheduler.after_drop)"
    if dips:
        epochs = protected.text(dips)
        text += f" (not in epochs {epochs}, where {base.method.name} lets metrics dip)"
    return text


def _finals(plan: Plan) -> str:
    top = plan.space.spec.finals.top
    if top == 0:
        return "none"
    chosen = f"best {top}"
    if top == "all":
        chosen = f"all {len(stages.every_point(plan))} points"
    if plan.baseline is not None:
        chosen += " and the baseline's best"
    seeds = ", ".join(map(str, plan.final_seeds))
    return f"{chosen}, {plan.final_epochs} epochs, seeds {seeds}; test computed once each"


def _budget(plan: Plan) -> str:
    tuning = (plan.trials + plan.baseline_trials) * plan.epochs
    final = _settings_in_finals(plan) * len(plan.final_seeds) * plan.final_epochs
    text = f"at most {tuning} epochs of tuning and {final} of finals"
    limit = plan.options.time_budget
    if limit is None:
        return text
    return f"{text}; tuning stops after {span(limit)} (finals are not bounded)"


def _settings_in_finals(plan: Plan) -> int:
    top = plan.space.spec.finals.top
    if top == 0:
        return 0
    if top == "all":
        return len(stages.every_point(plan))
    if plan.baseline is None:
        return top
    return top + 1
