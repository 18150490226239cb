"""What a search writes to MLflow: a parent run, a child per trial, the same runs again after a
resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune_mm.config import Config, dump_config, flatten
from tune_mm.track import RunHandle, Store, Writer, description, views
from tune_mm.track.run import Status
from tune_mm.track.tags import Stage, environment, tags_for
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.space.space import Space

STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def searched(plan: Plan) -> dict[str, Any]:
    """space.json: what was searched and how, for readers of the store without search.json."""
    domains = {"search": _domains(plan.space)}
    if plan.baseline is not None:
        domains["baseline"] = _domains(plan.baseline)
    return {
        "format": 1,
        "objective": plan.space.spec.objective,
        "mode": plan.space.mode,
        "searcher": plan.space.spec.searcher.name,
        "scheduler": plan.space.spec.scheduler.name,
        "exhaustive": plan.space.exhaustive,
        "trials": plan.trials,
        "epochs": plan.epochs,
        "domains": domains,
    }


def _domains(space: Space) -> dict[str, dict[str, Any]]:
    """Kind, arguments and conditions by key."""
    found: dict[str, dict[str, Any]] = {}
    for key, domain in space.domains.items():
        conditions = {}
        for other, allowed in domain.when.items():
            conditions[other] = list(allowed)
        found[key] = {"kind": domain.kind, "args": list(domain.args), "when": conditions}
    return found


class Tracker:
    """The runs of one search. about: the data set's summary.

    A store that is away is no error: what it misses is queued. Raises UserError when it can never
    be used.
    """

    def __init__(self, plan: Plan, data_kind: str, about: Mapping[str, Any]) -> None:
        self._kind = data_kind
        self._name = plan.name
        self._origin = environment()
        suite = plan.record.get("suite")
        if suite:
            self._origin["suite"] = str(suite)
        self.store = Store.open(plan.options.tracking_uri, plan.options.root, required=False)
        self._writer = Writer(self.store, plan.space.name, search=plan.uid)
        base = plan.config(plan.space, plan.epochs)
        tags = {
            **tags_for(base, stage="search", data_kind=data_kind),
            **self._origin,
            "objective": plan.space.spec.objective,
            "search": plan.name,
            "space": plan.space.name,
            "searcher": plan.space.spec.searcher.name,
        }
        params = {
            "trials": plan.trials,
            "epochs": plan.epochs,
            "scheduler": plan.space.spec.scheduler.name,
            "method": base.method.name,
        }
        facts = {**tags, **params, "mode": plan.space.mode}
        self._heading = description.heading(plan.name, facts)
        tags[description.TAG] = description.text(self._heading)
        self._parent = self._writer.start(plan.name, params, tags, key="search")
        self._writer.artifact(self._parent, dump_config(base), "config.yaml")
        self._writer.artifact(self._parent, _as_json(searched(plan)), "space.json")
        if about:
            self._writer.artifact(self._parent, _as_json(about), "data.json")
        keys = dict.fromkeys(plan.space.domains)
        if plan.baseline is not None:
            keys |= dict.fromkeys(plan.baseline.domains)
        columns = views.columns(plan.space.spec.objective, about.get("shapes", ()), keys)
        self._views = views.views(columns, plan.space.mode)
        self._save_views()
        self._runs: dict[tuple[Stage, int], RunHandle] = {}

    def start(self, stage: Stage, number: int, config: Config, facts: Mapping[str, Any]) -> None:
        """A trial begins, or goes on: the same run then."""
        tags = {
            **tags_for(config, stage=stage, data_kind=self._kind),
            **self._origin,
            "search": self._name,
            **facts,
            "trial": number,
        }
        run = self._writer.start(
            f"{stage} {number}",
            flatten(config),
            tags,
            parent=self._parent,
            key=f"{stage}/{number}",
        )
        self._runs[stage, number] = run
        self._writer.artifact(run, dump_config(config), "config.yaml")

    def log(self, stage: Stage, number: int, metrics: Mapping[str, float], epoch: int) -> None:
        """An epoch's metrics."""
        self._writer.log(self._runs[stage, number], metrics, epoch)

    def tag(self, stage: Stage, number: int, tags: Mapping[str, str]) -> None:
        """Tags of a trial that change on the way."""
        self._writer.tags(self._runs[stage, number], tags)

    def file(self, stage: Stage, number: int, path: Path, name: str) -> None:
        """A file of a trial, copied now."""
        self._writer.artifact(self._runs[stage, number], path, name)

    def finish(self, stage: Stage, trial: FrozenTrial) -> None:
        """A trial ended as the ledger says."""
        run = self._runs[stage, trial.number]
        facts = trial.user_attrs
        summary: dict[str, float] = dict(facts.get("test", {}))
        for key, value in facts.get("best_metrics", {}).items():
            summary[f"best/{key}"] = value
        self._writer.log(run, summary, int(facts.get("epochs", 0)))
        if facts.get("diverged"):
            self._writer.tags(run, {"diverged": "true"})
        self._writer.finish(run, STATUS[trial.state], str(facts.get("reason", "")))

    def stopped(self, stage: Stage, number: int, reason: str) -> None:
        """A trial was cut off; a resumed search picks it up."""
        if (stage, number) in self._runs:
            self._writer.finish(self._runs[stage, number], "stopped", reason)

    def summary(
        self, text: str, metrics: Mapping[str, float], status: Status, reason: str = ""
    ) -> None:
        """The search ended (or was stopped): its summary on the parent run."""
        self._writer.artifact(self._parent, text, "summary.json")
        self._writer.log(self._parent, metrics, 0)
        if self._writer.flush():
            self._save_views()
        links = ""
        run = self._parent.run_id
        if run:  # a store that has been away has given none
            links = description.links(self._name, self._writer.experiment_id, run)
        told = description.outcome(json.loads(text))
        described = description.text(self._heading, told, links)
        self._writer.tags(self._parent, {description.TAG: described})
        self._writer.finish(self._parent, status, reason)

    def flush(self) -> None:
        """Write what has gathered."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _save_views(self) -> None:
        """Once, as soon as the store has given the experiment an id."""
        if self._views and self._writer.experiment_id:
            views.save(self.store, self._writer.experiment_id, self._views)
            self._views = {}


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"
