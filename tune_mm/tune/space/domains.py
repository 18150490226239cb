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


@dataclass(frozen=True)
class Domain:
    """One searched setting. args as in the module's docstring; when: key -> the values under which
    it is drawn.
    """

    kind: str
    args: tuple[Scalar, ...]
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)

    def values(self) -> tuple[Scalar, ...] | None:
        """All values, in order; None for a continuous domain."""
        if self.kind in LISTS:
            return self.args
        numbers = self._numbers()
        if self.kind == "randint":
            return tuple(range(numbers[0], numbers[1] + 1))
        if self.kind == "quniform":
            low, high, step = numbers
            return tuple(
                round(low + i * step, 12) for i in range(math.floor((high - low) / step + 1e-9) + 1)
            )
        return None

    def bounds(self) -> tuple[Scalar, ...]:
        """The values a config field must accept for the whole domain to be acceptable: the ends, or
        every choice.
        """
        return self.args if self.kind in LISTS else self.args[:2]

    def contains(self, value: Scalar) -> bool:
        """Whether `value` could be drawn; an integer may stand for a float, a bool for no number."""
        if self.kind in LISTS:
            return any(
                value == a and isinstance(value, bool) == isinstance(a, bool) for a in self.args
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.kind == "randint" and value != int(value):
            return False
        low, high, *step = self._numbers()
        if step:
            steps = (value - low) / step[0]
            return low <= value <= high and math.isclose(steps, round(steps), abs_tol=1e-6)
        return bool(low <= value <= high)

    def _numbers(self) -> list[Any]:
        return list(self.args)

    def text(self) -> str:
        """One line for tables and messages."""
        inner = ", ".join(_scalar(a) for a in self.args)
        where = ", ".join(
            f"{k} = {' | '.join(_scalar(v) for v in vs)}" for k, vs in self.when.items()
        )
        return f"{self.kind} [{inner}]" + (f" when {where}" if where else "")


Domains = Mapping[str, Domain]


def _scalar(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(raw: Any) -> Domain | str:
    """A Domain from its YAML mapping, or one message that says what is wrong (got, allowed)."""
    if not isinstance(raw, Mapping):
        return f"must be a mapping such as {{uniform: [0, 1]}}, got {raw!r}"
    kinds = [k for k in raw if k != "when"]
    if len(kinds) != 1 or kinds[0] not in ARGUMENTS:
        return (
            f"must name one of {', '.join(ARGUMENTS)}, got {', '.join(map(str, kinds)) or 'none'}"
        )
    kind, args = kinds[0], raw[kinds[0]]
    if not isinstance(args, list) or not _fits(kind, args):
        return f"{kind} takes {ARGUMENTS[kind]}, got {args!r}"
    when = raw.get("when", {})
    if not isinstance(when, Mapping):
        return f"when must be a mapping such as {{optim.name: sgd}}, got {when!r}"
    conditions = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    numbers = (
        tuple(float(a) for a in args)
        if kind in ("uniform", "loguniform", "quniform")
        else tuple(args)
    )
    return Domain(kind, numbers, conditions)


def _fits(kind: str, args: list[Any]) -> bool:
    if kind in LISTS:
        plain = all(a is None or isinstance(a, (bool, int, float, str)) for a in args)
        return plain and len(args) > 0 and len(set(args)) == len(args)
    if not all(
        isinstance(a, (int, float)) and not isinstance(a, bool) and math.isfinite(a) for a in args
    ):
        return False
    if len(args) != (3 if kind == "quniform" else 2):
        return False
    low, high = args[0], args[1]
    if kind == "randint":
        return isinstance(low, int) and isinstance(high, int) and low <= high
    if kind == "quniform" and not 0 < args[2] <= high - low:
        return False
    return bool(low < high and (kind != "loguniform" or low > 0))
