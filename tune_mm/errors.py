"""A user's mistakes: they end in one clear message and exit code 2, never in a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right; `str(error)` says what, got, allowed, nearest and where."""


class ConfigError(UserError):
    """Everything that is wrong with a configuration. `problems`: one message each; `str(error)`:
    one per line.
    """

    def __init__(self, problems: Iterable[str] | str) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


def closest(name: object, names: Iterable[str]) -> str | None:
    """The one of `names` that looks most like `name`; None where none does."""
    return next(iter(difflib.get_close_matches(str(name), list(names), n=1)), None)


def nearest(name: object, names: Iterable[str]) -> str:
    """`; nearest 'x'` for a message, where one of `names` looks like `name`; else an empty text."""
    near = closest(name, names)
    if near:
        return f"; nearest '{near}'"
    return ""
