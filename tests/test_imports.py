"""Imports go one way: config, plugins <- core <- methods, models, data <- tune; track and reports
stand apart.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "tune_mm"
FILES = sorted(PACKAGE.rglob("*.py"))

# Parts of tune_mm that each part may import. Modules at the top, and config/, are `base`.
BASE = {"base", "config"}
MAY_USE = {
    "base": BASE,
    "config": BASE,
    "core": BASE | {"core"},
    "methods": BASE | {"core", "methods", "models"},
    "models": BASE | {"core", "models"},
    "data": BASE | {"core", "data"},
    "track": BASE | {"track"},
    "reports": BASE | {"track", "reports"},
    "cluster": BASE | {"cluster"},
    "scaffold": BASE | {"scaffold"},
    "single": BASE | {"core", "data", "track", "single"},
    "tune": BASE | {"core", "data", "methods", "models", "track", "tune"},
}
# Thin command lines; they put the parts together.
COMMANDS = {"__main__.py", "search.py", "train.py", "report.py"}
ONLY_IN = {"ray": {"tune"}, "mlflow": {"track", "reports"}}
NEVER_IN = {"torch": {"base", "config", "track", "reports"}}
TORCH_MODULES = {"_vision.py"}


def part(file: Path) -> str:
    """The part of the package that `file` belongs to."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "base"


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules that `file` imports anywhere in it, with the line."""
    package = [PACKAGE.name, *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def target(module: str) -> str | None:
    """The part that `tune_mm.x.y` belongs to; None for other packages."""
    names = module.split(".")
    if names[0] != PACKAGE.name:
        return None
    return names[1] if len(names) > 1 and (PACKAGE / names[1]).is_dir() else "base"


def name(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_parts_import_one_way(file: Path) -> None:
    if file.parent == PACKAGE and file.name in COMMANDS:
        return
    allowed = MAY_USE[part(file)]
    wrong = [
        f"line {line}: {module}"
        for module, line in imported(file)
        if target(module) not in {None, *allowed}
    ]
    assert not wrong, f"{name(file)} may import {sorted(allowed)} of tune_mm only"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_heavy_packages_stay_in_their_part(file: Path) -> None:
    for module, line in imported(file):
        top = module.split(".")[0]
        here = part(file)
        assert here in ONLY_IN.get(top, {here}), f"{name(file)} line {line} imports {top}"
        assert here not in NEVER_IN.get(top, set()) or file.name in TORCH_MODULES, (
            f"{name(file)} line {line}: {top}"
        )


@pytest.mark.parametrize("file", [f for f in FILES if part(f) == "core"], ids=name)
def test_core_is_tensors_and_the_standard_library_only(file: Path) -> None:
    known = {"torch", "numpy", PACKAGE.name, *sys.stdlib_module_names}
    assert {module.split(".")[0] for module, _ in imported(file)} <= known


def test_a_run_loads_neither_ray_nor_mlflow() -> None:
    code = "import sys, tune_mm.core.run; print(sorted({'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def folder(file: Path) -> str:
    return file.parent.relative_to(PACKAGE).as_posix()


def folder_of(module: str) -> str | None:
    """The folder of the module that an absolute name stands for; None for other packages."""
    names = module.split(".")
    if names[0] != PACKAGE.name:
        return None
    while names:
        path = REPOSITORY.joinpath(*names)
        if path.with_suffix(".py").is_file():
            return folder(path.with_suffix(".py"))
        if (path / "__init__.py").is_file():
            return folder(path / "__init__.py")
        names.pop()
    return None


def uses() -> dict[str, set[str]]:
    """By folder: the other folders that its modules import, lazily or not."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        if file.name == "__main__.py" or (file.parent == PACKAGE and file.name in COMMANDS):
            continue
        own = found.setdefault(folder(file), set())
        for module, _ in imported(file):
            other = folder_of(module)
            if other is not None and other != folder(file):
                own.add(other)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Folders none of which can come first; [] where there is an order."""
    left = {name: set(used) for name, used in graph.items()}
    while True:
        first = {name for name, used in left.items() if not used & left.keys()}
        if not first:
            return sorted(left)
        left = {name: used for name, used in left.items() if name not in first}


def test_folders_form_no_circle() -> None:
    assert circle(uses()) == []


def test_underscored_modules_are_used_in_their_own_package_only() -> None:
    wrong = []
    for file in FILES:
        for module, line in imported(file):
            names = module.split(".")
            for depth, part_name in enumerate(names[1:], 1):
                private = part_name.startswith("_") and not part_name.startswith("__")
                package = REPOSITORY.joinpath(*names[:depth])
                is_module = package.joinpath(f"{part_name}.py").is_file()
                if private and is_module and package not in file.parents:
                    wrong.append(f"{name(file)} line {line}: {module}")
    assert not wrong
