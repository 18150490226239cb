"""Read a cluster file and say what would go wrong, before money is spent.

python -m tune_mm.cluster check cluster/aws.yaml
python -m tune_mm.cluster check my_cluster.yaml my_job.sbatch
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tune_mm.cli import MISTAKE, Parser, run_cli
from tune_mm.cluster import access, kuberay, launcher, places, project, shape, size, slurm
from tune_mm.cluster.files import ClusterFile, documents_of, text_of
from tune_mm.cluster.problems import Check, Problem
from tune_mm.config.yaml import shown
from tune_mm.errors import ConfigError

CHECKS: tuple[Check, ...] = (
    *shape.CHECKS,
    *size.CHECKS,
    *access.CHECKS,
    *places.CHECKS,
    *project.CHECKS,
)
EPILOG = "exit codes: 0 no errors (there may be warnings, and notes on what is to be filled in); 2 errors"
_ORDER = ("error", "warning", "note")


def read(path: str | Path) -> ClusterFile:
    """The cluster file at `path`. Raises ConfigError when it is none, or cannot be read."""
    path = Path(path)
    text = text_of(path)
    if text.startswith("#!") or "\n#SBATCH" in text:
        if "#SBATCH" not in text:
            raise ConfigError(
                f"{shown(path)}: a script without #SBATCH directives is no cluster file"
            )
        return slurm.build(path, text)
    documents = documents_of(path, text)
    if any(str(d.data.get("apiVersion", "")).startswith("ray.io/") for d in documents):
        return kuberay.build(path, text, documents)
    if len(documents) == 1 and "provider" in documents[0].data:
        return launcher.build(path, text, documents[0])
    kinds = "provider (`ray up`), apiVersion: ray.io/v1 with kind: RayJob (KubeRay), or #SBATCH lines (Slurm)"
    raise ConfigError(f"{shown(path)}: no cluster file; it must have {kinds}; got keys "
                      f"{', '.join(key for d in documents for key in d.data)}")  # fmt: skip


def problems(file: ClusterFile) -> list[Problem]:
    """All that the checks find, errors first, then by line."""
    found = [problem for check in CHECKS for problem in check(file)]
    return sorted(found, key=lambda p: (_ORDER.index(p.severity), p.line, p.check))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="tune_mm.cluster", description=__doc__, epilog=EPILOG)
    commands = p.add_subparsers(dest="command", required=True, metavar="check")
    check = commands.add_parser(
        "check", help="list what would go wrong with cluster files", epilog=EPILOG
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="of cluster/, or your own")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 where a file has errors. Raises UserError for a mistake in the command line or an
    unreadable file.
    """
    given = parser().parse_args(arguments)
    worst = 0
    for file in [read(path) for path in given.files]:
        found = problems(file)
        for problem in found:
            print(problem.text(file))
        counts = {s: sum(p.severity == s for p in found) for s in _ORDER}
        said = ", ".join(
            f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n or s == "error"
        )
        print(f"{shown(file.path)}: {said}")
        worst = MISTAKE if counts["error"] else worst
    return worst


if __name__ == "__main__":
    sys.exit(run_cli(main))
