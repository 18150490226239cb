"""One search as its runs tell it: its trials with their settings, its finals, what it searched.

The parent run's artifacts say what was searched (space.json), what came out (summary.json) and on
which data (data.json). A search that has not ended, or an older one, lacks some of them: then the
runs themselves are asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_mm.errors import UserError, nearest
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import Curve, StoredRun
from tune_mm.stats import direction_or_max

Scalar = bool | int | float | str | None
NOT_SEARCHED = {"name", "seed", "train.epochs", "train.monitor"}
WORDS: Mapping[str, Scalar] = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class SearchedDomain:
    """What a setting could be: kind and args of a space file, as `tune_mm.tune.space.domains` explains."""

    kind: str
    args: tuple[Scalar, ...]

    def read(self, text: str) -> Scalar:
        """A parameter's text as the value that it stands for."""
        if self.kind in ("choice", "grid"):
            return next((a for a in self.args if str(a) == text), WORDS.get(text, text))
        value = number(text)
        if value is None:
            return text
        if self.kind == "randint":
            return int(value)
        return value


Domains = Mapping[str, SearchedDomain]


@dataclass(frozen=True)
class Trial:
    """A trial of a tuning stage."""

    record: StoredRun
    number: int
    # Its best objective; None: never finite.
    value: float | None
    # The best so far, by epoch.
    progress: Curve
    settings: Mapping[str, Scalar]

    @property
    def epochs(self) -> int:
        """How many epochs it lived."""
        return max((epoch for epoch, _ in self.progress), default=0)


@dataclass(frozen=True)
class Search:
    """A search as the store has it."""

    name: str
    uid: str
    parent: StoredRun | None
    objective: str
    mode: str
    # By stage: search, baseline.
    domains: Mapping[str, Domains]
    # By stage: search, baseline.
    trials: Mapping[str, Sequence[Trial]]
    # The oldest first.
    finals: Sequence[StoredRun]
    # What summary.json holds.
    summary: Mapping[str, Any] = field(default_factory=dict)
    # What data.json holds.
    about: Mapping[str, Any] = field(default_factory=dict)
    # What was not clear.
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> list[StoredRun]:
        """All runs but the parent."""
        return [*(t.record for trials in self.trials.values() for t in trials), *self.finals]

    @property
    def exhaustive(self) -> bool:
        """Nothing was tuned: the points of a grid went into the finals."""
        return not any(self.trials.values()) and bool(self.finals)

    @property
    def open(self) -> bool:
        """It has not ended, as far as the store knows."""
        return self.parent is None or self.parent.status != "completed"

    @property
    def data(self) -> str:
        """The data set, and whether it is the real one; for captions."""
        tags = (self.parent or self.runs[0]).tags
        return (
            f"{tags.get('dataset', 'of unknown name')}, {tags.get('data_kind', 'of unknown kind')}"
        )

    @property
    def test(self) -> str:
        """The test metric that belongs to the objective."""
        return "test/" + self.objective.removeprefix("val/")

    def best(self, stage: str = "search") -> Trial | None:
        """The trial with the best objective, completed ones before others."""
        found = [t for t in self.trials.get(stage, ()) if t.value is not None]
        done = [t for t in found if t.record.status == "completed"] or found
        sign = -1 if self.mode == "min" else 1
        return max(done, key=lambda t: sign * (t.value or 0.0), default=None)


def load(reader: Reader, name: str) -> Search:
    """The search of that name or unique id; the latest of several, which a note says. Raises
    UserError.
    """
    records = reader.records()
    uid, notes = _chosen(records, name, reader.shown)
    own = [r for r in records if r.search == uid]
    parent = next((r for r in own if r.parent is None and r.stage == "search"), None)
    stages: dict[str, list[StoredRun]] = {"search": [], "baseline": [], "final": []}
    for record in sorted((r for r in own if r is not parent), key=trial_number):
        stages.setdefault(record.stage, []).append(record)
    files = {}
    for f in ("space", "summary", "data"):
        files[f] = _artifact(reader, parent, f"{f}.json", notes)
    objective = _objective(parent, files, stages)
    domains = {
        "search": _domains(files["space"], "search")
        or _inferred(stages["search"] or stages["final"])
    }
    if stages["baseline"]:
        domains["baseline"] = _domains(files["space"], "baseline") or _inferred(stages["baseline"])
    if not files["space"]:
        notes.append(
            "The store does not say what was searched; shown are the settings that differ between runs."
        )
    return Search(
        name=parent.name if parent else own[0].tags.get("search", name),
        uid=uid,
        parent=parent,
        objective=objective,
        mode=str(
            files["space"].get("mode")
            or files["summary"].get("mode")
            or direction_or_max(objective)
        ),
        domains=domains,
        trials={
            s: [_trial(reader, r, domains[s], objective) for r in stages[s]]
            for s in domains
            if stages[s]
        },
        finals=stages["final"],
        summary=files["summary"],
        about=files["data"],
        notes=tuple(notes),
    )


def number(text: object) -> float | None:
    """A finite number from its text; None for anything else."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    if math.isfinite(value):
        return value
    return None


def trial_number(record: StoredRun) -> int:
    """Its number within its stage; -1 when the run does not say."""
    value = number(record.tags.get("trial"))
    if value is None:
        return -1
    return int(value)


def settings(record: StoredRun, domains: Domains) -> dict[str, Scalar]:
    """What was drawn for a run. Population-based training changes settings on the way: the last
    ones count.
    """
    out: dict[str, Scalar] = {}
    for key, domain in domains.items():
        text = record.params.get(key, record.params.get(f"{key}.name"))
        last = record.metrics.get(f"hp/{key}")
        if last is not None and math.isfinite(last):
            out[key] = last
        elif text is not None:
            out[key] = domain.read(text)
    return out


def _trial(reader: Reader, record: StoredRun, domains: Domains, objective: str) -> Trial:
    curves = reader.curves(record, ["objective", objective])
    progress = curves.get("objective") or curves.get(objective) or ()
    finite = [v for _, v in progress if math.isfinite(v)]
    best = record.metrics.get(f"best/{objective}", math.nan)
    value: float | None = best
    if not math.isfinite(best):
        if direction_or_max(objective) == "min":
            extreme = min
        else:
            extreme = max
        value = extreme(finite, default=None)
    return Trial(record, trial_number(record), value, progress, settings(record, domains))


def _chosen(records: Iterable[StoredRun], name: str, shown: str) -> tuple[str, list[str]]:
    """The unique id of the search meant, and notes."""
    began: dict[str, Any] = {}
    named: dict[str, str] = {}
    for record in records:
        if record.search:
            began[record.search] = min(record.started, began.get(record.search, record.started))
            named[record.search] = record.tags.get("search", record.search)
    found = sorted((uid for uid in began if name in (uid, named[uid])), key=lambda uid: began[uid])
    if not found:
        known = sorted(set(named.values()))
        raise UserError(
            f"search: no '{name}' in {shown}{nearest(name, known)}; available: {', '.join(known) or 'none'}"
        )
    if len(found) == 1:
        return found[0], []
    return found[-1], [f"{len(found)} searches are named {name}; this is the latest ({found[-1]})."]


def _artifact(
    reader: Reader, parent: StoredRun | None, name: str, notes: list[str]
) -> dict[str, Any]:
    """A JSON artifact of the parent run; empty when it is not there, or cannot be read (which a
    note says).
    """
    path = reader.artifact(parent, name) if parent else None
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{name} of the search cannot be read: {error}")
        return {}
    if isinstance(found, dict):
        return found
    return {}


def _objective(
    parent: StoredRun | None, files: Mapping[str, Mapping[str, Any]], stages: Mapping[str, Any]
) -> str:
    told = [
        parent.tags.get("objective") if parent else None,
        *(files[f].get("objective") for f in ("space", "summary")),
    ]
    monitored = []
    for runs in stages.values():
        for r in runs:
            monitored.append(r.params.get("train.monitor"))
    return str(next(filter(None, [*told, *monitored]), "objective"))


# ---- what was searched


def _domains(space: Mapping[str, Any], stage: str) -> Domains:
    """The domains that space.json states; empty when it states none."""
    stages = space.get("domains")
    if isinstance(stages, dict):
        stated = stages.get(stage)
    else:
        stated = None
    if not isinstance(stated, dict):
        return {}
    found = {}
    for k, d in stated.items():
        if {"kind", "args"} <= set(d):
            found[k] = SearchedDomain(str(d["kind"]), tuple(d["args"]))
    return found


def _inferred(runs: Sequence[StoredRun]) -> Domains:
    """A domain for each parameter that differs between runs."""
    keys = dict.fromkeys(k for r in runs for k in r.params if k not in NOT_SEARCHED)
    values = {}
    for k in keys:
        values[k] = list(dict.fromkeys(r.params[k] for r in runs if k in r.params))
    return {k: _guess(texts) for k, texts in values.items() if len(texts) > 1}


def _guess(texts: Sequence[str]) -> SearchedDomain:
    values = [number(t) for t in texts]
    numbers = [v for v in values if v is not None]
    if len(numbers) < len(texts):
        return SearchedDomain("choice", tuple(WORDS.get(t, t) for t in texts))
    if all(t.lstrip("-").isdigit() for t in texts):
        return SearchedDomain("randint", (int(min(numbers)), int(max(numbers))))
    wide = min(numbers) > 0 and max(numbers) / min(numbers) > 10
    return SearchedDomain("loguniform" if wide else "uniform", (min(numbers), max(numbers)))
