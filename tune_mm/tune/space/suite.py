"""A suite: several spaces searched alike on one data set, to compare their methods.

One strict YAML file in search_spaces/, beside the spaces, with `spaces:` in it (see
methods_avdigits.yaml). What it says holds for all of them; a space keeps what is its method's own:
`method.*` settings, and what its `set` fixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from tune_mm.config import ConfigError, Section, flatten
from tune_mm.config.explain import explain
from tune_mm.config.sections import PLUGINS
from tune_mm.config.yaml import Document
from tune_mm.errors import nearest
from tune_mm.tune.space import space as space_files
from tune_mm.tune.space.space import Space, section_keys
from tune_mm.tune.space.spec import ResourceSpec, SchedulerSpec, SearcherSpec, named

OWN = "method."  # settings that belong to the method; all others are ground that methods share
# What a suite decides for all its spaces.
DECIDED = ("config", "objective", "trials", "searcher", "scheduler", "resources", "finals")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")


def _entry(value: Any) -> Any:
    """An entry written as the name of its space alone."""
    if isinstance(value, str):
        return {"space": value}
    return value


class Entry(Section):
    """One space of a suite."""

    space: str = Field(min_length=1)  # a file or a name in search_spaces/
    name: str | None = None  # what it is called; null: its method
    set: dict[str, Any] = Field(default_factory=dict)  # its own, before the suite's
    domains: dict[str, Any] = Field(default_factory=dict)  # the same; null: not searched
    baseline: str | None = None  # the entry that its gain is stated over; null: the suite's


class SuiteFinals(Section):
    """The best setting of each search is rerun over several seeds."""

    seeds: int = Field(3, ge=1)
    epochs: int | None = Field(None, ge=1)  # null: the config's


class SuiteSpec(Section):
    """The file as written."""

    config: str = Field(min_length=1)
    objective: str
    spaces: tuple[Annotated[Entry, BeforeValidator(_entry)], ...] = Field(min_length=1)
    baseline: str = "joint"  # the entry that gains are stated over
    set: dict[str, Any] = Field(default_factory=dict)
    # What all search beside `method.*`, in place of what the spaces do; none: as they do.
    domains: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(20, ge=1)
    searcher: Annotated[SearcherSpec, BeforeValidator(named)] = SearcherSpec()
    scheduler: Annotated[SchedulerSpec, BeforeValidator(named)] = SchedulerSpec()
    resources: ResourceSpec = ResourceSpec()
    finals: SuiteFinals = SuiteFinals()


@dataclass(frozen=True)
class Member:
    """One search of a suite."""

    name: str
    origin: str  # the space that it is made of
    document: Document  # that space as the suite has it
    baseline: str  # the member that its gain is stated over


@dataclass(frozen=True)
class Suite:
    """A checked suite."""

    name: str
    spec: SuiteSpec
    members: tuple[Member, ...]  # in the order of the file


@dataclass(frozen=True)
class _MergedDocument(Document):
    """A space's file, some of whose values come from a suite."""

    suite: Document
    taken: Mapping[str, str]  # keys here -> the suite's keys that their values come from

    def where(self, key: str = "") -> str:
        above = key
        while above and above not in self.taken:
            above = above.rpartition(".")[0]
        if not above:
            return super().where(key)
        return self.suite.where(self.taken[above] + key.removeprefix(above))


def is_suite(document: Document) -> bool:
    """Whether a file of search_spaces/ is a suite, not a space."""
    return "spaces" in document.data


def names() -> tuple[str, ...]:
    """Suites that can be named."""
    documents, _ = space_files.readable()
    return tuple(name for name, document in documents.items() if is_suite(document))


def build(name: str, document: Document) -> Suite:
    """The suite of a file. Its spaces' own mistakes are found by `spaces`.

    Raises ConfigError with all problems, each with file and line.
    """
    spec = read_spec(document)
    problems: list[str] = []
    if spec.searcher.name == "grid":
        where = document.where("searcher")
        problems.append(f"searcher: must not be grid: spaces have grids of unlike size ({where})")
    members: list[Member] = []
    for number, entry in enumerate(spec.spaces):
        try:
            taken = {member.name for member in members}
            members.append(_member(spec, document, number, entry, taken))
        except ConfigError as error:
            problems += error.problems
    if len(members) == len(spec.spaces):
        problems += _unknown_baselines(spec, document, members)
    if problems:
        raise ConfigError(problems)
    return Suite(name, spec, tuple(members))


def _unknown_baselines(spec: SuiteSpec, document: Document, members: list[Member]) -> Iterator[str]:
    known = [member.name for member in members]
    for name in dict.fromkeys(member.baseline for member in members):
        if name not in known:
            key = _baseline_key(spec, name)
            hint = f"no search '{name}'{nearest(name, known)}"
            yield f"{key}: {hint}; available: {', '.join(known)} ({document.where(key)})"


def _baseline_key(spec: SuiteSpec, name: str) -> str:
    """The first key that names this baseline."""
    for number, entry in enumerate(spec.spaces):
        if entry.baseline == name:
            return f"spaces.{number}.baseline"
    return "baseline"


def read_spec(document: Document) -> SuiteSpec:
    """The file as written. Raises ConfigError with all problems."""
    values = dict(document.data)
    entries = values.get("spaces")
    if isinstance(entries, list):
        values["spaces"] = tuple(entries)  # which a strict model asks for
    try:
        return SuiteSpec.model_validate(values)
    except ValidationError as error:
        keys = dict(section_keys(SuiteSpec))
        for number in range(len(entries) if isinstance(entries, list) else 0):
            keys |= section_keys(Entry, f"spaces.{number}.")
        found = explain(error, document.data, keys, lambda k: (k, f" ({document.where(k)})"))
        raise ConfigError(list(found)) from None


def _member(
    spec: SuiteSpec, document: Document, number: int, entry: Entry, taken: set[str]
) -> Member:
    """Raises ConfigError for a space that is wrong in itself, or cannot be in a suite."""
    place = f"spaces.{number}"
    where = f" ({document.where(place)})"
    try:
        found = space_files.read(entry.space)
        space = space_files.build(found.path.stem, found, {})
    except ConfigError as error:
        problems = [f"{problem} ({place}{where})" for problem in error.problems]
        raise ConfigError(problems) from None
    if space.exhaustive:
        rule = "tunes nothing (finals.top: all), so cannot be compared"
        raise ConfigError(f"{place}: {space.name} {rule}{where}")
    for key in (*entry.set, *entry.domains):
        if key.partition(".")[0] == "data":
            rule = "must not be its own: all searches of a suite have the same data"
            raise ConfigError(f"{place}: {key} {rule}{where}")
    name = entry.name or space.base.method.name
    if name in taken:
        rule = f"there is a search '{name}' already; give this one a name of its own"
        raise ConfigError(f"{place}: {rule}{where}")
    if not _NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-' (at most 50)"
        raise ConfigError(f"{place}.name: must be {allowed}, got '{name}'{where}")
    merged = _merged(spec, document, number, found)
    if "domains" not in merged.data:
        raise ConfigError(f"{place}: nothing is left to search of {space.name}{where}")
    return Member(name, space.name, merged, entry.baseline or spec.baseline)


def _merged(suite: SuiteSpec, document: Document, number: int, found: Document) -> Document:
    """The space `found` as entry `number` of a suite has it."""
    entry = suite.spaces[number]
    fixed = {**suite.set, **entry.set}
    domains, taken = _merged_domains(suite, number, found.data, fixed)
    for key in DECIDED:
        taken[key] = key
    for key in suite.set:
        taken[f"set.{key}"] = f"set.{key}"
    for key in entry.set:
        taken[f"set.{key}"] = f"spaces.{number}.set.{key}"
    values = {
        "config": suite.config,
        "method": found.data.get("method"),
        "objective": suite.objective,
        "set": {**found.data.get("set", {}), **fixed},
        "domains": domains,
        "defaults": _defaults(found.data, domains),
        "trials": suite.trials,
        "searcher": document.data.get("searcher", {}),
        "scheduler": document.data.get("scheduler", {}),
        "resources": document.data.get("resources", {}),
        "finals": {"top": 1, **document.data.get("finals", {})},
    }
    given = {key: value for key, value in values.items() if value not in ({}, None)}
    return _MergedDocument(given, found.lines, found.path, document, taken)


def _merged_domains(
    suite: SuiteSpec, number: int, raw: Mapping[str, Any], fixed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What an entry searches, and from which of the suite's keys it comes.

    The space's own domains (of the method alone where the suite has any), then the suite's but for
    what the space fixes, then the entry's; without those that the suite or the entry fixes.
    """
    entry = suite.spaces[number]
    domains: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for key, domain in raw["domains"].items():
        if not suite.domains or key.startswith(OWN):
            domains[key] = domain
    settled = {*fixed, *raw.get("set", {})}
    for key, domain in suite.domains.items():
        if not _overlaps_any(key, settled):
            domains[key] = domain
            taken[f"domains.{key}"] = f"domains.{key}"
    for key, domain in entry.domains.items():
        domains[key] = domain
        taken[f"domains.{key}"] = f"spaces.{number}.domains.{key}"
    for key, domain in list(domains.items()):
        if domain is None or _overlaps_any(key, fixed):
            del domains[key]
    return domains, taken


def _defaults(raw: Mapping[str, Any], domains: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The published settings of a space, each once, as far as they still are published ones.

    A value of what the suite searches otherwise is none any more: the config's takes its place.
    """
    before = raw["domains"]
    same = set()
    for key, domain in domains.items():
        if domain == before.get(key):
            same.add(key)
    out: list[dict[str, Any]] = []
    for one in raw.get("defaults", []):
        kept = {key: value for key, value in one.items() if key in same}
        if kept not in out:
            out.append(kept)
    return out


def _overlaps_any(key: str, others: Mapping[str, Any] | set[str]) -> bool:
    """Whether a dotted key is one of `others`, holds one, or lies in one."""
    path = f"{key}."
    return any(path.startswith(f"{other}.") or f"{other}.".startswith(path) for other in others)


def spaces(suite: Suite, overrides: Mapping[str, Any]) -> dict[str, Space]:
    """Every member's space by name, under the same overrides (`--set`).

    Raises ConfigError with all problems.
    """
    out: dict[str, Space] = {}
    problems: list[str] = []
    for member in suite.members:
        try:
            out[member.name] = space_files.build(suite.name, member.document, overrides)
        except ConfigError as error:
            problems += [f"{member.name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return out


def deviations(space: Space, reference: Space) -> list[str]:
    """In what the ground that `space` stands on differs from the reference's.

    Ground are settings other than the method's, and what is searched of them.
    `model.fusion=shared_head`: fixed; `optim.lr in uniform [0, 1]`: searched.
    """
    theirs = _ground(reference)
    unlike = {key: text for key, text in _ground(space).items() if theirs.get(key) != text}
    for plugin in PLUGINS:
        name = f"{plugin}.name"
        if name in unlike:  # its name says enough: all its fields are its own
            inner = [key for key in unlike if key.startswith(f"{plugin}.") and key != name]
            for key in inner:
                del unlike[key]
    return [key.removesuffix(".name") + text for key, text in unlike.items()]


def _ground(space: Space) -> dict[str, str]:
    """What is said of each setting outside the method: its value, or where it is searched."""
    searched: dict[str, str] = {}
    for key, domain in space.domains.items():
        if not key.startswith(OWN):
            searched[key] = f" in {domain.text()}"
    out = dict(searched)
    for key, value in flatten(space.base).items():
        if not key.startswith(OWN) and not _overlaps_any(key, searched):
            out[key] = f"={value}"
    return out
