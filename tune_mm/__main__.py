"""Start something of your own, from a template that runs.

python -m tune_mm new method my_method     # and a search space and a test for it
python -m tune_mm new encoder my_encoder
python -m tune_mm new fusion my_fusion     # and its reference formula
python -m tune_mm new dataset my_data      # and a configuration
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tune_mm.cli import Parser, run_cli
from tune_mm.scaffold import scaffold


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = Parser(prog="tune_mm", description=__doc__)
    commands = out.add_subparsers(dest="command", required=True, metavar="new")
    new = commands.add_parser("new", help="write the files of a new plug-in into this checkout")
    new.add_argument("kind", metavar="KIND", help=", ".join(scaffold.KINDS))
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits and '_'")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    given = parser().parse_args(arguments)
    root = Path.cwd()
    for path in scaffold.write(given.kind, given.name, root):
        print(f"wrote {path.relative_to(root)}")
    print("each file says what to change; run the tests of its folder to see that it works")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
