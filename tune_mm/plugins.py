"""The file name is the registry: `load("methods", "dgl")` imports `tune_mm/methods/dgl.py` and
returns its `plugin`.

Adding a method, dataset, audio front-end, encoder or fusion is adding one file; no list is edited.
Folders, files whose name starts with an underscore, and `base.py` are not plug-ins.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import Any

PACKAGES = {
    "methods": "tune_mm.methods",
    "data": "tune_mm.data.datasets",
    "frontends": "tune_mm.data.audio.frontends",
    "encoders": "tune_mm.models.encoders",
    "fusions": "tune_mm.models.fusions",
    "models": "tune_mm.models",
}


class UnknownPlugin(LookupError):
    """No file of that name: the message gives the nearest name and all that are available."""


@cache
def available(kind: str) -> tuple[str, ...]:
    """Names of the plug-ins of `kind`, sorted. Raises KeyError for an unknown kind."""
    package = importlib.import_module(PACKAGES[kind])
    names = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return tuple(sorted(n for n in names if not n.startswith("_") and n != "base"))


def load(kind: str, name: str) -> Any:
    """The class that the file `name` of `kind` exports as `plugin`. Raises UnknownPlugin."""
    names = available(kind)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; nearest '{near[0]}'" if near else ""
        raise UnknownPlugin(f"{kind}: no '{name}'{hint}; available: {', '.join(names)}")
    return importlib.import_module(f"{PACKAGES[kind]}.{name}").plugin
