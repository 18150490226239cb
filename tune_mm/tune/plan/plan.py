"""What a search will do, decided and checked before anything starts, and `search.json`, which makes
it resumable.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tune_mm.config import Config, flatten, read_yaml, to_dict, with_overrides
from tune_mm.config.yaml import Document, is_utf8
from tune_mm.errors import UserError
from tune_mm.filesystem import write_json
from tune_mm.tune.plan import search_file
from tune_mm.tune.plan.search_file import FORMAT, RECORD
from tune_mm.tune.space import space as S
from tune_mm.tune.space.drawing import grid
from tune_mm.tune.space.space import Space

TRIALS = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Options:
    """The command line. None: not given. time_budget in seconds; root: the folder that holds
    mlruns/.

    save_every: seconds of a trial's training between checkpoints (0: after every epoch). suite: the
    suite that the search is one of.
    """

    root: Path
    space: str | None = None
    name: str | None = None
    trials: int | None = None
    epochs: int | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    data_root: Path | None = None
    require_real: bool = False
    concurrency: int | None = None
    cpus: float | None = None
    gpus: float | Literal["auto"] | None = None
    mps: bool = False
    time_budget: float | None = None
    tracking_uri: str | None = None
    storage: str | None = None
    address: str | None = None
    resume: bool = False
    extend: int | None = None
    save_every: float = 10.0
    suite: str | None = None

    @property
    def searches(self) -> Path:
        """All searches lie here, one folder each."""
        return self.root.resolve() / "mlruns" / "search"


@dataclass(frozen=True)
class Plan:
    """A resolved search. trials and epochs per stage; uid tells a search from an earlier one of the
    same name.
    """

    name: str
    uid: str
    folder: Path
    space: Space
    baseline: Space | None
    trials: int
    baseline_trials: int
    epochs: int
    final_epochs: int
    seed: int
    options: Options
    resumed: bool
    record: Mapping[str, Any]
    extended: int = 0

    @property
    def cpus(self) -> float:
        return (
            self.options.cpus if self.options.cpus is not None else self.space.spec.resources.cpus
        )

    @property
    def gpus(self) -> float | Literal["auto"]:
        return (
            self.options.gpus if self.options.gpus is not None else self.space.spec.resources.gpus
        )

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """Seeds of the finals: none is the one that the search chose by."""
        return tuple(self.seed + 1 + i for i in range(self.space.spec.finals.seeds))

    @property
    def storage(self) -> str:
        """Where Ray keeps checkpoints: a folder or a URI that every node reaches."""
        given = self.options.storage
        if given is None:
            return str(self.folder / "ray")
        place = given if "://" in given else str(Path(given).resolve())
        return f"{place.rstrip('/')}/{self.uid}"

    def config(self, space: Space, epochs: int, seed: int | None = None) -> Config:
        """The config of a stage, before a trial's own values."""
        return with_overrides(
            space.base, {"train.epochs": epochs, "seed": self.seed if seed is None else seed}
        )

    def save(self, *, closed: bool) -> None:
        """Write search.json, whole or not at all. closed: everything of the search is written,
        nothing is buffered.

        Raises UserError where it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RECORD, {**self.record, "closed": closed})
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written: {error.strerror or error}"
            ) from error


def resolve(options: Options) -> Plan:
    """The plan of a new search, or of one that is resumed or extended. Raises UserError (all
    problems at once).
    """
    _require_utf8(options)
    if options.resume or options.extend is not None:
        return _continued(options)
    if options.space is None:
        raise UserError(
            "--space NAME or PATH is needed (see --list), or --name NAME with --resume or --extend"
        )
    document = S.read(options.space)
    space = S.build(document.path.stem, document, options.overrides)
    baseline = _baseline(space, options.overrides)
    name = _free(options.searches, space.name) if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name: must be letters, digits, '.', '_' and '-' (at most 100), got '{name}'"
        )
    if (options.searches / name / RECORD).exists():
        way = f"continue it with --name {name} --resume, add trials with --extend N, or choose another --name"
        raise UserError(
            f"--name: a search '{name}' exists already in {options.searches / name}; {way}"
        )
    trials = _count(space, options.trials)
    baseline_trials = (space.spec.finals.baseline_trials or trials) if baseline else 0
    record = {
        "format": FORMAT,
        "name": name,
        "uid": f"{name}-{secrets.token_hex(4)}",
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "space": {"name": space.name, "path": str(document.path.resolve()), "values": space.raw},
        "baseline": baseline and {"name": baseline.name, "values": baseline.raw},
        "config": to_dict(space.base),
        "trials": trials,
        "baseline_trials": _capped(baseline, baseline_trials) if baseline else 0,
        "seed": space.base.seed if options.seed is None else options.seed,
        "epochs": options.epochs,
        "overrides": dict(options.overrides),
        "data_root": options.data_root and str(options.data_root.absolute()),
        "require_real": options.require_real,
        "tracking_uri": options.tracking_uri,
        "storage": options.storage,
        "suite": options.suite,
    }
    return _plan(options, record, space, baseline)


def _require_utf8(options: Options) -> None:
    """Raises UserError for a text or a path that no record, table or terminal would take."""
    for key, value in vars(options).items():
        if isinstance(value, (str, Path)) and not is_utf8(str(value)):
            flag = "the working folder" if key == "root" else f"--{key.replace('_', '-')}"
            raise UserError(f"{flag}: must be UTF-8 text, got {str(value)!r}")


def still_free(plan: Plan) -> None:
    """To be asked under the search's lock: did another process begin a new search of that name
    meanwhile?
    """
    if not plan.resumed and (plan.folder / RECORD).exists():
        raise UserError(
            f"--name: a search '{plan.name}' was begun by another process just now; choose another --name"
        )


def _plan(
    options: Options,
    record: dict[str, Any],
    space: Space,
    baseline: Space | None,
    resumed: bool = False,
) -> Plan:
    spec, given, fixed = space.spec, record["epochs"], record["overrides"].get("train.epochs")
    epochs = given or fixed or spec.scheduler.epochs or space.base.train.epochs
    final = given or spec.finals.epochs or space.base.train.epochs
    folder = options.searches / record["name"]
    counts = (record["trials"], record["baseline_trials"])
    plan = Plan(record["name"], record["uid"], folder, space, baseline, *counts, epochs, final, record["seed"],
                options, resumed, record, options.extend or 0)  # fmt: skip
    plan.config(space, epochs)  # a seed or a number of epochs that the config refuses
    return plan


def _count(space: Space, given: int | None) -> int:
    """The number of trials; of a grid, at most all its points (its default); none where nothing is
    tuned.
    """
    if space.exhaustive:
        if given is not None:
            raise UserError(
                f"--trials: {space.name} runs all points of its grid over the seeds and tunes nothing"
            )
        _capped(space, None)
        return 0
    if space.spec.searcher.name == "grid":
        return _capped(space, given or space.spec.trials)
    return given or space.spec.trials or TRIALS


def _capped(space: Space, trials: int | None) -> int:
    if space.spec.searcher.name != "grid":
        return trials or TRIALS
    try:
        size = len(grid(space.domains, flatten(space.base)))
    except ValueError as error:
        raise UserError(f"{space.name}: {error}") from None
    return min(trials or size, size)


def _baseline(
    space: Space, overrides: Mapping[str, Any], document: Document | None = None
) -> Space | None:
    """The space that the finals compare with, under the same overrides but those of the method.
    Raises UserError.
    """
    finals = space.spec.finals
    if finals.baseline is None or finals.top in (0, "all"):
        return None
    document = document or S.read(finals.baseline)
    shared = {k: v for k, v in overrides.items() if k.partition(".")[0] != "method"}
    baseline = S.build(document.path.stem, document, shared)
    for what in ("config", "objective"):
        ours, theirs = getattr(space.spec, what), getattr(baseline.spec, what)
        if ours != theirs:
            raise UserError(
                f"finals.baseline: {what} must be the space's own, '{ours}', got '{theirs}' in {baseline.name}"
            )
    return baseline


def unlike(plan: Plan) -> list[str]:
    """Settings in which the baseline differs though neither space searches them (the method's own
    left out).
    """
    if plan.baseline is None:
        return []
    ours, theirs = flatten(plan.space.base), flatten(plan.baseline.base)
    searched = {*plan.space.domains, *plan.baseline.domains}
    shared = [k for k in ours if k in theirs and not k.startswith("method.") and k not in searched]
    return [k for k in shared if ours[k] != theirs[k]]


def _free(searches: Path, space: str) -> str:
    """<space>-<n> with the first n that no search has."""
    number = 1
    while (searches / f"{space}-{number}" / RECORD).exists():
        number += 1
    return f"{space}-{number}"


def _continued(options: Options) -> Plan:
    record = search_file.find(options.searches, options.name, options.space)
    problems = list(search_file.changed(vars(options), record))
    saved, path = record["space"], Path(record["space"]["path"])
    if path.is_file():
        problems += search_file.differences(
            "the space file", str(path), saved["values"], read_yaml(path).data
        )
    overrides = record["overrides"]
    space = S.build(saved["name"], Document(saved["values"], {}, path), overrides)
    problems += search_file.differences(
        "the config", space.spec.config, record["config"], to_dict(space.base)
    )
    if problems:
        raise UserError("\n".join([f"{record['name']} cannot go on as it began:", *problems]))
    baseline = None
    if record["baseline"] is not None:
        kept = record["baseline"]
        baseline = _baseline(
            space, overrides, Document(kept["values"], {}, Path(f"{kept['name']}.yaml"))
        )
    extra = options.extend or 0
    if extra and space.exhaustive:
        raise UserError(f"--extend: {space.name} runs all points of its grid, there are no more")
    trials = record["trials"] + extra
    if space.spec.searcher.name == "grid" and trials > _capped(space, None):
        raise UserError(
            f"--extend: the grid of {space.name} has {_capped(space, None)} points and no more"
        )
    tied = space.spec.finals.baseline_trials is None and baseline is not None
    more = (
        _capped(baseline, record["baseline_trials"] + extra)
        if tied and baseline
        else record["baseline_trials"]
    )
    record = {**record, "trials": trials, "baseline_trials": more}
    record |= {"tracking_uri": options.tracking_uri or record["tracking_uri"]}
    root = (
        options.data_root.absolute()
        if options.data_root
        else record["data_root"] and Path(record["data_root"])
    )
    merged = {
        **vars(options),
        "tracking_uri": record["tracking_uri"],
        "storage": record["storage"],
        "data_root": root,
    }
    merged["require_real"] = options.require_real or record["require_real"]
    return _plan(Options(**merged), record, space, baseline, resumed=True)
