"""A search of the traced toy as a command: python -m tests.survival.driver '{"root": ..., "hold":
3, "seed": 0, ...}'.

Keys are those of `Options`, and `hold`, `again`, `since`, `wait`, `marks`, `ballast` of the toy. It
ends as the command line of the search does.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.survival.traced import Traced
from tune_mm.cli import run_cli
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.search import run


def main(text: str) -> int:
    """The exit code of the search that `text` (JSON) describes."""
    given = json.loads(text)
    root = Path(given.pop("root"))
    toy = {
        k: given.pop(k)
        for k in ("hold", "again", "since", "wait", "marks", "ballast")
        if k in given
    }
    build = partial(Traced, **{"marks": str(root), **toy})
    return run(Options(root=root, save_every=0.0, **given), Console(width=200), build=build)


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main(sys.argv[1])))
