"""Runs that are drawn into one figure: of one search where it has them, so that nothing but the
setting differs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from tune_mm.reports.runs.select import Choice, Selection, matches, select
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import Report, Where

Key = TypeVar("Key", bound=Hashable)


def together(
    records: Sequence[StoredRun], report: Report, wheres: Mapping[Key, Where], choice: Choice
) -> tuple[dict[Key, Selection], str]:
    """The selections that are not empty, all of the search that has most of them (of several the
    latest), and a note.

    The note names the search where others have such runs too; else it is empty.
    """
    by_search: dict[str, list[StoredRun]] = {}
    for record in records:
        by_search.setdefault(record.search, []).append(record)
    found: dict[str, dict[Key, Selection]] = {}
    for search, runs in by_search.items():
        wanted = {
            key: where for key, where in wheres.items() if any(matches(r, where) for r in runs)
        }
        chosen = {key: select(runs, report, where, choice) for key, where in wanted.items()}
        found[search] = {key: selection for key, selection in chosen.items() if selection.records}
    having = [search for search, selections in found.items() if selections]
    if not having:
        return {}, ""
    best = max(
        having, key=lambda search: (len(found[search]), min(r.started for r in by_search[search]))
    )
    others = sum(
        1 for search in having if search != best and found[search].keys() & found[best].keys()
    )
    if not others:
        return found[best], ""
    used = (
        ", ".join(sorted({name for s in found[best].values() for name in s.searches if name}))
        or "single runs"
    )
    if others == 1:
        rest = "1 other has"
    else:
        rest = f"{others} others have"
    return found[best], f"Runs of {used}; {rest} such runs too (--run chooses)"
