"""Tables, figures and pages of the papers from the runs of a tracking store; nothing is trained.

python -m tune_mm.report list                               which reports there are, and the runs they have
python -m tune_mm.report dgl_table3 --data avdigits         a table: Markdown, CSV, LaTeX; a figure: PNG, SVG
python -m tune_mm.report table3 cggm_fig5a --out reports    several; table3: the end of a name will do
python -m tune_mm.report my_table.yaml                      a report of one's own
python -m tune_mm.report search ablation_alpha-1            a search as one HTML page
python -m tune_mm.report paper dgl                          a paper's tables and figures as one HTML page
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tune_mm.cli import Parser, run_cli
from tune_mm.errors import UserError

EPILOG = """Files go to --out and, as artifacts below reports/, to the runs of the searches that were used.
A table or a figure with cells or lines missing is no mistake: it says what is missing, and the command
that makes it.
exit codes: 0 done; 2 a mistake in what was asked for, or a store that cannot be read"""


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        example = "2026-11-21 or 2026-11-21T14:30"
        raise argparse.ArgumentTypeError(
            f"must be a date or a time such as {example}, got '{text}'"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = Parser(prog="tune_mm.report", description=__doc__, epilog=EPILOG)
    line.add_argument(
        "what",
        nargs="*",
        metavar="NAME",
        help="reports, or: list | search NAME | paper dgl | paper cggm",
    )
    line.add_argument("--all", action="store_true", help="every report of configs/paper")
    line.add_argument(
        "--out",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="for the files (default: reports)",
    )
    line.add_argument(
        "--data", metavar="NAME", help="of runs on this data set, not on the report's own"
    )
    line.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="of runs that began then or later: 2026-11-21T14:30",
    )
    line.add_argument(
        "--run", metavar="NAME", help="of this search (or run of tune_mm.train) alone"
    )
    line.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (else MLFLOW_TRACKING_URI, else mlruns/mlflow.db)",
    )
    line.add_argument(
        "--no-attach", action="store_true", help="leave the store as it is: files go to --out only"
    )
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    given = parser().parse_intermixed_args(arguments)
    word, *rest = given.what or [""]
    if word in ("list", "search", "paper"):
        _require_names(word, rest, given.all)
    elif bool(given.what) == given.all:
        raise UserError(
            "tune_mm.report: give names of reports, or --all; "
            "`python -m tune_mm.report list` shows them"
        )
    # mlflow and matplotlib take seconds to import, and --help does without.
    from tune_mm.reports import catalogue, command

    request = command.Request(
        out=given.out,
        data=given.data,
        since=given.since,
        run=given.run,
        tracking_uri=given.tracking_uri,
        attach=not given.no_attach,
    )
    if word == "list":
        command.show_catalogue(request)
    elif word == "search":
        command.write_search(request, rest[0])
    elif word == "paper":
        command.write_paper(request, rest[0])
    else:
        names = catalogue.names() if given.all else given.what
        command.write_reports(request, command.load(names))
    return 0


def _require_names(word: str, names: Sequence[str], every: bool) -> None:
    """Raises UserError where a command of one word has too few or too many names."""
    wanted = 0 if word == "list" else 1
    if len(names) != wanted or every:
        takes = "one name" if wanted else "no name"
        raise UserError(f"tune_mm.report: {word} takes {takes}, got {len(names)}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
