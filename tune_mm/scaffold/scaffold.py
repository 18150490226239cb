"""Write the files of a new plug-in into a checkout.

`templates/<kind>/` holds one template per file. In a template `__name__` stands for the plug-in's
name (`my_method`) and `__Name__` for its class (`MyMethod`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

from tune_mm import plugins
from tune_mm.errors import UserError, nearest

Kind = Literal["method", "encoder", "fusion", "dataset"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TEMPLATES = Path(__file__).parent / "templates"

# What `plugins` calls each kind.
PLUGINS: dict[Kind, str] = {
    "method": "methods",
    "encoder": "encoders",
    "fusion": "fusions",
    "dataset": "data",
}
# Where the file of each template goes, by kind and template.
PLACES: dict[Kind, dict[str, str]] = {
    "method": {
        "method.py.txt": "tune_mm/methods/__name__.py",
        "space.yaml.txt": "search_spaces/__name___avdigits.yaml",
        "test.py.txt": "tests/methods/test___name__.py",
    },
    "encoder": {
        "encoder.py.txt": "tune_mm/models/encoders/__name__.py",
        "test.py.txt": "tests/models/test___name___encoder.py",
    },
    "fusion": {
        "fusion.py.txt": "tune_mm/models/fusions/__name__.py",
        "formula.py.txt": "tests/models/formulas/__name__.py",
    },
    "dataset": {
        "dataset.py.txt": "tune_mm/data/datasets/__name__.py",
        "config.yaml.txt": "configs/__name__.yaml",
        "test.py.txt": "tests/data/datasets/test___name__.py",
    },
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


def write(kind: str, name: str, root: Path) -> list[Path]:
    """Write the files of plug-in `name` below the checkout `root`; the paths, the plug-in's first.

    Raises UserError for an unknown kind, a name that is taken or none, a folder that is no checkout,
    and a file that is there; nothing is written then.
    """
    known = _kind(kind)
    _require_free(known, name)
    if not (root / "tests" / "methods").is_dir() or not (root / "tune_mm").is_dir():
        raise UserError(
            f"new: run this in a checkout of tune_mm; {root} has no tune_mm/ and tests/"
        )
    contents: dict[Path, str] = {}
    for template, place in PLACES[known].items():
        path = root / _filled(place, name)
        if path.exists():
            raise UserError(f"new: {path} exists already")
        contents[path] = _filled((TEMPLATES / known / template).read_text(encoding="utf-8"), name)
    for path, content in contents.items():
        path.write_text(content, encoding="utf-8")
    return list(contents)


def _kind(kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known
    raise UserError(f"new: no kind '{kind}'{nearest(kind, KINDS)}; available: {', '.join(KINDS)}")


def _require_free(kind: Kind, name: str) -> None:
    if not _NAME.fullmatch(name):
        rule = "must be lower-case letters, digits and '_', and begin with a letter"
        raise UserError(f"new: a {kind}'s name {rule}, got '{name}'")
    if name in plugins.available(PLUGINS[kind]):
        raise UserError(f"new: there is a {kind} '{name}' already")


def _filled(text: str, name: str) -> str:
    words = [word.capitalize() for word in name.split("_")]
    return text.replace("__name__", name).replace("__Name__", "".join(words))
