"""One Ray for all tests that need it, and searches of the toy in a folder of their own."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from tests.tune.toy import Toy
from tune_mm.tune import search
from tune_mm.tune.execute import ray_session
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Ledger

TOY = """config: iemocap
method: joint
objective: val/accuracy
domains:
  optim.lr: {loguniform: [1e-5, 1e-1]}
defaults:
  - {optim.lr: 1e-3}
trials: 6
searcher: {name: tpe, startup: 4}
scheduler: {name: asha, epochs: 9, grace: 1, reduction: 3}
finals: {top: 0}
"""


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """A Ray with two slots, kept by every search of the session."""
    ray_session.connect(None, 1, 2)
    yield
    ray.shutdown()


class Searches:
    """Searches of the toy below one folder. `says` is what the last one printed."""

    def __init__(self, root: Path) -> None:
        self.root, self.says = root, ""

    def write(self, text: str = TOY, name: str = "toy") -> str:
        """A space file; its path."""
        path = self.root / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    def run(
        self, space: str | None = None, build: Callable[[Any], Any] | None = None, **options: Any
    ) -> int:
        """The exit code of a search."""
        out = io.StringIO()
        given = Options(root=self.root, space=space, concurrency=2, **options)
        try:
            return search.run(
                given,
                Console(file=out, width=200),
                build=build or partial(Toy, marks=str(self.root)),
            )
        finally:
            self.says = out.getvalue()

    def book(self, name: str, stage: str = "search", mode: str = "max") -> Ledger:
        """A stage's ledger, to look at."""
        storage = open_storage(self.root / "mlruns" / "search" / name / "optuna.journal")
        return Ledger(
            storage,
            f"{name}/{stage}",
            mode,
            lambda trial: {},
            lambda number: _random(),
            lambda number: None,
        )


def _random() -> Any:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=0)


@pytest.fixture
def searches(tmp_path: Path, one_ray: None, monkeypatch: pytest.MonkeyPatch) -> Searches:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Searches(tmp_path)
