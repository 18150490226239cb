"""What the command lines share: a user's mistake ends in one message on stderr and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from tune_mm.errors import UserError

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are UserErrors, and whose help keeps its line breaks."""

    def __init__(self, **settings: object) -> None:
        shape: dict[str, object] = {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
        }
        super().__init__(**{**shape, **settings})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see --help")


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
