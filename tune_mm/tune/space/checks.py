"""What can be wrong with a search space beside its form: each check yields messages with the line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from tune_mm.config import Config, ConfigError, check_field, field_types, flatten, with_overrides
from tune_mm.config.explain import show
from tune_mm.config.sections import PLUGINS
from tune_mm.config.yaml import Document
from tune_mm.errors import nearest
from tune_mm.stats import METRICS, direction
from tune_mm.tune.space.domains import Domain, Domains, Values
from tune_mm.tune.space.drawing import key_value, ordered
from tune_mm.tune.space.spec import SpaceSpec

# Settings that a search decides for its trials, and what decides them.
DECIDED = {
    "name": "config",
    "seed": "--seed, finals.seeds",
    "train.epochs": "scheduler.epochs",
    "train.monitor": "objective",
}


def objective(spec: SpaceSpec, document: Document) -> Iterator[str]:
    """Validation metrics only: choosing by test would make every reported test number meaningless."""
    name = spec.objective
    where = f"({document.where('objective')})"
    rule = f"objective: must be a validation metric, val/..., got '{name}'"
    if name.startswith("test/"):
        yield f"{rule}: the test split is never searched {where}"
        return
    known = [f"val/{metric}" for metric in METRICS]
    try:
        direction(name)
    except KeyError:
        available = ", ".join(known)
        yield f"objective: no metric '{name}'{nearest(name, known)}; available: {available} {where}"
        return
    if not name.startswith("val/"):
        yield f"{rule} {where}"


def exhaustive(spec: SpaceSpec, document: Document) -> Iterator[str]:
    """`top: all` reruns a grid: it needs one, and has no baseline."""
    if spec.finals.top != "all":
        return
    where = f"({document.where('finals.top')})"
    searcher = spec.searcher.name
    if searcher != "grid":
        yield f"finals.top: 'all' needs searcher: grid, got searcher: {searcher} {where}"
    baseline = spec.finals.baseline
    if baseline is not None:
        rule = "must be left out with top: all, which tunes nothing"
        yield f"finals.baseline: {rule}, got '{baseline}' {where}"


def domains(base: Config, searched: Domains, document: Document) -> Iterator[str]:
    """Names that are no field, bounds that a field refuses, conditions on unknown keys."""
    try:
        ordered(searched)
    except ValueError as error:
        yield f"domains: {error} ({document.where('domains')})"
        return
    known = {*field_types(base), *PLUGINS}
    for key, domain in searched.items():
        where = f"({document.where(f'domains.{key}')})"
        if key in DECIDED:
            rule = f"cannot be searched, the search sets it itself ({DECIDED[key]})"
            yield f"domains.{key}: {rule} {where}"
            continue
        unknown = [other for other in domain.when if other not in searched and other not in known]
        for other in unknown:
            hint = nearest(other, known)
            yield f"domains.{key}.when: no such key '{other}'{hint} {where}"
        if unknown:
            continue
        refusal = _first_refusal(_under(base, searched, domain), key, domain.bounds())
        if refusal is not None:
            yield f"domains.{refusal} {where}"


def defaults(
    base: Config,
    searched: Domains,
    settings: Sequence[Values],
    fixed: Collection[str],
    document: Document,
) -> Iterator[str]:
    """Published settings must be points of the space: a search contains what it is compared with.

    fixed: domains that `--set` took out of the search.
    """
    configured = flatten(base)
    for number, setting in enumerate(settings):
        for key, value in setting.items():
            if key not in searched and key in fixed:
                continue
            place = f"defaults.{number}.{key}"
            problem = _outside(key, value, setting, searched, configured)
            if problem is not None:
                yield f"{place}: {problem} ({document.where(place)})"


def _outside(
    key: str, value: Any, setting: Values, searched: Domains, configured: Values
) -> str | None:
    """Why a published value is none that the space could draw."""
    domain = searched.get(key)
    if domain is None:
        return f"is not searched{nearest(key, searched)}; searched: {', '.join(searched)}"
    if not domain.contains(value):
        return f"must lie in {domain.text()}, got {show(value)}"
    for other, allowed in domain.when.items():
        if other in setting and key_value(other, setting, configured) not in allowed:
            return f"its condition ({domain.text()}) does not hold in this entry"
    return None


def _under(base: Config, searched: Domains, domain: Domain) -> list[Config]:
    """The configs under which a domain is drawn: each value that its conditions allow (plug-ins switched)."""
    found = [base]
    for key, allowed in domain.when.items():
        parents = found
        if key in searched:
            parents = _under(base, searched, searched[key])
        found = []
        for parent in parents:
            for value in allowed:
                try:
                    found.append(with_overrides(parent, {key: value}))
                except ConfigError:
                    continue  # the condition's own domain is reported for it
    return found or [base]


def _first_refusal(bases: Iterable[Config], key: str, values: Sequence[Any]) -> str | None:
    for base in bases:
        for value in values:
            message = check_field(base, key, value)
            if message:
                return message.splitlines()[0]
    return None
