"""Words that tables and figures share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tune_mm.reports.spec.spec import Report

PAPERS = {"dgl": "DGL (ICCV 2025)", "cggm": "CGGM (NeurIPS 2024)"}


def file_name(report: Report, name: str) -> str:
    """`name`, or one made of the paper and the place in it: "Fig. 5(a)" of cggm is cggm_fig_5_a."""
    if name:
        return name
    place = f"{report.paper} {report.source}".lower()
    return re.sub(r"[^a-z0-9]+", "_", place).strip("_")


def seed_count(counts: Iterable[int]) -> str:
    """How many runs lie behind a mean: "n = 3 seeds", or the least and the most."""
    found = list(counts)
    least = min(found)
    most = max(found)
    if least == most:
        number = str(most)
    else:
        number = f"{least} to {most}"
    plural = "" if most == 1 else "s"
    return f"n = {number} seed{plural}"
