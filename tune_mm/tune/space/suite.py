"""A suite: several spaces searched on one data set with the same number of trials and seeds, to
compare their methods.

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

from tune_mm.config import ConfigError, Section, file_names, flatten
from tune_mm.config.explain import explain
from tune_mm.config.sections import PLUGINS
from tune_mm.config.yaml import Document
from tune_mm.errors import nearest
from tune_mm.tune.space import space as S
from tune_mm.tune.space.space import Space
from tune_mm.tune.space.spec import ResourceSpec, SchedulerSpec, SearcherSpec

OWN = "method."  # settings that belong to the method; all others are ground that methods share
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _entry(value: Any) -> Any:
    return {"space": value} if isinstance(value, str) else value


class Entry(Section):
    """One space of a suite. name: what it is called (null: its method). set, domains: its own,
    before the suite's; a domain null is not searched. baseline: the name that its gain is stated
    over (null: the suite's).
    """

    space: str = Field(min_length=1)
    name: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    domains: dict[str, Any] = Field(default_factory=dict)
    baseline: str | None = None


class SuiteFinals(Section):
    """The best setting of each search is rerun over `seeds` seeds. epochs: null: the config's."""

    seeds: int = Field(3, ge=1)
    epochs: int | None = Field(None, ge=1)


class SuiteSpec(Section):
    """The file as written. domains: what all search beside `method.*`, in place of what the spaces
    do (none: as they do). baseline: the search over which gains are stated.
    """

    config: str = Field(min_length=1)
    objective: str
    spaces: tuple[Annotated[Entry, BeforeValidator(_entry)], ...] = Field(min_length=1)
    baseline: str = "joint"
    set: dict[str, Any] = Field(default_factory=dict)
    domains: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(20, ge=1)
    searcher: Annotated[SearcherSpec, BeforeValidator(_named)] = SearcherSpec()
    scheduler: Annotated[SchedulerSpec, BeforeValidator(_named)] = SchedulerSpec()
    resources: ResourceSpec = ResourceSpec()
    finals: SuiteFinals = SuiteFinals()


@dataclass(frozen=True)
class Member:
    """One search of a suite. origin: the space it is made of; document: the space as the suite has
    it; baseline: the name of the member that its gain is stated over.
    """

    name: str
    origin: str
    document: Document
    baseline: str


@dataclass(frozen=True)
class Suite:
    """A checked suite. Its members in the order of the file."""

    name: str
    spec: SuiteSpec
    members: tuple[Member, ...]


@dataclass(frozen=True)
class _Merged(Document):
    """A space whose values come partly from a suite: `taken` says from which of its keys."""

    suite: Document
    taken: Mapping[str, str]

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
    return tuple(name for name in file_names(S.FOLDER) if is_suite(S.read(name)))


def build(name: str, document: Document) -> Suite:
    """The suite of a file, without its spaces' own mistakes: `Member.document` is still to be built
    by `space.build`.

    Raises ConfigError with all problems, each with file and line.
    """
    spec = read_spec(document)
    members: list[Member] = []
    problems = []
    if spec.searcher.name == "grid":
        problems.append(
            f"searcher: must not be grid: spaces have grids of unlike size ({document.where('searcher')})"
        )
    for i, entry in enumerate(spec.spaces):
        try:
            members.append(_member(spec, document, i, entry, {m.name for m in members}))
        except ConfigError as error:
            problems += error.problems
    known = [m.name for m in members]
    lost = {
        m.baseline: next(_baseline_key(spec, m.baseline))
        for m in members
        if m.baseline not in known
    }
    for one, key in lost.items() if len(members) == len(spec.spaces) else ():
        allowed = ", ".join(known)
        hint = nearest(one, known)
        problems.append(
            f"{key}: no search '{one}'{hint}; available: {allowed} ({document.where(key)})"
        )
    if problems:
        raise ConfigError(problems)
    return Suite(name, spec, tuple(members))


def _baseline_key(spec: SuiteSpec, name: str) -> Iterator[str]:
    yield from (
        f"spaces.{i}.baseline" for i, entry in enumerate(spec.spaces) if entry.baseline == name
    )
    yield "baseline"


def read_spec(document: Document) -> SuiteSpec:
    """The file as written. Raises ConfigError with all problems."""
    values = {
        k: tuple(v) if k == "spaces" and isinstance(v, list) else v
        for k, v in document.data.items()
    }
    try:
        return SuiteSpec.model_validate(values)
    except ValidationError as error:
        keys = dict(_keys(SuiteSpec))
        given = document.data.get("spaces")
        for i in range(len(given) if isinstance(given, list) else 0):
            keys |= dict(_keys(Entry, f"spaces.{i}."))
        found = explain(error, document.data, keys, lambda k: (k, f" ({document.where(k)})"))
        raise ConfigError(list(found)) from None


def _keys(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, info in cls.model_fields.items():
        yield prefix + name, info.annotation
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _keys(info.annotation, f"{prefix}{name}.")


def _member(spec: SuiteSpec, document: Document, i: int, entry: Entry, taken: set[str]) -> Member:
    """Raises ConfigError for a space that is wrong in itself, or cannot be in a suite."""
    where = f" ({document.where(f'spaces.{i}')})"
    try:
        found = S.read(entry.space)
        space = S.build(found.path.stem, found, {})
    except ConfigError as error:
        raise ConfigError([f"{p} (spaces.{i}{where})" for p in error.problems]) from None
    if space.exhaustive:
        raise ConfigError(
            f"spaces.{i}: {space.name} tunes nothing (finals.top: all), so cannot be compared{where}"
        )
    for key in (*entry.set, *entry.domains):
        if key.partition(".")[0] == "data":
            raise ConfigError(
                f"spaces.{i}: {key} must not be its own: all searches of a suite have the same data{where}"
            )
    name = entry.name or space.base.method.name
    if name in taken:
        raise ConfigError(
            f"spaces.{i}: there is a search '{name}' already; give this one a name of its own{where}"
        )
    if not _NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-' (at most 50)"
        raise ConfigError(f"spaces.{i}.name: must be {allowed}, got '{name}'{where}")
    merged = _merged(spec, document, i, found)
    if "domains" not in merged.data:
        raise ConfigError(f"spaces.{i}: nothing is left to search of {space.name}{where}")
    return Member(name, space.name, merged, entry.baseline or spec.baseline)


def _merged(suite: SuiteSpec, document: Document, i: int, found: Document) -> Document:
    """The space `found` as entry `i` of a suite has it."""
    entry, raw, written = suite.spaces[i], found.data, document.data
    taken = {
        key: key
        for key in ("config", "objective", "trials", "searcher", "scheduler", "resources", "finals")
    }
    taken |= {f"set.{k}": f"set.{k}" for k in suite.set}
    taken |= {f"set.{k}": f"spaces.{i}.set.{k}" for k in entry.set}
    fixed = {**suite.set, **entry.set}
    before: dict[str, Any] = raw["domains"]
    kept_out = {*fixed, *raw.get("set", {})}
    shared = {k: d for k, d in suite.domains.items() if not any(_overlap(k, f) for f in kept_out)}
    domains = {k: d for k, d in before.items() if not suite.domains or k.startswith(OWN)} | shared
    taken |= {f"domains.{k}": f"domains.{k}" for k in shared}
    domains |= entry.domains
    taken |= {f"domains.{k}": f"spaces.{i}.domains.{k}" for k in entry.domains}
    domains = {
        k: d for k, d in domains.items() if d is not None and not any(_overlap(k, f) for f in fixed)
    }
    # A published value of what the suite searches otherwise is none any more: the config's takes
    # its place.
    same = {k for k in domains if domains[k] == before.get(k)}
    values = {
        "config": suite.config,
        "method": raw.get("method"),
        "objective": suite.objective,
        "set": {**raw.get("set", {}), **fixed},
        "domains": domains,
        "defaults": _distinct(
            [{k: v for k, v in one.items() if k in same} for one in raw.get("defaults", [])]
        ),
        "trials": suite.trials,
        "searcher": written.get("searcher", {}),
        "scheduler": written.get("scheduler", {}),
        "resources": written.get("resources", {}),
        "finals": {"top": 1, **written.get("finals", {})},
    }
    return _Merged(
        {k: v for k, v in values.items() if v not in ({}, None)},
        found.lines,
        found.path,
        document,
        taken,
    )


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one holds the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _distinct(defaults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for i, one in enumerate(defaults) if one not in defaults[:i]]


def spaces(suite: Suite, overrides: Mapping[str, Any]) -> dict[str, Space]:
    """Every member's space by name, under the same overrides (`--set`). Raises ConfigError with all
    problems.
    """
    out: dict[str, Space] = {}
    problems: list[str] = []
    for member in suite.members:
        try:
            out[member.name] = S.build(suite.name, member.document, overrides)
        except ConfigError as error:
            problems += [f"{member.name}: {p}" for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return out


def deviations(space: Space, reference: Space) -> list[str]:
    """In what the ground that `space` stands on differs from the reference's: settings other than
    the method's, and what is searched of them. `model.fusion=shared_head`: fixed; `optim.lr in
    uniform [0, 1]`: searched.
    """
    ours, theirs = _ground(space), _ground(reference)
    unlike = {key: text for key, text in ours.items() if theirs.get(key) != text}
    switched = [f"{plugin}." for plugin in PLUGINS if f"{plugin}.name" in unlike]
    for plugin in switched:  # its name says enough: all its fields are its own
        unlike = {
            k: text
            for k, text in unlike.items()
            if not k.startswith(plugin) or k == f"{plugin}name"
        }
    return [key.removesuffix(".name") + text for key, text in unlike.items()]


def _ground(space: Space) -> dict[str, str]:
    """What is said of each setting outside the method: its value, or where it is searched."""
    out = {k: f" in {d.text()}" for k, d in space.domains.items() if not k.startswith(OWN)}
    leaves = {k: v for k, v in flatten(space.base).items() if not k.startswith(OWN)}
    return out | {
        k: f"={v}" for k, v in leaves.items() if not any(_overlap(k, searched) for searched in out)
    }
