"""Which runs a cell, a point or a line of a report stands for: one per seed, of one configuration,
of one search.

Final runs of searches come before runs of `tune_mm.train`, real data before synthetic, the latest
search before others. Whatever was left out on the way is said in a note. Test metrics decide
nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from statistics import fmean

import tune_mm
from tune_mm.errors import UserError, nearest
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import ANY, Report, Scalar, Where
from tune_mm.stats import direction_or_max

ATTRIBUTES = frozenset({"space", "stage", "status"})
KINDS = ("real", "synthetic", "")  # by preference; "": a run that does not say
# Settings of train that change no training.
OBSERVED = (
    "device",
    "eval_batch_size",
    "gradient_statistics",
    "gradient_vectors",
    "probe_size",
)
NOT_THE_SETTING = frozenset({"seed", "name", *(f"train.{key}" for key in OBSERVED)})


@dataclass(frozen=True)
class Choice:
    """What the user narrows a report down to. None: not given."""

    # A data set.
    data: str | None = None
    # Of runs that began then or later; a time without a zone is local.
    since: datetime | None = None
    # A search's name or unique id, or the name of a run of `tune_mm.train`.
    run: str | None = None

    def admits(self, record: StoredRun) -> bool:
        """Whether `since` and `run` take the run."""
        recent = self.since is None or record.started.timestamp() >= self.since.timestamp()
        return recent and (self.run is None or self.run in _names(record))

    def check(self, records: Iterable[StoredRun]) -> None:
        """Raise UserError, with the nearest name, when no run at all is of `run` or of `data`."""
        found = list(records)
        searches = {_title(record) or record.name for record in found}
        if self.run is not None and not any(self.run in _names(record) for record in found):
            raise _unknown("--run", "search or run", self.run, searches)
        sets = set()
        for record in found:
            if "dataset" in record.tags:
                sets.add(record.tags["dataset"])
        if self.data is not None and self.data not in sets:
            raise _unknown("--data", "runs on", self.data, sets)


@dataclass(frozen=True)
class Selection:
    """Runs, by seed."""

    records: list[StoredRun]
    # The data set.
    data: str
    # real or synthetic; "" without runs.
    kind: str
    # Names of the searches that the runs are of; () for single runs.
    searches: tuple[str, ...]
    # What a reader of the numbers should know.
    notes: tuple[str, ...]


def matches(record: StoredRun, where: Where) -> bool:
    """Whether a run has all the values: as text, number or boolean; of a list, any of them.

    A key is a tag, a parameter, or one of `space`, `stage` and `status`. null stands for None and
    for a key that the run does not have, "*" for all other values.
    """
    for key, wanted in where.items():
        stored = _value(record, key)
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if not any(_equal(stored, one) for one in allowed):
            return False
    return True


def select(
    records: Sequence[StoredRun],
    report: Report,
    where: Where,
    choice: Choice,
    data: str | None = None,
) -> Selection:
    """The completed runs that match the report's `where` and this one on top of it, on `data` (a
    column's own), else on the chosen data set, else on the report's: final runs, or where there are
    none those of `tune_mm.train`.

    One per seed, the latest; of the latest search; of one configuration: that of most seeds, then
    of the best mean objective on validation.
    """
    name = data or choice.data or report.data
    wanted = {**report.where, **where}
    fitting = []
    for r in records:
        if r.tags.get("dataset") == name and choice.admits(r) and matches(r, wanted):
            fitting.append(r)
    notes: list[str] = []
    for stage in ("final", "train"):
        pool, kind = _kind([r for r in fitting if r.stage == stage], notes)
        done = [r for r in pool if r.status == "completed"]
        if done:
            kept, search = _latest_search(done, records, notes)
            kept = _one_setting(kept, records, notes)
            kept = _by_seed(kept, notes)
            passed_over = {r.search for r in done} - {search}
            _incomplete([r for r in pool if r.search not in passed_over], notes)
            _unfinished(search, records, notes)
            _versions(kept, notes)
            return Selection(kept, name, kind, _searches(kept), tuple(notes))
        _incomplete(pool, notes)
    for search in sorted({r.search for r in fitting}):
        _unfinished(search, records, notes)
    return Selection([], name, "", (), tuple(notes))


def by_seed(records: Iterable[StoredRun], metric: str) -> dict[int, float]:
    """The last value of a metric by seed; seeds without a finite one are left out, and `lacking`
    names them.
    """
    found = {}
    for r in records:
        found[r.seed] = r.metrics.get(metric, math.nan)
    out = {}
    for seed, value in sorted(found.items()):
        if math.isfinite(value):
            out[seed] = value
    return out


def lacking(records: Iterable[StoredRun], metric: str) -> str:
    """What is to be said of runs whose `metric` is missing or not finite; "" when there are none."""
    runs = list(records)
    absent: set[int] = set()
    broken: set[int] = set()
    have = by_seed(runs, metric)
    for run in runs:
        if metric not in run.metrics:
            absent.add(run.seed)
        elif run.seed not in have:
            broken.add(run.seed)
    broken -= absent
    said = []
    if broken:
        said.append(f"{metric} is not finite for {_seeds(sorted(broken))}")
    if absent:
        said.append(f"{metric} is not logged for {_seeds(sorted(absent))}")
    return "; ".join(said)


# ---- values


def _names(record: StoredRun) -> set[str]:
    """What --run may call a run's search, or the run itself where it has none."""
    if record.search:
        return {record.search, _title(record)}
    return {record.name}


def _title(record: StoredRun) -> str:
    """The name of a run's search; "" for a single run, whose tag `search` names an experiment."""
    if record.search:
        return record.tags.get("search", record.search)
    return ""


def _unknown(option: str, what: str, got: str, known: Collection[str]) -> UserError:
    names = sorted(known)
    return UserError(
        f"{option}: no {what} '{got}'{nearest(got, names)}; available: {', '.join(names) or 'none'}"
    )


def _value(record: StoredRun, key: str) -> str | None:
    if key in ATTRIBUTES:
        return str(getattr(record, key))
    return record.value(key)


def _equal(stored: str | None, wanted: Scalar) -> bool:
    """Whether a stored text is the wanted value: "4.0" is 4, "True" is true, "None" and nothing are
    null.
    """
    if wanted is None or stored is None:
        return wanted is None and stored in {None, "None"}
    if wanted == ANY:
        return stored != "None"
    if isinstance(wanted, bool):
        return stored.lower() == str(wanted).lower()
    if isinstance(wanted, str):
        return stored == wanted
    try:
        return math.isclose(float(stored), wanted, rel_tol=1e-9)
    except ValueError:
        return False


# ---- choosing


def _kind(pool: list[StoredRun], notes: list[str]) -> tuple[list[StoredRun], str]:
    """The runs on real data, else those on synthetic data; completed ones count first."""
    kinds = {kind: [r for r in pool if r.tags.get("data_kind", "") == kind] for kind in KINDS}
    having = [kind for kind in KINDS if kinds[kind]]
    done = [kind for kind in having if any(r.status == "completed" for r in kinds[kind])]
    chosen = next(iter(done or having), "")
    for kind in having:
        if kind != chosen:
            notes.append(
                f"{_count(kinds[kind])} on {kind or 'unstated'} data left out ({_states(kinds[kind])})"
            )
    return kinds[chosen], chosen


def _latest_search(
    done: list[StoredRun], records: Sequence[StoredRun], notes: list[str]
) -> tuple[list[StoredRun], str]:
    """The runs of the search that began last, and its unique id. A search begins with its first run
    of all.
    """
    own = {r.search for r in done}
    began: dict[str, datetime] = {}
    for record in records:
        if record.search in own:
            began[record.search] = min(record.started, began.get(record.search, record.started))
    latest = max(own, key=lambda search: (began[search], search))
    kept = [r for r in done if r.search == latest]
    if len(own) > 1:
        shown = f"{_title(kept[0])} of {began[latest]:%Y-%m-%d}"
        notes.append(f"{len(own)} searches have such runs; shown: {shown} (--run chooses)")
    return kept, latest


def _one_setting(
    done: list[StoredRun], records: Sequence[StoredRun], notes: list[str]
) -> list[StoredRun]:
    """The runs of one configuration."""
    groups: dict[frozenset[tuple[str, str]], list[StoredRun]] = {}
    for record in done:
        setting = frozenset((k, v) for k, v in record.params.items() if k not in NOT_THE_SETTING)
        groups.setdefault(setting, []).append(record)
    if len(groups) == 1:
        return done
    objectives = {}
    for r in records:
        if "objective" in r.tags:
            objectives[r.id] = r.tags["objective"]
    kept = max(
        groups.values(),
        key=lambda g: (len({r.seed for r in g}), _validation(g, objectives), g[-1].started),
    )
    which = kept[0].tags.get("source", kept[0].name)
    notes.append(
        f"{len(groups)} configurations match; shown: {which}, the best on validation of those with most seeds"
    )
    return kept


def _validation(runs: list[StoredRun], objectives: Mapping[str, str]) -> float:
    """The mean validation objective, higher is better; -inf where it is not known or not finite."""
    values = []
    for run in runs:
        name = (
            objectives.get(run.id)
            or objectives.get(run.parent or "")
            or run.params.get("train.monitor", "")
        )
        sign = -1 if direction_or_max(name) == "min" else 1
        values.append(sign * run.metrics.get(f"best/{name}", math.nan))
    mean = fmean(values)
    if math.isfinite(mean):
        return mean
    return -math.inf


def _by_seed(done: list[StoredRun], notes: list[str]) -> list[StoredRun]:
    """The latest run of each seed."""
    ordered = sorted(done, key=lambda r: (r.seed, r.started, r.id))
    groups = []
    for _, group in groupby(ordered, key=lambda r: r.seed):
        groups.append(list(group))
    again = [group[-1].seed for group in groups if len(group) > 1]
    if again:
        notes.append(f"{_seeds(again)} run more than once: the latest counts")
    return [group[-1] for group in groups]


# ---- notes


def _incomplete(pool: Iterable[StoredRun], notes: list[str]) -> None:
    """Say which runs did not come to their end, by search."""
    by_search: dict[str, list[StoredRun]] = {}
    for run in pool:
        if run.status != "completed":
            by_search.setdefault(_title(run), []).append(run)
    for search, runs in sorted(by_search.items()):
        of = f" of search {search}" if search else ""
        notes.append(f"{_count(runs)}{of} not completed ({_states(runs)})")


def _unfinished(search: str, records: Iterable[StoredRun], notes: list[str]) -> None:
    """Say that a search goes on, or was stopped."""
    parent = next((r for r in records if search and r.search == search and r.parent is None), None)
    if parent is not None and parent.status != "completed":
        notes.append(f"search {_title(parent)} is not finished ({parent.status})")


def _versions(kept: list[StoredRun], notes: list[str]) -> None:
    """Say when runs were made with another version than this one."""
    found = sorted(
        {r.tags["version.tune_mm"] for r in kept if "version.tune_mm" in r.tags}
        - {tune_mm.__version__}
    )
    if found:
        notes.append(f"made with tune_mm {', '.join(found)}; this is {tune_mm.__version__}")


def _searches(records: Iterable[StoredRun]) -> tuple[str, ...]:
    return tuple(sorted({_title(r) for r in records} - {""}))


def _count(runs: Collection[StoredRun]) -> str:
    if len(runs) == 1:
        return "1 run"
    return f"{len(runs)} runs"


def _states(runs: Iterable[StoredRun]) -> str:
    """How many runs ended how: `1 failed, 2 running`."""
    return ", ".join(
        f"{n} {status}" for status, n in sorted(Counter(r.status for r in runs).items())
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
