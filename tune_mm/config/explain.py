"""pydantic's errors as plain rules: what, got, allowed, nearest.

`method.rho: must be > 0, got -1`; `optim.lrr: no such key; nearest 'optim.lr'`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tune_mm.config.overrides import at
from tune_mm.config.sections import PLUGINS
from tune_mm.errors import closest, nearest

# By pydantic's error type. `{...}` are fields of its context.
_RULES = {
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be finite",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    "none_required": "must be null",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping (key: value lines)",
    "model_type": "must be a mapping (key: value lines)",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}
_TYPES = {
    "int_type",
    "float_type",
    "bool_type",
    "string_type",
    "none_required",
    "tuple_type",
    "dict_type",
}


def show(value: Any) -> str:
    """A value as YAML would have it, shortened."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            text = repr(value)
    if len(text) <= 60:
        return text
    return text[:57] + "..."


def _place(loc: tuple[int | str, ...], raw: Any, missing: bool) -> tuple[int | str, ...]:
    """`loc` without the names of union branches that pydantic appends: as far as the input goes."""
    for depth, part in enumerate(loc):
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            if missing:
                return loc[: depth + 1]
            return loc[:depth]
    return loc


def _allowed(error: ErrorDetails) -> list[str]:
    """The values that a literal_error lists."""
    return str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")


def _rule(error: ErrorDetails) -> str:
    """What must hold, or (custom errors) the whole message."""
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "literal_error":
        allowed = _allowed(error)
        return f"must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"
    if kind == "string_too_short" and context["min_length"] == 1:
        return "must not be empty"
    if kind in _RULES:
        return _RULES[kind].format(**{k: _number(v) for k, v in context.items()})
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.replace("Input should be", "must be", 1)


def _number(value: Any) -> Any:
    """A bound without the ".0" that pydantic gives to bounds of float fields."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def _merged(errors: list[ErrorDetails], annotation: Any) -> str:
    """One rule out of those of a union's branches: a branch of another type is silent where one of
    this type speaks.
    """
    rules = list(dict.fromkeys(_rule(e) for e in errors if e["type"] not in _TYPES))
    if not rules:
        rules = list(dict.fromkeys(_rule(e) for e in errors))
        if NoneType in get_args(annotation) and "must be null" not in rules:
            rules.append("must be null")
    return " or ".join([rules[0], *(r.removeprefix("must be ") for r in rules[1:])])


def _unknown(key: str, keys: Iterable[str], raw: Any) -> str:
    """What may have been meant by a key that does not exist: one beside it, of that name elsewhere,
    or like it.
    """
    above, _, last = key.rpartition(".")
    known = {k for key in keys for k in accumulate(key.split("."), "{}.{}".format)}
    beside = {}
    for k in sorted(known):
        if k.rpartition(".")[0] == above:
            beside[k.rpartition(".")[2]] = k
    elsewhere = [k for k in sorted(known) if k.rpartition(".")[2] == last]
    if key in known:
        return f"; in a file, write {last!r} inside the section {above!r}"
    if near := closest(last, beside):
        return f"; nearest '{beside[near]}'"
    if (
        near := elsewhere[0]
        if elsewhere
        else closest(key, known)
        if not (above and beside)
        else None
    ):
        return f"; nearest '{near}'"
    if above in PLUGINS:
        of = f" in {at(raw, f'{above}.name')!r}"
    else:
        of = ""
    if beside:
        return f"; allowed{of}: {', '.join(beside)}"
    return ""


def _wrong(key: str, details: list[ErrorDetails], annotation: Any) -> str:
    """The message for a value that a field refuses."""
    first = details[0]
    rule = _merged(details, annotation)
    got = first["input"]
    if first["type"] == "literal_error" and isinstance(got, str):
        near = nearest(got, _allowed(first))
    else:
        near = ""
    # A rule over a whole section says what is wrong in it; the section's values would only hide
    # that.
    if isinstance(got, (Mapping, BaseModel)) and first["type"] == "value_error":
        value = ""
    else:
        value = f", got {show(got)}"
    if key:
        return f"{key}: {rule}{value}{near}"
    return f"{rule}{value}"


def explain(
    error: ValidationError,
    raw: Any,
    keys: Mapping[str, Any],
    name: Callable[[str], tuple[str, str]],
) -> Iterator[str]:
    """One message per wrong key of `raw`.

    keys: annotations by dotted key, for all that exist. name: for a key, the key to show and its
    place (" (x line 3)").
    """
    places: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        places.setdefault(_place(detail["loc"], raw, detail["type"] == "missing"), []).append(
            detail
        )
    for loc, details in places.items():
        key, where = name(".".join(map(str, loc)))
        kind = details[0]["type"]
        if kind == "extra_forbidden":
            yield f"{key}: no such key{_unknown(key, keys, raw)}{where}"
        elif kind == "missing":
            yield f"{key}: missing, and it has no default{where}"
        elif kind == "unknown_plugin":
            yield f"{details[0]['msg']}{where}"
        else:
            yield (
                _wrong(key, details, keys.get(".".join(p for p in loc if isinstance(p, str))))
                + where
            )
