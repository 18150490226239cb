"""Tags name the code and the versions that made a run, and what was run."""

import subprocess
from pathlib import Path

import torch

import tune_mm
from tune_mm.track import tags


def test_environment_names_versions() -> None:
    found = tags.environment()
    assert found["version.tune_mm"] == tune_mm.__version__
    assert found["version.torch"] == torch.__version__
    assert {
        "version.python",
        "version.mlflow",
        "version.ray",
        "version.optuna",
        "host",
        "git_commit",
    } <= set(found)
    assert all(isinstance(v, str) for v in found.values())
    assert tags.environment() is found


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=me", "-c", "user.email=me@x", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commit_and_dirty_flag_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert tags.commit(tmp_path) == {
        "git_commit": head,
        "git_dirty": "false",
        "mlflow.source.git.commit": head,
    }
    (tmp_path / "a.txt").write_text("two")
    assert tags.commit(tmp_path)["git_dirty"] == "true"


def test_an_installed_package_inside_another_repository_is_not_that_repository(
    tmp_path: Path,
) -> None:
    git(tmp_path, "init", "-q")
    inside = tmp_path / "lib"
    inside.mkdir()
    assert tags.commit(inside) == {"git_commit": f"none: tune_mm {tune_mm.__version__}"}
    assert tags.commit(tmp_path)["git_commit"].startswith("none")
