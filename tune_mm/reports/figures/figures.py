"""Figures of the papers from the runs of a store: sweeps, curves over epochs, maps of vectors;
saved as PNG and SVG.

Each takes its report (a YAML of configs/paper/), the records, a `store.Reader` and what the user
chose, and gives a `Figure`: what cannot be drawn is said in its caption, with the command that
makes it.
"""

from __future__ import annotations

from tune_mm.reports.figures.canvas import Figure, save
from tune_mm.reports.figures.curves import curves
from tune_mm.reports.figures.scatter import scatter
from tune_mm.reports.figures.sweep import sweep

__all__ = ["Figure", "curves", "save", "scatter", "sweep"]
