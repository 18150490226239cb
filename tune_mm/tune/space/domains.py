"""What a searched setting may be: one kind and its arguments, as written in a space file.

    {uniform: [low, high]}        a float, both ends included
    {loguniform: [low, high]}     a float, even on a log scale; low > 0
    {quniform: [low, high, step]} low, low + step, ... up to high
    {randint: [low, high]}        an integer, both ends included
    {choice: [a, b, ...]}         one of the values
    {grid: [a, b, ...]}           the same; reads better with `searcher: grid`, which runs every combination

`when: {other.key: value}` beside the kind makes an entry conditional: it is drawn only where the
other key has that value (or one of a list of values).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scalar = bool | int | float | str | None
Values = dict[str, Any]  # a setting: dotted keys of the config and their values
SearcherName = Literal["tpe", "random", "cmaes", "nsgaii", "grid"]

ARGUMENTS = {
    "uniform": "[low, high] with low < high",
    "loguniform": "[low, high] with 0 < low < high",
    "quniform": "[low, high, step] with low < high and 0 < step <= high - low",
    "randint": "[low, high], integers with low <= high, both included",
    "choice": "a list of one or more different values (numbers, strings, true, false, null)",
    "grid": "a list of one or more different values (numbers, strings, true, false, null)",
}
LISTS = ("choice", "grid")
REAL = ("uniform", "loguniform", "quniform")


@dataclass(frozen=True)
class Domain:
    """One searched setting."""

    kind: str
    args: tuple[Scalar, ...]  # as in the module's docstring
    # Under which values of other keys it is drawn.
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)

    def values(self) -> tuple[Scalar, ...] | None:
        """All values, in order; None for a continuous domain."""
        if self.kind in LISTS:
            return self.args
        numbers: tuple[Any, ...] = self.args
        if self.kind == "randint":
            low, high = numbers
            return tuple(range(low, high + 1))
        if self.kind == "quniform":
            low, high, step = numbers
            steps = math.floor((high - low) / step + 1e-9)
            return tuple(round(low + i * step, 12) for i in range(steps + 1))
        return None

    def bounds(self) -> tuple[Scalar, ...]:
        """The values that stand for the domain in checks: every choice, or both ends."""
        if self.kind in LISTS:
            return self.args
        return self.args[:2]

    def contains(self, value: Scalar) -> bool:
        """Whether `value` could be drawn; an integer may stand for a float, a bool for no number."""
        if self.kind in LISTS:
            return any(_same(value, choice) for choice in self.args)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        numbers: tuple[Any, ...] = self.args
        low, high = numbers[:2]
        if not low <= value <= high:
            return False
        if self.kind == "randint":
            return value == int(value)
        if self.kind == "quniform":
            steps = (value - low) / numbers[2]
            return math.isclose(steps, round(steps), abs_tol=1e-6)
        return True

    def text(self) -> str:
        """One line for tables and messages."""
        inner = ", ".join(_scalar(value) for value in self.args)
        text = f"{self.kind} [{inner}]"
        if not self.when:
            return text
        conditions = []
        for key, allowed in self.when.items():
            conditions.append(f"{key} = {' | '.join(_scalar(value) for value in allowed)}")
        return f"{text} when {', '.join(conditions)}"


Domains = Mapping[str, Domain]


def parse(raw: Any) -> Domain | str:
    """A Domain from its YAML mapping, or one message that says what is wrong (got, allowed)."""
    if not isinstance(raw, Mapping):
        return f"must be a mapping such as {{uniform: [0, 1]}}, got {raw!r}"
    kinds = [str(key) for key in raw if key != "when"]
    if len(kinds) != 1 or kinds[0] not in ARGUMENTS:
        got = ", ".join(kinds) or "none"
        return f"must name one of {', '.join(ARGUMENTS)}, got {got}"
    kind = kinds[0]
    args = raw[kind]
    if not isinstance(args, list) or not _fits(kind, args):
        return f"{kind} takes {ARGUMENTS[kind]}, got {args!r}"
    when = raw.get("when", {})
    if not isinstance(when, Mapping):
        return f"when must be a mapping such as {{optim.name: sgd}}, got {when!r}"
    conditions: dict[str, tuple[Scalar, ...]] = {}
    for key, allowed in when.items():
        conditions[key] = tuple(allowed) if isinstance(allowed, list) else (allowed,)
    if kind in REAL:
        args = [float(number) for number in args]
    return Domain(kind, tuple(args), conditions)


def _fits(kind: str, args: list[Any]) -> bool:
    if kind in LISTS:
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in args)
        return plain and len(args) > 0 and len(set(args)) == len(args)
    if not all(_is_finite(number) for number in args):
        return False
    if len(args) != (3 if kind == "quniform" else 2):
        return False
    low, high = args[:2]
    if kind == "randint":
        return isinstance(low, int) and isinstance(high, int) and low <= high
    if kind == "quniform" and not 0 < args[2] <= high - low:
        return False
    if kind == "loguniform" and low <= 0:
        return False
    return bool(low < high)


def _is_finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _same(value: Scalar, choice: Scalar) -> bool:
    """Equal, and not one a bool and the other a number."""
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)


def _scalar(value: Scalar) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
