"""What is seen of a single run: a line per epoch, and a table at its end."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from tune_mm.core import metrics
from tune_mm.core.run import Result, Run
from tune_mm.single.state import State


def line(run: Run, result: Result) -> str:
    """An epoch on one line; `*` marks the best so far."""
    values = result.metrics
    total = run.config.train.epochs
    parts = [f"epoch {result.epoch:>{len(str(total))}}/{total}"]
    for name in dict.fromkeys(("train/loss", "val/loss", run.objective)):
        if name in values:
            parts.append(f"{name} {values[name]:.4f}")
    alone = []
    for modality in _alone(run, values):
        alone.append(f"{modality} {values[f'{run.objective}/{modality}']:.4f}")
    if alone:
        parts.append(" ".join(alone))
    parts.append(f"{values['time/epoch']:.1f} s")
    if result.best:
        parts.append("*")
    return "  ".join(parts)


def _alone(run: Run, values: Mapping[str, float]) -> list[str]:
    """Modalities whose own objective is known."""
    return [m for m in run.spec.modalities if f"{run.objective}/{m}" in values]


def table(state: State, test: Mapping[str, float]) -> Table:
    """Metrics at the best validation epoch, multimodal and of each modality alone."""
    run = state.run
    values = {**state.best_metrics, **test}
    modalities = _alone(run, values)
    found = Table("", "multimodal", *modalities)
    for column in found.columns[1:]:
        column.justify = "right"
    splits = ("val", "test") if test else ("val",)
    for split in splits:
        for name in metrics.names(run.spec.task):
            metric = f"{split}/{name}"
            cells = [_cell(values.get(metric))]
            cells += [_cell(values.get(f"{metric}/{modality}")) for modality in modalities]
            found.add_row(metric, *cells)
        found.add_section()
    return found


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
