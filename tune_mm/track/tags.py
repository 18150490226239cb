"""Tags that say where a run comes from: the code, the versions, the machine, and what was run."""

from __future__ import annotations

import getpass
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import tune_mm
from tune_mm.config import Config, flatten

Stage = Literal["search", "baseline", "final", "train"]
PACKAGES = ("torch", "ray", "optuna", "mlflow")
CHECKOUT = Path(tune_mm.__file__).resolve().parent.parent


def tags_for(config: Config, *, stage: Stage, data_kind: str) -> dict[str, str]:
    """What was run: method, dataset, fusion, seed; `data_kind` is real or synthetic."""
    values = flatten(config)
    return {
        "method": str(values["method.name"]),
        # A plug-in that reads any data set of one format (npz) is told apart by the folder that it
        # reads.
        "dataset": str(values.get("data.folder") or values["data.name"]),
        "fusion": str(values["model.fusion.name"]),
        "data_kind": data_kind,
        "stage": stage,
        "seed": str(config.seed),
    }


@cache
def environment() -> dict[str, str]:
    """git commit of the project's checkout (its version when there is none), versions, host, user.
    Once per process.
    """
    versions = {"python": platform.python_version(), "tune_mm": tune_mm.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found = {f"version.{package}": version for package, version in versions.items()}
    return {
        **found,
        **commit(CHECKOUT),
        "host": platform.node(),
        "mlflow.user": _user(),
        "mlflow.source.name": "tune_mm",
    }


def commit(checkout: Path) -> dict[str, str]:
    """`git_commit` and `git_dirty` of `checkout`; the installed version when it is no git checkout
    of its own.
    """
    # Only the checkout's own .git counts: an installed package may lie inside somebody else's
    # repository.
    if (checkout / ".git").exists():
        head = _git(checkout, "rev-parse", "HEAD")
    else:
        head = None
    if not head:
        return {"git_commit": f"none: tune_mm {tune_mm.__version__}"}
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": head,
        "git_dirty": str(bool(changes)).lower(),
        "mlflow.source.git.commit": head,
    }


def _git(checkout: Path, *words: str) -> str | None:
    """The output of a git command; None when git is missing or refuses."""
    try:
        command = ["git", "--no-optional-locks", "-C", str(checkout), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user id has no name
        return ""
