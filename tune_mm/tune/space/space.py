"""A search space: one flat YAML file, strict, with every mistake reported before anything starts.

See search_spaces/*.yaml for examples and `domains.py` for what a setting may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from tune_mm import plugins
from tune_mm.config import (
    Config,
    ConfigError,
    Section,
    field_types,
    file_names,
    find_file,
    flatten,
    load_config,
    read_yaml,
    with_overrides,
)
from tune_mm.config.explain import explain
from tune_mm.config.sections import PLUGINS
from tune_mm.config.yaml import Document
from tune_mm.errors import nearest
from tune_mm.stats import Direction, direction
from tune_mm.tune.space import checks
from tune_mm.tune.space.domains import LISTS, Domain, Domains, Values, parse
from tune_mm.tune.space.drawing import active, ordered
from tune_mm.tune.space.spec import SpaceSpec

FOLDER: Literal["search_spaces"] = "search_spaces"


@dataclass(frozen=True)
class Space:
    """A checked space."""

    name: str
    spec: SpaceSpec  # the file as written
    base: Config  # with method, set and overrides applied
    domains: Domains  # what is searched, by dotted key
    defaults: tuple[Values, ...]  # published settings, which run first
    raw: Mapping[str, Any]  # the file's values

    @property
    def mode(self) -> Direction:
        """Which way the objective is better."""
        return direction(self.spec.objective)

    @property
    def exhaustive(self) -> bool:
        """Whether every point of the grid goes into the finals, and nothing is tuned."""
        return self.spec.finals.top == "all"

    @property
    def conditional(self) -> bool:
        """Whether trials differ in what is drawn for them."""
        return any(domain.when for domain in self.domains.values())


def read(name_or_path: str) -> Document:
    """The file of a space by name or path. Raises ConfigError (unknown name: with the nearest)."""
    return read_yaml(find_file(FOLDER, name_or_path))


def readable() -> tuple[dict[str, Document], list[str]]:
    """The files of all spaces and suites by name, and what is wrong with those that are no YAML."""
    found: dict[str, Document] = {}
    problems: list[str] = []
    for name in file_names(FOLDER):
        try:
            found[name] = read(name)
        except ConfigError as error:
            problems += error.problems
    return found, problems


def names() -> tuple[str, ...]:
    """Spaces that can be named. Files with `spaces:` are suites of them (see `suite.py`)."""
    documents, _ = readable()
    return tuple(name for name, document in documents.items() if "spaces" not in document.data)


def build(name: str, document: Document, overrides: Mapping[str, Any]) -> Space:
    """The space of a file under overrides (`--set`, dotted keys): what they fix is not searched.

    `data` as the name of a configuration stands for its whole protocol (`--set data=avdigits`), in
    place of `config`. Raises ConfigError with all problems, each with file and line.
    """
    spec = _validated(document, overrides)
    spec, overrides = _with_protocol(spec, overrides)
    written, problems = _parsed(spec, document)
    domains = {}
    for key, domain in written.items():
        if key not in overrides:
            domains[key] = domain
    problems += checks.objective(spec, document)
    problems += checks.exhaustive(spec, document)
    try:
        base = _base(spec, document, overrides)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += checks.domains(base, domains, document)
    defaults = [_without(one, overrides) for one in spec.defaults]
    fixed = spec.domains.keys() - domains.keys()
    problems += checks.defaults(base, domains, defaults, fixed, document)
    if not problems and not domains:
        where = document.where("domains")
        problems.append(f"nothing is left to search: every domain is fixed by --set ({where})")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    completed = tuple(_completed(one, base, domains) for one in defaults)
    return Space(name, spec, base, domains, completed, document.data)


def variants(space: Space) -> list[Values]:
    """What a search may make of its config, one change at a time.

    Only changes that decide whether a model can be built: choices of the model and the method.
    """
    known = field_types(space.base)
    out: list[Values] = [{}]
    for key, domain in space.domains.items():
        if domain.when:
            continue
        if domain.kind in LISTS and key.startswith(("model.", "method.")):
            out += [{key: value} for value in domain.args]
        elif key not in known and key not in PLUGINS:
            # A key inside a mapping, such as a modality's name: only the data can refuse it.
            out.append({key: domain.bounds()[0]})
    return out


def section_keys(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a section and of those in it, with their annotations."""
    for name, info in cls.model_fields.items():
        key = prefix + name
        yield key, info.annotation
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from section_keys(info.annotation, f"{key}.")


def _validated(document: Document, overrides: Mapping[str, Any]) -> SpaceSpec:
    values = dict(document.data)
    if isinstance(values.get("defaults"), list):
        values["defaults"] = tuple(values["defaults"])  # which a strict model asks for
    try:
        return SpaceSpec.model_validate(values)
    except ValidationError as error:
        keys = dict(section_keys(SpaceSpec))
        found = explain(error, document.data, keys, lambda k: (k, f" ({document.where(k)})"))
        wrong = set()
        for one in error.errors():
            if one["loc"]:
                wrong.add(str(one["loc"][0]))
        others = _problems_without(wrong, document, overrides)
        raise ConfigError([*found, *others]) from None


def _problems_without(
    wrong: set[str], document: Document, overrides: Mapping[str, Any]
) -> tuple[str, ...]:
    """What else is wrong with a file, in the sections that can be read without those in `wrong`."""
    required = set()
    for name, info in SpaceSpec.model_fields.items():
        if info.is_required():
            required.add(name)
    if not wrong or wrong & required:
        return ()
    rest = {}
    for key, value in document.data.items():
        if key not in wrong:
            rest[key] = value
    try:
        build("", dataclasses.replace(document, data=rest), overrides)
    except ConfigError as error:
        return error.problems
    return ()


def _with_protocol(
    spec: SpaceSpec, overrides: Mapping[str, Any]
) -> tuple[SpaceSpec, Mapping[str, Any]]:
    """`data` given by the name of a configuration replaces `config`."""
    named = overrides.get("data")
    protocols = file_names("configs")
    if named in protocols:
        return spec.model_copy(update={"config": named}), _without(overrides, {"data"})
    plugin_names = plugins.available("data")
    if isinstance(named, str) and named not in plugin_names:
        known = sorted({*protocols, *plugin_names})
        hint = nearest(named, known)
        raise ConfigError(f"data: no '{named}'{hint}; available: {', '.join(known)} (--set)")
    return spec, overrides


def _parsed(spec: SpaceSpec, document: Document) -> tuple[dict[str, Domain], list[str]]:
    """Domains by key, and what is wrong with the others."""
    found: dict[str, Domain] = {}
    problems: list[str] = []
    for key, raw in spec.domains.items():
        domain = parse(raw)
        if isinstance(domain, Domain):
            found[key] = domain
        else:
            problems.append(f"domains.{key}: {domain} ({document.where(f'domains.{key}')})")
    return found, problems


def _without(values: Mapping[str, Any], keys: Mapping[str, Any] | set[str]) -> Values:
    found = {}
    for key, value in values.items():
        if key not in keys:
            found[key] = value
    return found


def _base(spec: SpaceSpec, document: Document, overrides: Mapping[str, Any]) -> Config:
    """The config with everything fixed applied. Raises ConfigError."""
    try:
        found = load_config(spec.config)
    except ConfigError as error:
        where = f"(config: in {document.where('config')})"
        raise ConfigError([f"{problem} {where}" for problem in error.problems]) from None
    steps: list[tuple[Mapping[str, Any], str]] = []
    if spec.method:
        steps.append(({"method": spec.method}, "method"))
    steps.append((spec.set, "set"))
    steps.append((overrides, ""))
    if spec.objective.startswith("val/"):
        steps.append(({"train.monitor": spec.objective}, "objective"))
    problems: list[str] = []
    for values, section in steps:
        try:
            found = with_overrides(found, values)
        except ConfigError as error:
            problems += [f"{p} ({_place(document, section, p)})" for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return found


def _place(document: Document, section: str, problem: str) -> str:
    """Where the key that a config message starts with was given."""
    if not section:
        return "--set"
    if section == "set":
        key = problem.partition(":")[0]
        return document.where(f"set.{key}")
    return document.where(section)


def _completed(one: Values, base: Config, domains: Domains) -> Values:
    """A published setting with what it leaves out as the config has it, where that can be drawn."""
    configured = flatten(base)
    out: Values = {}
    for key in ordered(domains):
        domain = domains[key]
        if key in one:
            out[key] = one[key]
        elif active(domain, out, configured) and domain.contains(configured.get(key)):
            out[key] = configured[key]
    return out
