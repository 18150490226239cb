"""Records of searches whose MLflow store was away.

    python -m tune_mm.track replay                       every queue below ./mlruns
    python -m tune_mm.track replay --queue DIR           one queue, or those below DIR
    python -m tune_mm.track replay --tracking-uri URI    the store is elsewhere now, or needs a password

It may be interrupted and run again. Exit codes: 0 everything is in its store; 1 something could not
be written (it is said, and kept); 2 a mistake in what was asked for; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tune_mm.cli import Parser, run_cli
from tune_mm.errors import UserError, nearest
from tune_mm.track import replay
from tune_mm.track.outbox import queue_file
from tune_mm.track.wording import shown

COMMANDS = ("replay",)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="tune_mm.track", description=__doc__)
    p.add_argument("command", metavar="replay", help="write queued records into their stores")
    p.add_argument(
        "--queue",
        type=Path,
        metavar="DIR",
        help="a queue, or a folder of queues (default: below ./mlruns)",
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="write into this store, not into the one that a queue names",
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    given = parser().parse_args(arguments)
    if given.command not in COMMANDS:
        hint = nearest(given.command, COMMANDS)
        raise UserError(f"no command '{given.command}'{hint}; available: {', '.join(COMMANDS)}")
    queues = replay.find(given.queue, Path.cwd())
    if not queues:
        print("no queued records below mlruns")
        return 0
    if given.tracking_uri is not None and len(queues) > 1:
        stores = sorted({str(queue_file.read(queue)["uri"]) for queue in queues})
        if len(stores) > 1:
            raise UserError(
                f"--tracking-uri: there are queues of {', '.join(stores)}: name one of them by --queue"
            )
    return max(_one(queue, given.tracking_uri, alone=len(queues) == 1) for queue in queues)


def _one(queue: Path, uri: str | None, *, alone: bool) -> int:
    """0 when the store has all of it. A folder that is no queue is a mistake only where it is the
    only one.
    """
    try:
        outcome = replay.replay(queue, uri)
    except UserError as error:
        if alone:
            raise
        outcome = replay.Outcome((f"{shown(queue)}: {error}",), False)
    for line in outcome.lines:
        print(line, file=sys.stdout if outcome.whole else sys.stderr)
    if outcome.whole:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
