"""The data sets that there are, and the `data:` section that a name stands for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tune_mm import plugins
from tune_mm.config import Section, file_names, load_config
from tune_mm.errors import ConfigError, nearest

# A complete configuration, of which only `data:` is replaced and used: `data=NAME` switches to the
# defaults of NAME.
_CARRIER = "iemocap"


def listed() -> list[str]:
    """Two lines for each data set: what it is, and the files that it expects."""
    names = plugins.available("data")
    width = max(len(name) for name in names)
    lines = []
    for name in names:
        plugin = plugins.load("data", name)
        config = plugin.Config()
        about = _first_sentence(sys.modules[plugin.__module__].__doc__ or "")
        folder = plugin.folder_of(config)
        files = ", ".join(f"{folder}/{file}" for file in plugin.files(config))
        lines.append(f"{name:<{width}}  {about}")
        lines.append(f"{'':<{width}}  files: {files}")
    return lines


def _first_sentence(text: str) -> str:
    """The summary of a docstring, which may be longer than a line."""
    paragraph = text.partition("\n\n")[0]
    return " ".join(paragraph.split())


def section(name: str, overrides: Sequence[str]) -> Section:
    """The `data:` section of a configuration, or of a data set by its defaults, with `key=value`
    overrides. Raises ConfigError.
    """
    changes = [f"data.{text}" for text in overrides]
    configurations = file_names("configs")
    if name in configurations or name.endswith((".yaml", ".yml")):
        named: Section = load_config(name, changes).data
        return named
    known = plugins.available("data")
    if name not in known:
        every = sorted({*known, *configurations})
        hint = nearest(name, every)
        available = ", ".join(every)
        raise ConfigError(f"no data set or configuration '{name}'{hint}; available: {available}")
    plain: Section = load_config(_CARRIER, [f"data={name}", *changes]).data
    return plain
