"""What tests of figures share: a shipped figure drawn, its lines and legends, records made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter

from tests.reports import sample_runs
from tune_mm.reports.figures import figures
from tune_mm.reports.figures.figures import Figure
from tune_mm.reports.runs.select import Choice
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import AnyReport

PAPER = Path(__file__).resolve().parents[3] / "configs" / "paper"
EPOCHS = list(range(1, sample_runs.EPOCHS + 1))


def report(name: str, **changes: object) -> Any:
    """A figure of configs/paper, with some keys replaced."""
    data = yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(AnyReport).validate_json(json.dumps({**data, **changes}))


def figure_names() -> list[str]:
    kinds = {
        p.stem: yaml.safe_load(p.read_text(encoding="utf-8")).get("kind")
        for p in PAPER.glob("*.yaml")
    }
    return sorted(name for name, kind in kinds.items() if kind in ("sweep", "curves", "scatter"))


def choice(data: str | None = None, run: str | None = None) -> Choice:
    return Choice(data=data, since=None, run=run)


def draw(
    name: str, records: Sequence[StoredRun], reader: Any, chosen: Choice, **changes: object
) -> Figure:
    found = report(name, **changes)
    figure: Figure = getattr(figures, found.kind)(found, records, reader, chosen, name)
    return figure


def axes_of(figure: Figure) -> list[Any]:
    """The axes of a figure, row by row."""
    return list(figure.figure.axes)


def near(got: Any, expected: Any) -> None:
    """Equal to nine digits."""
    np.testing.assert_allclose(
        np.asarray(got, dtype=float), np.asarray(expected, dtype=float), rtol=1e-9
    )


def lines(axes: Any) -> dict[str, Any]:
    """Lines by label, without those that only mark a level."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def legend(holder: Any) -> list[str]:
    return [text.get_text() for text in holder.get_texts()]


def record(seed: int, values: Mapping[str, Any], search: str = "s-1") -> StoredRun:
    """A completed final run on `toy`; values: params and metrics by name ("/" in it: a metric)."""
    metrics = {k: v for k, v in values.items() if "/" in k}
    params = {k: str(v) for k, v in values.items() if "/" not in k}
    tags = {
        "dataset": "toy",
        "data_kind": "real",
        "search": search,
        "seed": str(seed),
        "method": "dgl",
    }
    started = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=seed)
    name = f"{search}-{seed}-{len(values)}-{sorted(params.items())}"
    return StoredRun(
        name, name, "toy", search, None, "final", "completed", started, tags, params, metrics
    )
