"""Words and numbers of a search's page: cells, settings in one line, counts, durations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tune_mm import stats
from tune_mm.reports.pages.blocks import PageCell


def words(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    if not settings:
        return "as configured"
    names = headings(list(settings))
    pairs = zip(names, settings.values(), strict=True)
    return ", ".join(f"{name}={_short(value)}" for name, value in pairs)


def headings(keys: Sequence[str]) -> list[str]:
    """Each key by its last part ("model.fusion.name": fusion); in full where two would be the same."""
    short = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    names = []
    for key, last in zip(keys, short, strict=True):
        unique = short.count(last) == 1
        names.append(last if unique else key)
    return names


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def setting(value: object) -> PageCell:
    """A setting."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return PageCell(_short(value), float(value))
    return PageCell(_short(value))


def finite(values: Iterable[float]) -> list[float]:
    """Those that are numbers."""
    found = []
    for value in values:
        if math.isfinite(value):
            found.append(value)
    return found


def figure(value: float | None) -> PageCell:
    """A metric; empty when there is none."""
    if value is None or not math.isfinite(value):
        return PageCell("")
    return PageCell(f"{value:.4f}", value)


def spread_cell(values: Iterable[float]) -> PageCell:
    """Mean ± sample standard deviation of the finite ones, and how many were left out."""
    given = list(values)
    kept = finite(given)
    found = stats.spread(kept)
    lost = ""
    if len(kept) < len(given):
        lost = f" ({len(given) - len(kept)} not finite)"
    if found is None:
        return PageCell(f"–{lost}")
    std = ""
    if found.std is not None:
        std = f" ± {found.std:.4f}"
    return PageCell(f"{found.mean:.4f}{std}{lost}", found.mean)


def tally(values: Iterable[str]) -> list[tuple[str, int]]:
    """How often each occurs, most frequent first."""
    return Counter(values).most_common()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    parts = [(whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    shown = [f"{n} {unit}" for n, unit in parts if n]
    if not shown:
        return "0 s"
    return " ".join(shown)
