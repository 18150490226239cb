"""What there is, as tables: the methods and what each can train (--list methods)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm import plugins
from tune_mm.core.support import Support


def methods(console: Console) -> int:
    """The matrix of methods: modalities, tasks, fusions, and what a method costs beside joint
    training.
    """
    table = Table(title="methods", title_justify="left")
    for column in ("method", "modalities", "tasks", "fusions", "extra cost"):
        table.add_column(column)
    for name in plugins.available("methods"):
        support: Support = plugins.load("methods", name).support
        fusions = (
            "any that its settings fit" if support.fusions is None else ", ".join(support.fusions)
        )
        cells = (name, support.modalities, ", ".join(support.tasks), fusions, support.cost)
        table.add_row(*map(Text, cells))
    console.print(table)
    return 0
