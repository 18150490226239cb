"""What the command lines share: a user's mistake ends in one message on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tune_mm.errors import UserError

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run_cli(main: Callable[[], int | None]) -> int:
    """The exit code of `main` (None: 0). A UserError is printed and is 2, Ctrl-C is 130; bugs keep
    their traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
