"""Read a cluster file and say what would go wrong, before money is spent.

python -m tune_mm.cluster check cluster/aws.yaml
python -m tune_mm.cluster check my_cluster.yaml my_job.sbatch
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tune_mm.cli import MISTAKE, Parser, run_cli
from tune_mm.cluster.checks import ORDER, problems, read
from tune_mm.config.yaml import shown

EPILOG = "exit codes: 0 no errors (there may be warnings, and notes on what is to be filled in); 2 errors"


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
        counts = {}
        for s in ORDER:
            counts[s] = sum(p.severity == s for p in found)
        said = ", ".join(
            f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n or s == "error"
        )
        print(f"{shown(file.path)}: {said}")
        worst = MISTAKE if counts["error"] else worst
    return worst


if __name__ == "__main__":
    sys.exit(run_cli(main))
