"""Points of a search space: drawn from an Optuna trial, or all of a grid; conditions come first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from tune_mm.tune.space.domains import LISTS, Domain, Domains, Scalar, Values


def ordered(domains: Domains) -> tuple[str, ...]:
    """Keys with those that conditions look at first, else as written.

    Raises ValueError naming the keys of a circle.
    """
    out: list[str] = []
    left = list(domains)
    while left:
        ready = []
        for key in left:
            if not any(other in left for other in domains[key].when):
                ready.append(key)
        if not ready:
            raise ValueError(f"conditions go round in a circle: {', '.join(left)}")
        out.append(ready[0])
        left.remove(ready[0])
    return tuple(out)


def active(domain: Domain, values: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the domain is drawn, given the values drawn before it and the config's (`base`)."""
    return all(key_value(key, values, base) in allowed for key, allowed in domain.when.items())


def key_value(key: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
    """What `key` is in a trial: drawn, or else as configured."""
    if key in values:
        return values[key]
    return base.get(key, base.get(f"{key}.name"))


def draw(domains: Domains, base: Mapping[str, Any], trial: Trial) -> Values:
    """Draw every active domain, conditions first."""
    values: Values = {}
    for key in ordered(domains):
        if active(domains[key], values, base):
            values[key] = _suggest(key, domains[key], trial)
    return values


def _suggest(key: str, domain: Domain, trial: Trial) -> Scalar:
    if domain.kind in LISTS:
        choice: Scalar = trial.suggest_categorical(key, domain.args)
        return choice
    numbers: tuple[Any, ...] = domain.args
    low, high = numbers[:2]
    if domain.kind == "randint":
        return trial.suggest_int(key, low, high)
    if domain.kind == "quniform":
        return trial.suggest_float(key, low, high, step=numbers[2])
    return trial.suggest_float(key, low, high, log=domain.kind == "loguniform")


def grid(domains: Domains, base: Mapping[str, Any]) -> list[Values]:
    """Every combination of the domains' values once.

    A conditional domain multiplies only points where it is active. The last key varies fastest.
    Raises ValueError for a continuous domain.
    """
    points: list[Values] = [{}]
    for key in ordered(domains):
        domain = domains[key]
        choices = domain.values()
        if choices is None:
            allowed = "choice, grid, randint or quniform"
            raise ValueError(f"{key}: a grid needs {allowed}, got {domain.text()}")
        longer: list[Values] = []
        for point in points:
            if active(domain, point, base):
                longer += [{**point, key: choice} for choice in choices]
            else:
                longer.append(point)
        points = longer
    return points
