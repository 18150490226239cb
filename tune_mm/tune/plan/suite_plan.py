"""What a suite will do, decided before anything starts, and `suite.json`, which makes it resumable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tune_mm.config import read_yaml
from tune_mm.config.yaml import Document, write_yaml
from tune_mm.errors import UserError
from tune_mm.filesystem import write_json
from tune_mm.tune.plan import search_file
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.space import space as S
from tune_mm.tune.space import suite as U
from tune_mm.tune.space.space import Space
from tune_mm.tune.space.suite import Member, Suite

FORMAT = 1
RECORD = "suite.json"


@dataclass(frozen=True)
class SuitePlan:
    """A resolved suite. folder: of its own, beside those of its searches; spaces: by name of the
    member.
    """

    name: str
    folder: Path
    suite: Suite
    spaces: Mapping[str, Space]
    options: Options
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
        """The space of a member as a file that a search can be started with; its name is the
        experiment's.
        """
        path = folder / member.name / f"{self.suite.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write_yaml(member.document.data))
        return path

    def member_options(self, member: Member, folder: Path) -> Options | None:
        """What a member's search is to be called with; None when it has ended.

        folder: of the spaces' files. One that has begun goes on, with as many more trials as the
        suite has got since.
        """
        name, kept = self.search(member), self.record
        there = self.options.searches / name
        common = replace(self.options, space=None, name=name, trials=None, epochs=None, seed=None, overrides={},
                         storage=None, resume=False, extend=None, suite=self.name)  # fmt: skip
        begun = read(there / search_file.RECORD)
        if begun is None:
            own = {k: kept[k] for k in ("trials", "epochs", "seed", "overrides", "storage")}
            return replace(common, space=str(self.write(folder, member)), **own)
        if more := self.trials - begun["trials"]:
            return replace(common, extend=more)
        return None if ended(there) else replace(common, resume=True)


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None when there is none. Raises UserError for one that cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return found


def ended(folder: Path) -> bool:
    """Whether the search in `folder` has done all that it was to do, failed trials included."""
    record, summary = read(folder / search_file.RECORD), read(folder / "summary.json")
    closed = record is not None and bool(record.get("closed"))
    return closed and summary is not None and str(summary["status"]).startswith("completed")


def asked(options: Options) -> bool:
    """Whether the command line means a suite, not a search. Raises ConfigError for a space that
    cannot be read.
    """
    if options.name is not None and (options.resume or options.extend is not None):
        return (options.searches / options.name / RECORD).exists()
    return options.space is not None and U.is_suite(S.read(options.space))


def resolve(options: Options) -> SuitePlan:
    """The plan of a new suite, or of one that is resumed or extended. Raises UserError (all
    problems at once).
    """
    if options.resume or options.extend is not None:
        return _continued(options)
    assert options.space is not None
    document = S.read(options.space)
    suite = U.build(document.path.stem, document)
    spaces = U.spaces(suite, options.overrides)
    name = options.name or _free(options.searches, suite.name)
    folder = options.searches / name
    if (folder / RECORD).exists() or (folder / search_file.RECORD).exists():
        way = f"continue it with --name {name} --resume, or choose another --name"
        raise UserError(f"--name: '{name}' exists already in {folder}; {way}")
    record = {
        "format": FORMAT,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "suite": {"name": suite.name, "path": str(document.path.resolve()), "values": document.data},
        "members": {m.name: {"origin": m.origin, "baseline": m.baseline, "values": m.document.data}
                    for m in suite.members},
        "trials": options.trials or suite.spec.trials,
        "seed": options.seed,
        "epochs": options.epochs,
        "overrides": dict(options.overrides),
        "storage": options.storage,
        "data_root": options.data_root and str(options.data_root.absolute()),
        "require_real": options.require_real,
        "tracking_uri": options.tracking_uri,
    }  # fmt: skip
    return SuitePlan(name, folder, suite, spaces, options, record)


def _continued(options: Options) -> SuitePlan:
    record = _find(options)
    saved, problems = record["suite"], list(search_file.changed(vars(options), record))
    path = Path(saved["path"])
    if path.is_file():
        now = {m.name: m.document.data for m in U.build(saved["name"], read_yaml(path)).members}
        before = {name: one["values"] for name, one in record["members"].items()}
        problems += search_file.differences("the suite", str(path), before, now)
    if problems:
        raise UserError("\n".join([f"{record['name']} cannot go on as it began:", *problems]))
    members = tuple(
        Member(
            name,
            one["origin"],
            Document(one["values"], {}, Path(f"{one['origin']}.yaml")),
            one["baseline"],
        )
        for name, one in record["members"].items()
    )
    spec = U.read_spec(Document(saved["values"], {}, path))
    suite = Suite(saved["name"], spec, members)
    record = {**record, "trials": record["trials"] + (options.extend or 0)}
    root = options.data_root or (record["data_root"] and Path(record["data_root"]))
    options = replace(options, data_root=root, require_real=options.require_real or record["require_real"],
                      tracking_uri=options.tracking_uri or record["tracking_uri"])  # fmt: skip
    spaces = U.spaces(suite, record["overrides"])
    return SuitePlan(
        record["name"], options.searches / record["name"], suite, spaces, options, record
    )


def _find(options: Options) -> dict[str, Any]:
    """suite.json of `--name`, or of the latest one of `--space`. Raises UserError."""
    if options.name is not None:
        found = read(options.searches / options.name / RECORD)
    else:
        assert options.space is not None
        stem = S.read(options.space).path.stem
        ours = [r for r in _all(options.searches) if r["suite"]["name"] == stem]
        found = max(ours, key=lambda r: str(r["created"]), default=None)
        if found is None:
            raise UserError(f"--resume: no searches of the suite '{stem}' in {options.searches}")
    assert found is not None
    if found.get("format") != FORMAT:
        raise UserError(
            f"{found['name']}: {RECORD} has format {found.get('format')}, this version reads {FORMAT}"
        )
    return found


def _all(searches: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(searches.glob(f"*/{RECORD}")):
        found = read(path)
        if found is not None:
            yield found


def _free(searches: Path, suite: str) -> str:
    """<suite>-<n> with the first n that nothing has."""
    number = 1
    while (searches / f"{suite}-{number}" / RECORD).exists():
        number += 1
    return f"{suite}-{number}"
