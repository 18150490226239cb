"""Points of a search space: drawn from an Optuna trial, or all of a grid, with conditional domains
in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from tune_mm.tune.space.domains import Domain, Domains, Scalar, Values


def ordered(domains: Domains) -> tuple[str, ...]:
    """Keys with those that conditions look at first, else as written. Raises ValueError naming the
    keys of a circle.
    """
    out: list[str] = []
    left = list(domains)
    while left:
        ready = [k for k in left if not any(c in left for c in domains[k].when)]
        if not ready:
            raise ValueError(f"conditions go round in a circle: {', '.join(left)}")
        out.append(ready[0])
        left.remove(ready[0])
    return tuple(out)


def active(domain: Domain, values: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the domain is drawn, given the values drawn before it and the config's own (`base`,
    dotted keys).
    """
    return all(key_value(key, values, base) in allowed for key, allowed in domain.when.items())


def key_value(key: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
    """What `key` is in a trial: drawn, or else as configured."""
    return values[key] if key in values else base.get(key, base.get(f"{key}.name"))


def draw(domains: Domains, base: Mapping[str, Any], trial: Trial) -> Values:
    """Draw every active domain, conditions first."""
    values: Values = {}
    for key in ordered(domains):
        domain = domains[key]
        if not active(domain, values, base):
            continue
        if domain.kind in ("choice", "grid"):
            values[key] = trial.suggest_categorical(key, domain.args)
        else:
            numbers: tuple[Any, ...] = domain.args
            if domain.kind == "randint":
                values[key] = trial.suggest_int(key, *numbers)
            elif domain.kind == "quniform":
                values[key] = trial.suggest_float(key, numbers[0], numbers[1], step=numbers[2])
            else:
                values[key] = trial.suggest_float(key, *numbers, log=domain.kind == "loguniform")
    return values


def grid(domains: Domains, base: Mapping[str, Any]) -> list[Values]:
    """Every combination of the domains' values once; a conditional domain multiplies only
    points where it is active.      The last key varies fastest. Raises ValueError for a
    continuous domain.
    """
    points: list[Values] = [{}]
    for key in ordered(domains):
        choices = domains[key].values()
        if choices is None:
            raise ValueError(
                f"{key}: a grid needs choice, grid, randint or quniform, got {domains[key].text()}"
            )
        points = [
            {**point, **extra}
            for point in points
            for extra in (_each(key, choices) if active(domains[key], point, base) else [{}])
        ]
    return points


def _each(key: str, choices: tuple[Scalar, ...]) -> list[Values]:
    return [{key: choice} for choice in choices]
