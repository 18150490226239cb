"""A wheel carries the YAML files, and an installation of it finds them by name from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def test_an_installed_wheel_finds_its_own_files(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("tune_mm", "configs", "search_spaces"):
        shutil.copytree(
            REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    templates = installed / "tune_mm" / "scaffold" / "templates"
    assert (templates / "method" / "method.py.txt").is_file()
    code = "from tune_mm.config import file_names, find_file; "
    code += "print(find_file('configs', 'mosi')); print(*file_names('configs'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    shipped = sorted(
        p.relative_to(REPOSITORY / "configs") for p in (REPOSITORY / "configs").glob("**/*.yaml")
    )
    found, names = done.stdout.splitlines()
    assert Path(found) == installed / "tune_mm" / "_configs" / "mosi.yaml"
    assert names.split() == [p.with_suffix("").as_posix() for p in shipped]
