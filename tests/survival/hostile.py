"""A working folder for files that mean harm, and what a refusal of them must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from tune_mm import search
from tune_mm.cli import run_cli
from tune_mm.config.yaml import write_yaml

SPACE: dict[str, Any] = {
    "config": "mosi",
    "method": "joint",
    "objective": "val/accuracy",
    "domains": {"optim.lr": {"loguniform": [1e-5, 1e-1]}},
    "trials": 2,
}
LONGEST = 8000  # characters of a refusal


class Place:
    """A working folder with data, a cache and a pickle's target; knows whether anything in it
    changed.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, root / "data"
        self.data.mkdir()
        self.store = root / "cache" / "store"
        self.store.mkdir(parents=True)
        self.target = root / "run"

    def space(self, name: str = "s.yaml", raw: str | bytes | None = None, **values: Any) -> str:
        text = write_yaml({**SPACE, **values}) if raw is None else raw
        (self.root / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    def state(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file and folder below the root, but for what the data store keeps
        of files that it has looked at: empty locks, and digests by file once that has not changed
        for a while.
        """
        found = {p: p.lstat() for p in [self.root, *self.root.rglob("*")] if p != self.store}
        own = {p for p, s in found.items() if p.parent == self.store}
        kept = {
            p
            for p in own
            if (p.suffix == ".lock" and not found[p].st_size) or p.name.endswith(".files.json")
        }
        return {str(p): (s.st_size, s.st_mtime_ns) for p, s in found.items() if p not in kept}


def refused(place: Place, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a search that is refused; it must be one, leave everything as it was, and
    start no Ray.
    """
    before, running = place.state(), ray.is_initialized()
    code = run_cli(lambda: search.main([*arguments, "--require-real"]))
    told = capsys.readouterr()
    assert code == 2, told
    assert told.err and told.out == ""
    assert "Traceback" not in told.err and len(told.err) <= LONGEST
    assert place.state() == before
    assert ray.is_initialized() == running
    return told.err
