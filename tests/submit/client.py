"""The user's side: the commands that cluster/onprem.yaml tells to give, with a home of the test's
own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tests.submit.machines import Machine, Network, execute
from tests.submit.shipped import REPOSITORY, derive

PATIENCE = 600.0  # seconds that a command may take; a machine that is busy is slow
SCRIPTS = Path(sysconfig.get_path("scripts"))


class Cluster:
    """The machines as the user sees them. home: the user's on each of them."""

    def __init__(self, network: Network, machines: list[Machine], first: int) -> None:
        self.machines, self._root = machines, network.root
        self.home = network.home
        self.file = derive(network.root, first)
        self.dashboard = f"http://127.0.0.1:{first + 1}"
        _environment_script(network)
        own = network.root / "client"
        (own / "tmp").mkdir(parents=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        self.environment = kept | {
            "HOME": str(own),
            "TMPDIR": str(own / "tmp"),
            "RAY_TMPDIR": str(own / "tmp"),
            "PATH": f"{network.bin}:{SCRIPTS}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "true",
            "PIP_NO_DEPS": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "COLUMNS": "200",
        }

    def command(
        self, *words: str | Path, folder: Path = REPOSITORY
    ) -> subprocess.CompletedProcess[str]:
        """A command of the user's, by default from the root of the repository; output and error in
        `stdout`.
        """
        return execute([str(word) for word in words], self.environment, folder, PATIENCE)

    def up(self) -> None:
        """What the file tells to do once, and `ray up`; returns when both nodes have joined."""
        files = Path(self.environment["HOME"]) / ".tune_mm" / "cluster"
        source = _sources(self._root / "source")
        prepare: list[list[str | Path]] = [
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "-q",
                "--no-build-isolation",
                "--wheel-dir",
                files,
                ".",
            ],
            ["ray", "get-auth-token", "--generate"],
            [
                "install",
                "-m",
                "600",
                files.parents[1] / ".ray" / "auth_token",
                source / "constraints.txt",
                files,
            ],
            ["ray", "up", "-y", self.file],
        ]
        for words in prepare:
            done = self.command(*words, folder=source)
            assert done.returncode == 0, done.stdout
        end = time.monotonic() + PATIENCE
        while (
            "/2.0 CPU"
            not in (status := self.command("ray", "exec", self.file, "ray status")).stdout
        ):
            assert time.monotonic() < end, (
                f"the second node has not joined:\n{status.stdout}\n{self.logs()}"
            )

    def submit(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`ray submit` of the search as the file tells."""
        return self.command("ray", "submit", self.file, "tune_mm/search.py", "--", *arguments)

    def job(self, *arguments: str | Path, token: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of the search as the file tells. token: show the token of the cluster."""
        mode = f"RAY_AUTH_MODE={'token' if token else 'disabled'}"
        words = (
            "ray",
            "job",
            "submit",
            "--address",
            self.dashboard,
            "--",
            "python",
            "-m",
            "tune_mm.search",
        )
        return self.command("env", mode, *words, *arguments)

    def results(self, name: str) -> Path:
        """A copy of the head's mlruns, fetched as the file tells."""
        copy = self._root / "copies" / name
        copy.mkdir(parents=True)
        done = self.command("ray", "rsync-down", self.file, f"{self.home}/mlruns/", f"{copy}/")
        assert done.returncode == 0, done.stdout
        return copy

    def logs(self) -> str:
        """What the head's autoscaler said: why a node did not join."""
        files = self.machines[0].tmp.glob("tune_mm_ray/session_2*/logs/monitor.*")
        return "\n".join(f"{file}\n{file.read_text()[-4000:]}" for file in files)


def _sources(copy: Path) -> Path:
    """The project's sources without what it was built into: a wheel is built inside its sources."""
    for name in ("tune_mm", "configs", "search_spaces"):
        shutil.copytree(
            REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(REPOSITORY / name, copy)
    return copy


def _environment_script(network: Network) -> None:
    """`environment DIR` makes a virtual environment with the packages of this one, all but the
    project itself.
    """
    packages: list[Path] = []
    for number, folder in enumerate(Path(p) for p in sys.path if p.endswith("site-packages")):
        packages.append(network.root / "packages" / str(number))
        packages[-1].mkdir(parents=True)
        for entry in folder.iterdir():
            if "tune_mm" not in entry.name:
                (packages[-1] / entry.name).symlink_to(entry)
    python = (
        Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    )
    paths, where = (
        " ".join(map(str, packages)),
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    )
    network.script(
        "environment",
        f"""set -e
{python} -m venv --without-pip "$1"
printf '%s\\n' {paths} > "$("$1/bin/python" -c "{where}")/packages.pth"
printf '%s\\n' "#!$1/bin/python" 'from ray.scripts.scripts import main; main()' > "$1/bin/ray"
printf '%s\\n' '#!/bin/bash' 'exec "$(dirname "$0")/python" -m pip "$@"' > "$1/bin/pip"
chmod +x "$1/bin/ray" "$1/bin/pip\"""",
    )
