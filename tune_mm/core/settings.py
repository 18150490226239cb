"""Which settings of a method or an optimizer are tunable: the fields whose type holds floats.

They become 0-dim tensors (`hp`) and may differ between trials that run the same program. All other
fields are static: they decide which program that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from tune_mm.config import Section


def tunable(section: type[Section]) -> list[str]:
    """The fields whose type is float, alone, in a union or in a container, in their order.

    The type decides, not the value: a setting that is null or empty in one trial is a number in
    another.
    """
    found = []
    for name, info in section.model_fields.items():
        if _holds_floats(info.annotation):
            found.append(name)
    return found


def float_fields(section: Section) -> dict[str, float]:
    """The numbers that a section's tunable settings are set to; nothing of what is null or empty.

    A mapping to floats gives `<field>.<key>` each, a tuple `<field>.<index>`.
    """
    out: dict[str, float] = {}
    for field in tunable(type(section)):
        for name, value in _entries(field, getattr(section, field)):
            if isinstance(value, float):
                out[name] = value
    return out


def _holds_floats(annotation: Any) -> bool:
    """Whether float stands anywhere in a type."""
    if annotation is float:
        return True
    return any(_holds_floats(inner) for inner in get_args(annotation))


def _entries(field: str, value: Any) -> list[tuple[str, Any]]:
    """What a field holds, by name: itself, or what it contains."""
    if isinstance(value, Mapping):
        return [(f"{field}.{key}", inner) for key, inner in value.items()]
    if isinstance(value, tuple):
        found = []
        for index, inner in enumerate(value):
            found.append((f"{field}.{index}", inner))
        return found
    return [(field, value)]


class StaticSettings:
    """A method's section without its tunable fields, which must not be read as Python numbers.

    A step that reads one would be right for one trial alone, and wrong for the others that share
    its program.
    """

    def __init__(self, section: Section) -> None:
        self._section = section
        self._tunable = frozenset(tunable(type(section)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle and copy ask for hooks before there is a section
            raise AttributeError(name)
        if name in self._tunable:
            raise AttributeError(
                f'method.{name} is tunable: read hp["{name}"] in a step, '
                f'or self.value("{name}") in what runs trial by trial'
            )
        return getattr(self._section, name)
