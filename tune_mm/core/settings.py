"""Which settings of a method or an optimizer are tunable: its float fields.

They become 0-dim tensors (`hp`) and may differ between trials that run the same program. All other
fields are static: they decide which program that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def float_fields(section: Any) -> dict[str, float]:
    """The tunable settings of a config section. A mapping to floats gives `<field>.<key>` each."""
    out: dict[str, float] = {}
    for name, value in section:
        if isinstance(value, float):
            out[name] = value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                if isinstance(inner, float):
                    out[f"{name}.{key}"] = inner
    return out


class StaticSettings:
    """A method's section without its tunable fields, which must not be read as Python numbers.

    A step that reads one would be right for one trial alone, and wrong for the others that share
    its program.
    """

    def __init__(self, section: Any) -> None:
        self._section = section
        self._tunable = {name.partition(".")[0] for name in float_fields(section)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle and copy ask for hooks before there is a section
            raise AttributeError(name)
        if name in self._tunable:
            raise AttributeError(
                f'method.{name} is tunable: read hp["{name}"] in a step, '
                f'or self.value("{name}") in what runs trial by trial'
            )
        return getattr(self._section, name)
