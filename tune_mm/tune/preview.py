"""Before a search starts: whether its models fit the data, and what was decided (--dry-run)."""

from __future__ import annotations

import os
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
from tune_mm.tune.plan import plan as P
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.space import space as S
from tune_mm.tune.stop import protected, schedulers


def fits(plan: Plan, source: Source) -> dict[str, Any]:
    """The data set's summary. Loads it, so that its store is built before trials ask for it.

    Raises UserError for a model, a method or an objective that does not fit the data, before
    anything starts.
    """
    for space in filter(None, (plan.baseline, plan.space)):
        config = plan.config(space, plan.epochs)
        dataset = data.load(config.data, source)
        for changes in S.variants(space):
            try:
                check(with_overrides(config, changes), dataset.spec)
            except ValueError as error:
                raise UserError(
                    "; ".join(
                        [f"{space.name}: {error}", *(f"{k} = {v}" for k, v in changes.items())]
                    )
                ) from None
    return summary(dataset)


def show_plan(console: Console, plan: Plan, source: Source) -> None:
    """--dry-run: everything that was decided."""
    spec, space = plan.space.spec, plan.space
    scheduler = f"{spec.scheduler.name}, {plan.epochs} epochs"
    if spec.scheduler.name == "asha":
        base = plan.config(space, plan.epochs)
        first = schedulers.first_stop(
            spec.scheduler.grace, plan.epochs, base.schedule if spec.scheduler.after_drop else None
        )
        quiet = protected.shared(space, base)
        at = schedulers.rungs(plan.epochs, first, spec.scheduler.reduction, quiet)
        when = f"after {', '.join(map(str, at))} passes over the data" if at else "never"
        scheduler += f", decides {when}, keeps 1 in {spec.scheduler.reduction:g}"
        if first > schedulers.epochs_of(spec.scheduler.grace, plan.epochs):
            scheduler += " (not before the learning rate's drop: scheduler.after_drop)"
        if quiet:
            scheduler += f" (not in epochs {protected.text(quiet)}, where {space.base.method.name} lets metrics dip)"
    table = Table(title=f"plan of {plan.name}", title_justify="left", show_header=False)
    rows: list[tuple[str, str]] = [
        ("space", f"{space.name} ({spec.config} with method {space.base.method.name})"),
        ("objective", f"{spec.objective} ({space.mode})"),
        *((f"  {key}", domain.text()) for key, domain in space.domains.items()),
        *(
            (f"  default {i}", ", ".join(f"{k} = {v}" for k, v in d.items()))
            for i, d in enumerate(space.defaults)
        ),
        *((f"  --set {key}", str(value)) for key, value in plan.record["overrides"].items()),
        (
            "trials",
            "none: every point of the grid goes into the finals"
            if space.exhaustive
            else str(plan.trials),
        ),
        ("searcher", f"{spec.searcher.name}, seed {plan.seed}"),
        ("scheduler", scheduler),
        (
            "baseline",
            f"{plan.baseline.name}, {plan.baseline_trials} trials" if plan.baseline else "none",
        ),
        *(("  differs in", key) for key in P.unlike(plan)),
        ("finals", _finals_text(plan)),
        ("resources", f"{plan.cpus:g} CPU, {_gpus(plan)} GPU per trial"),
        (
            "concurrency",
            str(plan.options.concurrency or f"what fits ({ray_session.processors()} CPUs here)"),
        ),
        ("budget", _budget(plan)),
        ("data", f"{source.kind}: {source.root}"),
        ("results", str(plan.folder)),
        ("checkpoints", plan.storage),
        (
            "tracking",
            plan.options.tracking_uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or "mlruns/mlflow.db",
        ),
        ("ray", plan.options.address or os.environ.get("RAY_ADDRESS") or "started on this machine"),
    ]
    for name, value in rows:
        table.add_row(Text(name), Text(value))  # brackets would be read as markup
    console.print(table)


def _gpus(plan: Plan) -> str:
    return "a measured part of a" if plan.gpus == "auto" else f"{plan.gpus:g}"


def _finals_text(plan: Plan) -> str:
    finals = plan.space.spec.finals
    if finals.top == 0:
        return "none"
    seeds = ", ".join(map(str, plan.final_seeds))
    chosen = (
        f"all {len(stages.every_point(plan))} points"
        if finals.top == "all"
        else f"best {finals.top}"
    )
    return chosen + (" and the baseline's best" if plan.baseline else "") + (
        f", {plan.final_epochs} epochs, seeds {seeds}; test computed once each")  # fmt: skip


def _budget(plan: Plan) -> str:
    epochs = (plan.trials + plan.baseline_trials) * plan.epochs
    top = plan.space.spec.finals.top
    settings = (
        len(stages.every_point(plan)) if top == "all" else top + bool(plan.baseline) if top else 0
    )
    runs = settings * len(plan.final_seeds)
    text = f"at most {epochs} epochs of tuning and {runs * plan.final_epochs} of finals"
    limit = plan.options.time_budget
    return (
        text
        if limit is None
        else f"{text}; tuning stops after {span(limit)} (finals are not bounded)"
    )
