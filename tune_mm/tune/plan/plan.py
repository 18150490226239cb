"""What a search will do, decided and checked before anything starts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tune_mm.config import Config, flatten, read_yaml, to_dict, with_overrides
from tune_mm.config.yaml import Document, is_utf8
from tune_mm.errors import ConfigError, UserError
from tune_mm.filesystem import write_json
from tune_mm.tune.plan import search_file
from tune_mm.tune.plan.saved import require_name
from tune_mm.tune.plan.search_file import FORMAT, RECORD
from tune_mm.tune.space.drawing import grid
from tune_mm.tune.space.space import Space
from tune_mm.tune.space.space import build as build_space
from tune_mm.tune.space.space import read as read_space

TRIALS = 20


@dataclass(frozen=True)
class Options:
    """The command line. None: not given."""

    # The folder that holds mlruns/.
    root: Path
    # A space or a suite: its name, or the path of its file.
    space: str | None = None
    # Of the search.
    name: str | None = None
    # Trials of the search, and of the baseline.
    trials: int | None = None
    # The full budget of a trial and of a final run.
    epochs: int | None = None
    # Of the sampler and of every trial.
    seed: int | None = None
    # Settings of the config that are fixed, by key.
    overrides: Mapping[str, Any] = field(default_factory=dict)
    # The folder that holds the data sets.
    data_root: Path | None = None
    # Whether to fail instead of using synthetic data.
    require_real: bool = False
    # Trials at a time.
    concurrency: int | None = None
    # CPUs of a trial.
    cpus: float | None = None
    # GPUs of a trial; auto: the share that its measured memory needs.
    gpus: float | Literal["auto"] | None = None
    # Whether to start NVIDIA's Multi-Process Service.
    mps: bool = False
    # Seconds of tuning in this call, search and baseline together.
    time_budget: float | None = None
    # The MLflow store.
    tracking_uri: str | None = None
    # A folder or a URI for checkpoints.
    storage: str | None = None
    # The Ray cluster to join.
    address: str | None = None
    # Whether to resume a search.
    resume: bool = False
    # Resume it with this many more trials.
    extend: int | None = None
    # Seconds of a trial's training between checkpoints (0: after every epoch).
    save_every: float = 10.0
    # The suite that the search is one of.
    suite: str | None = None

    @property
    def searches(self) -> Path:
        """All searches lie here, one folder each."""
        return self.root.resolve() / "mlruns" / "search"


@dataclass(frozen=True)
class Plan:
    """A resolved search."""

    name: str
    # Tells the search from an earlier one of the same name.
    uid: str
    # Everything that the search writes lies here.
    folder: Path
    space: Space
    # The space that the finals compare with.
    baseline: Space | None
    # Trials of the search.
    trials: int
    # Trials of the baseline.
    baseline_trials: int
    # The full budget of a trial.
    epochs: int
    # The budget of a final run.
    final_epochs: int
    seed: int
    options: Options
    # Whether the search was begun by an earlier call.
    resumed: bool
    # What search.json holds.
    record: Mapping[str, Any]
    # Trials that this call adds.
    extended: int = 0

    @property
    def cpus(self) -> float:
        """CPUs of a trial."""
        if self.options.cpus is not None:
            return self.options.cpus
        return self.space.spec.resources.cpus

    @property
    def gpus(self) -> float | Literal["auto"]:
        """GPUs of a trial."""
        if self.options.gpus is not None:
            return self.options.gpus
        return self.space.spec.resources.gpus

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
        is_uri = "://" in given
        place = given if is_uri else str(Path(given).resolve())
        return f"{place.rstrip('/')}/{self.uid}"

    def config(self, space: Space, epochs: int, seed: int | None = None) -> Config:
        """The config of a stage, before a trial's own values."""
        chosen = self.seed if seed is None else seed
        return with_overrides(space.base, {"train.epochs": epochs, "seed": chosen})

    def save(self, *, closed: bool) -> None:
        """Write search.json, whole or not at all.

        closed: everything of the search is written, nothing is buffered.
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
    """The plan of a new search, or of one that is resumed or extended.

    Raises UserError with all problems at once.
    """
    _require_utf8(options)
    if options.resume or options.extend is not None:
        return _resumed(options)
    return _new(options)


def _new(options: Options) -> Plan:
    if options.space is None:
        raise UserError(
            "--space NAME or PATH is needed (see --list), or --name NAME with --resume or --extend"
        )
    document = read_space(options.space)
    space = build_space(document.path.stem, document, options.overrides)
    baseline = _baseline(space, options.overrides)
    name = options.name
    if name is None:
        name = _free_name(options.searches, space.name)
    _require_new(name, options.searches)
    trials = _count(space, options.trials)
    record = {
        "format": FORMAT,
        "name": name,
        "uid": f"{name}-{secrets.token_hex(4)}",
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "space": {"name": space.name, "path": str(document.path.resolve()), "values": space.raw},
        "baseline": None,
        "config": to_dict(space.base),
        "trials": trials,
        "baseline_trials": 0,
        "seed": space.base.seed if options.seed is None else options.seed,
        "epochs": options.epochs,
        "overrides": dict(options.overrides),
        "data_root": None,
        "require_real": options.require_real,
        "tracking_uri": options.tracking_uri,
        "storage": options.storage,
        "suite": options.suite,
    }
    if baseline is not None:
        wanted = space.spec.finals.baseline_trials or trials
        record["baseline"] = {"name": baseline.name, "values": baseline.raw}
        record["baseline_trials"] = _capped(baseline, wanted)
    if options.data_root is not None:
        record["data_root"] = str(options.data_root.absolute())
    return _plan(options, record, space, baseline)


def _require_new(name: str, searches: Path) -> None:
    """Raises UserError for a name that no folder can have, or that another search has."""
    try:
        require_name(name)
    except ValueError as error:
        raise UserError(f"--name: {error}, got '{name}'") from None
    folder = searches / name
    if (folder / RECORD).exists():
        raise UserError(
            f"--name: a search '{name}' exists already in {folder}; continue it with "
            f"--name {name} --resume, add trials with --extend N, or choose another --name"
        )


def _require_utf8(options: Options) -> None:
    """Raises UserError for a text or a path that no record, table or terminal would take."""
    for key, value in vars(options).items():
        if isinstance(value, (str, Path)) and not is_utf8(str(value)):
            if key == "root":
                flag = "the working folder"
            else:
                flag = f"--{key.replace('_', '-')}"
            raise UserError(f"{flag}: must be UTF-8 text, got {str(value)!r}")


def still_free(plan: Plan) -> None:
    """Raises UserError where another process began a search of that name meanwhile.

    To be asked under the search's lock.
    """
    if not plan.resumed and (plan.folder / RECORD).exists():
        raise UserError(
            f"--name: a search '{plan.name}' was begun by another process just now; "
            "choose another --name"
        )


def _plan(
    options: Options,
    record: dict[str, Any],
    space: Space,
    baseline: Space | None,
    resumed: bool = False,
) -> Plan:
    configured = space.base.train.epochs
    given = record["epochs"]
    fixed = record["overrides"].get("train.epochs")
    plan = Plan(
        name=record["name"],
        uid=record["uid"],
        folder=options.searches / record["name"],
        space=space,
        baseline=baseline,
        trials=record["trials"],
        baseline_trials=record["baseline_trials"],
        epochs=given or fixed or space.spec.scheduler.epochs or configured,
        final_epochs=given or space.spec.finals.epochs or configured,
        seed=record["seed"],
        options=options,
        resumed=resumed,
        record=record,
        extended=options.extend or 0,
    )
    plan.config(space, plan.epochs)  # raises for a seed or a number of epochs that no config takes
    return plan


def _count(space: Space, given: int | None) -> int:
    """The number of trials: of a grid, at most all its points; none where nothing is tuned."""
    if space.exhaustive:
        if given is not None:
            raise UserError(
                f"--trials: {space.name} runs all points of its grid over the seeds "
                "and tunes nothing"
            )
        _capped(space, None)
        return 0
    if space.spec.searcher.name == "grid":
        return _capped(space, given or space.spec.trials)
    return given or space.spec.trials or TRIALS


def _capped(space: Space, trials: int | None) -> int:
    """At most the points of a grid."""
    if space.spec.searcher.name != "grid":
        return trials or TRIALS
    points = _grid_size(space)
    return min(trials or points, points)


def _grid_size(space: Space) -> int:
    """Points of the grid. Raises UserError for a domain that has no end."""
    try:
        return len(grid(space.domains, flatten(space.base)))
    except ValueError as error:
        raise UserError(f"{space.name}: {error}") from None


def _baseline(
    space: Space, overrides: Mapping[str, Any], document: Document | None = None
) -> Space | None:
    """The space that the finals compare with, under the same overrides but those of the method.

    document: the baseline as it was when the search began; None: its file. Raises UserError.
    """
    finals = space.spec.finals
    if finals.baseline is None or finals.top in (0, "all"):
        return None
    if document is None:
        document = read_space(finals.baseline)
    shared = {}
    for key, value in overrides.items():
        if not _of_method(key):
            shared[key] = value
    baseline = build_space(document.path.stem, document, shared)
    for what in ("config", "objective"):
        ours = getattr(space.spec, what)
        theirs = getattr(baseline.spec, what)
        if ours != theirs:
            raise UserError(
                f"finals.baseline: {what} must be the space's own, '{ours}', "
                f"got '{theirs}' in {baseline.name}"
            )
    return baseline


def _of_method(key: str) -> bool:
    return key.partition(".")[0] == "method"


def unlike(plan: Plan) -> list[str]:
    """Settings in which the baseline differs though neither space searches them.

    The method's own settings are left out.
    """
    if plan.baseline is None:
        return []
    ours = flatten(plan.space.base)
    theirs = flatten(plan.baseline.base)
    searched = {*plan.space.domains, *plan.baseline.domains}
    found = []
    for key, value in ours.items():
        comparable = key in theirs and key not in searched and not _of_method(key)
        if comparable and value != theirs[key]:
            found.append(key)
    return found


def _free_name(searches: Path, space: str) -> str:
    """<space>-<n> with the first n that no search has."""
    number = 1
    while (searches / f"{space}-{number}" / RECORD).exists():
        number += 1
    return f"{space}-{number}"


# ---- a search that was begun before


def _resumed(options: Options) -> Plan:
    record = search_file.find(options.searches, options.name, options.space)
    space = _saved_space(options, record)
    baseline = _saved_baseline(space, record)
    extra = options.extend or 0
    record = {**record, **_more_trials(space, baseline, record, extra)}
    record["tracking_uri"] = options.tracking_uri or record["tracking_uri"]
    data_root = record["data_root"] and Path(record["data_root"])
    if options.data_root is not None:
        data_root = options.data_root.absolute()
    merged = replace(
        options,
        tracking_uri=record["tracking_uri"],
        storage=record["storage"],
        data_root=data_root,
        require_real=options.require_real or record["require_real"],
    )
    return _plan(merged, record, space, baseline, resumed=True)


def _saved_space(options: Options, record: Mapping[str, Any]) -> Space:
    """The space that a search began with.

    Raises UserError where flags, the space's file or the config are no longer what they were.
    """
    problems = list(search_file.changed(vars(options), record))
    saved = record["space"]
    path = Path(saved["path"])
    if path.is_file():
        now = read_yaml(path).data
        problems += search_file.differences("the space file", str(path), saved["values"], now)
    kept_in = options.searches / record["name"] / RECORD
    document = Document(saved["values"], {}, kept_in)
    try:
        space = build_space(saved["name"], document, record["overrides"])
    except ConfigError as error:
        problems += error.problems
    else:
        problems += search_file.differences(
            "the config", space.spec.config, record["config"], to_dict(space.base)
        )
    if problems:
        raise UserError("\n".join([f"{record['name']} cannot go on as it began:", *problems]))
    return space


def _saved_baseline(space: Space, record: Mapping[str, Any]) -> Space | None:
    saved = record["baseline"]
    if saved is None:
        return None
    document = Document(saved["values"], {}, Path(f"{saved['name']}.yaml"))
    return _baseline(space, record["overrides"], document)


def _more_trials(
    space: Space, baseline: Space | None, record: Mapping[str, Any], extra: int
) -> dict[str, int]:
    """Trials of the search and of its baseline after `extra` more. Raises UserError."""
    if extra and space.exhaustive:
        raise UserError(f"--extend: {space.name} runs all points of its grid, there are no more")
    trials = record["trials"] + extra
    if space.spec.searcher.name == "grid" and trials > _grid_size(space):
        raise UserError(
            f"--extend: the grid of {space.name} has {_grid_size(space)} points and no more"
        )
    baseline_trials = record["baseline_trials"]
    follows_search = space.spec.finals.baseline_trials is None
    if baseline is not None and follows_search:
        baseline_trials = _capped(baseline, baseline_trials + extra)
    return {"trials": trials, "baseline_trials": baseline_trials}
