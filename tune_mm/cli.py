"""What the command lines share: types of arguments, and one message for a user's mistake."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from tune_mm.errors import UserError

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


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
    """The exit code of `main` (None: 0).

    A UserError is printed and is 2, Ctrl-C is 130; bugs keep their traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


# ---- types of arguments: each raises ArgumentTypeError, which names what is allowed


def count(text: str) -> int:
    """An integer >= 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got '{text}'")
    return number


def seed(text: str) -> int:
    """An integer that every generator takes."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2147483647, got '{text}'")
    return number


def positive(text: str) -> float:
    """A finite number > 0."""
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got '{text}'")
    return number


def gpu_share(text: str) -> float | str:
    """`auto`, a part of one GPU, or a whole number of them."""
    if text == "auto":
        return text
    number = _number(text)
    is_part = 0 <= number <= 1
    is_whole = number > 1 and number.is_integer()
    if not (is_part or is_whole):
        raise argparse.ArgumentTypeError(
            f"must be auto or a number >= 0 (whole above 1), such as 0.25, got '{text}'"
        )
    return number


def _number(text: str) -> float:
    """A finite number; NaN for anything else."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    if math.isfinite(number):
        return number
    return math.nan


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `1.5h`, `2d`."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smhd]?)", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 30m or 1.5h, got '{text}'")
    return float(match[1]) * SECONDS[match[2]]
