"""What a suite will do, decided before anything starts, and `suite.json`, which makes it resumable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from tune_mm.config import Section, read_yaml
from tune_mm.config.yaml import Document, write_yaml
from tune_mm.errors import UserError
from tune_mm.filesystem import write_json
from tune_mm.tune.plan import search_file
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.plan.saved import FolderName, SavedSpace, load, load_all
from tune_mm.tune.space.space import Space
from tune_mm.tune.space.space import read as read_space
from tune_mm.tune.space.suite import Member, Suite, is_suite, read_spec
from tune_mm.tune.space.suite import build as build_suite
from tune_mm.tune.space.suite import spaces as spaces_of

FORMAT = 1
RECORD = "suite.json"


class SavedMember(Section):
    """A search of a suite."""

    # The space that it is made of.
    origin: str
    # The member that its gain is stated over.
    baseline: str
    # That space as the suite has it.
    values: dict[str, Any]


class SuiteFile(Section):
    """What suite.json holds."""

    format: int
    name: FolderName
    # ISO 8601.
    created: str
    suite: SavedSpace
    # By name.
    members: dict[FolderName, SavedMember]
    # Of each search.
    trials: int = Field(ge=1)
    seed: int | None = Field(ge=0, lt=2**31)
    # As given by --epochs.
    epochs: int | None = Field(ge=1)
    # As given by --set.
    overrides: dict[str, Any]
    storage: str | None
    data_root: str | None
    require_real: bool
    tracking_uri: str | None


@dataclass(frozen=True)
class SuitePlan:
    """A resolved suite."""

    name: str
    # Of its own, beside those of its searches.
    folder: Path
    suite: Suite
    # By the member's name.
    spaces: Mapping[str, Space]
    options: Options
    # What suite.json holds.
    record: Mapping[str, Any]

    @property
    def trials(self) -> int:
        """Of each search."""
        return int(self.record["trials"])

    def search(self, member: Member) -> str:
        """The name of a member's search."""
        return f"{self.name}-{member.name}"

    def save(self) -> None:
        """Write suite.json, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RECORD, self.record)

    def write(self, folder: Path, member: Member) -> Path:
        """The space of a member as a file that a search starts with.

        The file's name is the experiment's.
        """
        path = folder / member.name / f"{self.suite.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write_yaml(member.document.data))
        return path

    def member_options(self, member: Member, folder: Path) -> Options | None:
        """The options of a member's search; None when it has ended.

        folder: of the spaces' files. A search that has begun resumes, with as many more trials as
        the suite has been given since.
        """
        search_folder = self.options.searches / self.search(member)
        begun = _begun(search_folder)
        resumed = self.resumed_options(member)
        if begun is None:
            return replace(
                resumed,
                resume=False,
                space=str(self.write(folder, member)),
                trials=self.trials,
                epochs=self.record["epochs"],
                seed=self.record["seed"],
                overrides=self.record["overrides"],
                storage=self.record["storage"],
            )
        more = self.trials - begun["trials"]
        if more:
            return replace(resumed, resume=False, extend=more)
        if ended(search_folder):
            return None
        return resumed

    def resumed_options(self, member: Member) -> Options:
        """The options that resume a member's search, or look at one that has ended."""
        return replace(
            self.options,
            name=self.search(member),
            suite=self.name,
            resume=True,
            space=None,
            trials=None,
            epochs=None,
            seed=None,
            overrides={},
            storage=None,
            extend=None,
        )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a search; {} where there is none that can be read."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(found, dict):
        return found
    return {}


def _begun(folder: Path) -> dict[str, Any] | None:
    """search.json of the search in `folder`; None before it has begun. Raises UserError."""
    try:
        return load(folder / search_file.RECORD, search_file.SearchFile, search_file.FORMAT)
    except FileNotFoundError:
        return None


def ended(folder: Path) -> bool:
    """Whether the search in `folder` has done all that it was to do, failed trials included.

    Raises UserError for a search.json that cannot be read.
    """
    record = _begun(folder)
    if record is None or not record["closed"]:
        return False
    return str(read_summary(folder).get("status")).startswith("completed")


def asked(options: Options) -> bool:
    """Whether the command line means a suite, not a search.

    Raises ConfigError for a space that cannot be read.
    """
    if options.name is not None and (options.resume or options.extend is not None):
        return (options.searches / options.name / RECORD).exists()
    return options.space is not None and is_suite(read_space(options.space))


def resolve(options: Options) -> SuitePlan:
    """The plan of a new suite, or of one that is resumed or extended.

    Raises UserError with all problems at once.
    """
    if options.resume or options.extend is not None:
        return _resumed(options)
    return _new(options)


def _new(options: Options) -> SuitePlan:
    assert options.space is not None
    document = read_space(options.space)
    suite = build_suite(document.path.stem, document)
    spaces = spaces_of(suite, options.overrides)
    name = options.name or _free_name(options.searches, suite.name)
    folder = options.searches / name
    if (folder / RECORD).exists() or (folder / search_file.RECORD).exists():
        raise UserError(
            f"--name: '{name}' exists already in {folder}; "
            f"continue it with --name {name} --resume, or choose another --name"
        )
    data_root = options.data_root
    record = {
        "format": FORMAT,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "suite": {
            "name": suite.name,
            "path": str(document.path.resolve()),
            "values": document.data,
        },
        "members": {member.name: _as_record(member) for member in suite.members},
        "trials": options.trials or suite.spec.trials,
        "seed": options.seed,
        "epochs": options.epochs,
        "overrides": dict(options.overrides),
        "storage": options.storage,
        "data_root": None if data_root is None else str(data_root.absolute()),
        "require_real": options.require_real,
        "tracking_uri": options.tracking_uri,
    }
    return SuitePlan(name, folder, suite, spaces, options, record)


def _as_record(member: Member) -> dict[str, Any]:
    return {
        "origin": member.origin,
        "baseline": member.baseline,
        "values": member.document.data,
    }


def _as_member(name: str, record: Mapping[str, Any]) -> Member:
    document = Document(record["values"], {}, Path(f"{record['origin']}.yaml"))
    return Member(name, record["origin"], document, record["baseline"])


def _resumed(options: Options) -> SuitePlan:
    record = _find(options)
    _require_unchanged(options, record)
    saved = record["suite"]
    members = [_as_member(name, one) for name, one in record["members"].items()]
    spec = read_spec(Document(saved["values"], {}, Path(saved["path"])))
    suite = Suite(saved["name"], spec, tuple(members))
    record = {**record, "trials": record["trials"] + (options.extend or 0)}
    data_root = options.data_root
    if data_root is None and record["data_root"]:
        data_root = Path(record["data_root"])
    options = replace(
        options,
        data_root=data_root,
        require_real=options.require_real or record["require_real"],
        tracking_uri=options.tracking_uri or record["tracking_uri"],
    )
    return SuitePlan(
        name=record["name"],
        folder=options.searches / record["name"],
        suite=suite,
        spaces=spaces_of(suite, record["overrides"]),
        options=options,
        record=record,
    )


def _require_unchanged(options: Options, record: Mapping[str, Any]) -> None:
    """Raises UserError where flags or the suite's files are no longer what they were."""
    problems = list(search_file.changed(vars(options), record))
    saved = record["suite"]
    path = Path(saved["path"])
    if path.is_file():
        suite = build_suite(saved["name"], read_yaml(path))
        now = {}
        for member in suite.members:
            now[member.name] = member.document.data
        before = {}
        for name, one in record["members"].items():
            before[name] = one["values"]
        problems += search_file.differences("the suite", str(path), before, now)
    if problems:
        raise UserError("\n".join([f"{record['name']} cannot go on as it began:", *problems]))


def _find(options: Options) -> dict[str, Any]:
    """suite.json of `--name`, or of the latest one of `--space`. Raises UserError."""
    if options.name is not None:
        return load(options.searches / options.name / RECORD, SuiteFile, FORMAT)
    assert options.space is not None
    stem = read_space(options.space).path.stem
    records = load_all(options.searches, RECORD, SuiteFile, FORMAT)
    ours = [record for record in records if record["suite"]["name"] == stem]
    if not ours:
        raise UserError(f"--resume: no searches of the suite '{stem}' in {options.searches}")
    return max(ours, key=lambda record: str(record["created"]))


def _free_name(searches: Path, suite: str) -> str:
    """<suite>-<n> with the first n that nothing has."""
    number = 1
    while (searches / f"{suite}-{number}" / RECORD).exists():
        number += 1
    return f"{suite}-{number}"
