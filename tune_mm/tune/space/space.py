"""A search space: one flat YAML file, strict, with every mistake reported at once before anything
starts.

See search_spaces/*.yaml for examples and `domains.py` for what a setting may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from tune_mm import plugins
from tune_mm.config import (
    Config,
    ConfigError,
    Section,
    check_field,
    field_types,
    file_names,
    find_file,
    flatten,
    load_config,
    read_yaml,
    with_overrides,
)
from tune_mm.config.explain import explain, show
from tune_mm.config.sections import PLUGINS
from tune_mm.config.yaml import Document
from tune_mm.core import metrics
from tune_mm.errors import nearest
from tune_mm.tune.space import domains as D
from tune_mm.tune.space.drawing import active, key_value, ordered
from tune_mm.tune.space.spec import SpaceSpec

# Settings that a search decides for its trials.
OWN = {
    "name": "config",
    "seed": "--seed, finals.seeds",
    "train.epochs": "scheduler.epochs",
    "train.monitor": "objective",
}
FOLDER: Literal["search_spaces"] = "search_spaces"


@dataclass(frozen=True)
class Space:
    """A checked space: `base` is the config with method, set and overrides applied; raw: the file's
    values.
    """

    name: str
    spec: SpaceSpec
    base: Config
    domains: Mapping[str, D.Domain]
    defaults: tuple[dict[str, Any], ...]
    raw: Mapping[str, Any]

    @property
    def mode(self) -> str:
        """Which way the objective is better."""
        return metrics.mode(self.spec.objective)

    @property
    def exhaustive(self) -> bool:
        """Every point of the grid goes into the finals; there is nothing to tune."""
        return self.spec.finals.top == "all"

    @property
    def conditional(self) -> bool:
        return any(d.when for d in self.domains.values())


def read(name_or_path: str) -> Document:
    """The file of a space by name or path. Raises ConfigError (unknown name: with the nearest)."""
    return read_yaml(find_file(FOLDER, name_or_path))


def names() -> tuple[str, ...]:
    """Spaces that can be named. Files with `spaces:` are suites of them (see `suite.py`)."""
    return tuple(name for name in file_names(FOLDER) if "spaces" not in read(name).data)


def build(name: str, document: Document, overrides: Mapping[str, Any]) -> Space:
    """The space of a file under overrides (`--set`, dotted keys): an overridden setting is no
    longer searched.

    `data` as the name of a configuration stands for its whole protocol (`--set data=avdigits`), in
    place of `config`. Raises ConfigError with all problems, each with file and line.
    """
    spec = _spec(document, overrides)
    named, protocols = overrides.get("data"), file_names("configs")
    if named in protocols:
        spec = spec.model_copy(update={"config": named})
        overrides = {k: v for k, v in overrides.items() if k != "data"}
    elif isinstance(named, str) and named not in plugins.available("data"):
        known = sorted({*protocols, *plugins.available("data")})
        raise ConfigError(
            [f"data: no '{named}'{nearest(named, known)}; available: {', '.join(known)} (--set)"]
        )
    parsed = {k: D.parse(v) for k, v in spec.domains.items()}
    problems = [
        f"domains.{k}: {p} ({document.where(f'domains.{k}')})"
        for k, p in parsed.items()
        if isinstance(p, str)
    ]
    problems += [*_objective(spec, document), *_exhaustive(spec, document)]
    domains = {k: d for k, d in parsed.items() if isinstance(d, D.Domain) and k not in overrides}
    try:
        base = _base(spec, document, overrides)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += _domains(base, domains, document)
    defaults = tuple({k: v for k, v in one.items() if k not in overrides} for one in spec.defaults)
    problems += _defaults(base, domains, defaults, set(parsed) - set(domains), document)
    if not problems and not domains:
        problems.append(
            f"nothing is left to search: every domain is fixed by --set ({document.where('domains')})"
        )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Space(
        name, spec, base, domains, tuple(_filled(d, base, domains) for d in defaults), document.data
    )


def _filled(
    one: Mapping[str, Any], base: Config, domains: Mapping[str, D.Domain]
) -> dict[str, Any]:
    """A default with what it leaves out as the config has it (where that can be drawn): published
    is published.
    """
    flat, out = flatten(base), dict[str, Any]()
    for key in ordered(domains):
        if key in one:
            out[key] = one[key]
        elif active(domains[key], out, flat) and domains[key].contains(flat.get(key)):
            out[key] = flat[key]
    return out


def _spec(document: Document, overrides: Mapping[str, Any]) -> SpaceSpec:
    try:
        return SpaceSpec.model_validate(_tuples(document.data))
    except ValidationError as error:
        keys = dict(_keys(SpaceSpec))
        found = explain(error, document.data, keys, lambda k: (k, f" ({document.where(k)})"))
        wrong = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
        raise ConfigError([*found, *_others(document, wrong, overrides)]) from None


def _others(document: Document, wrong: set[str], overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """What else is wrong with a file, in the sections that can be read without those in `wrong`."""
    needed = {name for name, info in SpaceSpec.model_fields.items() if info.is_required()}
    if not wrong or wrong & needed:
        return ()
    rest = {k: v for k, v in document.data.items() if k not in wrong}
    try:
        build("", dataclasses.replace(document, data=rest), overrides)
    except ConfigError as error:
        return error.problems
    return ()


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Strict models take tuples; inside domains lists stay what they are."""
    return {k: tuple(v) if k == "defaults" and isinstance(v, list) else v for k, v in data.items()}


def _keys(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, info in cls.model_fields.items():
        yield prefix + name, info.annotation
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _keys(info.annotation, f"{name}.")


def _objective(spec: SpaceSpec, document: Document) -> Iterator[str]:
    """Validation metrics only: choosing by test would make every reported test number meaningless."""
    name, where = spec.objective, f" ({document.where('objective')})"
    if name.startswith("test/"):
        yield f"objective: must be a validation metric, val/..., got '{name}': the test split is never searched{where}"
        return
    known = [f"val/{m}" for m in metrics.ALL]
    try:
        metrics.mode(name)
    except KeyError:
        yield f"objective: no metric '{name}'{nearest(name, known)}; available: {', '.join(known)}{where}"
        return
    if not name.startswith("val/"):
        yield f"objective: must be a validation metric, val/..., got '{name}'{where}"


def _exhaustive(spec: SpaceSpec, document: Document) -> Iterator[str]:
    if spec.finals.top != "all":
        return
    where = f" ({document.where('finals.top')})"
    if spec.searcher.name != "grid":
        yield f"finals.top: 'all' needs searcher: grid, got searcher: {spec.searcher.name}{where}"
    if spec.finals.baseline is not None:
        name = spec.finals.baseline
        yield f"finals.baseline: must be left out with top: all, which tunes nothing, got '{name}'{where}"


def _base(spec: SpaceSpec, document: Document, overrides: Mapping[str, Any]) -> Config:
    """The config with everything fixed applied. Raises ConfigError."""
    try:
        found = load_config(spec.config)
    except ConfigError as error:
        raise ConfigError(
            [f"{p} (config: in {document.where('config')})" for p in error.problems]
        ) from None
    problems: list[str] = []
    steps: list[tuple[Mapping[str, Any], str]] = [
        ({"method": spec.method} if spec.method else {}, "method")
    ]
    steps += [(spec.set, "set"), (overrides, "")]
    if spec.objective.startswith("val/"):
        steps.append(({"train.monitor": spec.objective}, "objective"))
    for values, key in steps:
        try:
            found = with_overrides(found, values)
        except ConfigError as error:
            problems += [f"{p} ({_place(document, key, p)})" for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return found


def _place(document: Document, section: str, problem: str) -> str:
    """Where the key that a config message starts with was given."""
    if not section:
        return "--set"
    return document.where(f"{section}.{problem.partition(':')[0]}" if section == "set" else section)


def _domains(base: Config, domains: Mapping[str, D.Domain], document: Document) -> Iterator[str]:
    """Names that are no field, bounds a field refuses, conditions that cannot be looked at."""
    try:
        ordered(domains)
    except ValueError as error:
        yield f"domains: {error} ({document.where('domains')})"
        return
    known = {*field_types(base), *PLUGINS}
    for key, domain in domains.items():
        where = f" ({document.where(f'domains.{key}')})"
        if key in OWN:
            yield f"domains.{key}: cannot be searched, the search sets it itself ({OWN[key]}){where}"
            continue
        unknown = [c for c in domain.when if c not in domains and c not in known]
        if unknown:
            yield from (
                f"domains.{key}.when: no such key '{c}'{nearest(c, known)}{where}" for c in unknown
            )
            continue
        refused = list(_refused(_under(base, domains, domain), key, domain.bounds()))
        yield from (f"domains.{message}{where}" for message in refused[:1])


def _under(base: Config, domains: Mapping[str, D.Domain], domain: D.Domain) -> list[Config]:
    """The configs under which a domain is drawn: with each value that its conditions allow
    (plug-ins switched).
    """
    out = [base]
    for key, allowed in domain.when.items():
        parents = _under(base, domains, domains[key]) if key in domains else out
        out = [c for one in parents for v in allowed for c in _replaced(one, {key: v})]
    return out or [base]


def _replaced(base: Config, values: Mapping[str, Any]) -> list[Config]:
    try:
        return [with_overrides(base, values)]
    except ConfigError:
        return []


def _refused(bases: Iterable[Config], key: str, values: Iterable[Any]) -> Iterator[str]:
    for base in bases:
        for value in values:
            message = check_field(base, key, value)
            if message:
                yield message.splitlines()[0]


def _defaults(
    base: Config,
    domains: Mapping[str, D.Domain],
    defaults: tuple[dict[str, Any], ...],
    fixed: set[str],
    document: Document,
) -> Iterator[str]:
    """Published settings must be points of the space, or the search would not contain what it is
    compared with.
    """
    flat = {**flatten(base)}
    for i, one in enumerate(defaults):
        for key, value in one.items():
            where = f" ({document.where(f'defaults.{i}.{key}')})"
            if key not in domains:
                if key not in fixed:
                    known = f"{nearest(key, domains)}; searched: {', '.join(domains)}"
                    yield f"defaults.{i}.{key}: is not searched{known}{where}"
            elif not domains[key].contains(value):
                yield f"defaults.{i}.{key}: must lie in {domains[key].text()}, got {show(value)}{where}"
            elif any(
                key_value(c, one, flat) not in allowed
                for c, allowed in domains[key].when.items()
                if c in one
            ):
                yield f"defaults.{i}.{key}: its condition ({domains[key].text()}) does not hold in this entry{where}"


def variants(space: Space) -> list[dict[str, Any]]:
    """What a search may make of its config, as far as it decides whether a model can be built: one
    change at a time.
    """
    keys = [
        k
        for k, d in space.domains.items()
        if d.kind in D.LISTS and not d.when and k.startswith(("model.", "method."))
    ]
    # A key inside a mapping, such as a modality's name: what it may be is known to the data alone.
    inner = [
        k
        for k, d in space.domains.items()
        if not d.when and k not in field_types(space.base) and k not in PLUGINS
    ]
    ends = [{k: space.domains[k].bounds()[0]} for k in inner if k not in keys]
    return [{}, *({k: v} for k in keys for v in space.domains[k].args), *ends]
