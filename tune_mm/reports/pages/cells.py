"""Words and numbers of a search's page: cells of its tables, settings in one line, counts and
durations.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tune_mm.reports.pages.html import Cell, Html, tag


def words(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    names = headings(list(settings))
    return (
        ", ".join(f"{n}={_short(v)}" for n, v in zip(names, settings.values(), strict=True))
        or "as configured"
    )


def headings(keys: Sequence[str]) -> list[str]:
    """Each key by its last part ("model.fusion.name": fusion); in full where two would be the same."""
    short = [k.removesuffix(".name").rpartition(".")[2] for k in keys]
    return [s if short.count(s) == 1 else k for s, k in zip(short, keys, strict=True)]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def setting(value: object) -> Cell:
    """A setting."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(_short(value), float(value))
    return Cell(_short(value))


def finite(values: Iterable[float]) -> list[float]:
    """Those that are numbers."""
    return [v for v in values if math.isfinite(v)]


def figure(value: float | None) -> Cell:
    """A metric; empty when there is none."""
    return Cell("") if value is None or not math.isfinite(value) else Cell(f"{value:.4f}", value)


def spread(values: Iterable[float]) -> Cell:
    """Mean ± sample standard deviation of the finite ones; what was left out is said."""
    given = list(values)
    kept = finite(given)
    lost = f" ({len(given) - len(kept)} not finite)" if len(kept) < len(given) else ""
    if not kept:
        return Cell(f"–{lost}")
    std = f" ± {statistics.stdev(kept):.4f}" if len(kept) > 1 else ""
    return Cell(f"{statistics.fmean(kept):.4f}{std}{lost}", statistics.fmean(kept))


def tally(values: Iterable[str]) -> list[tuple[str, int]]:
    """How often each occurs, most frequent first."""
    found = list(values)
    return sorted({v: found.count(v) for v in found}.items(), key=lambda p: -p[1])


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    parts = [(whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"


def soft(text: str) -> Html:
    """A remark."""
    return tag("p", text, class_="soft")
