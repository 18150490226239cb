"""What there is, as tables: spaces and suites (--list), methods (--list methods)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mm import plugins
from tune_mm.config import ConfigError
from tune_mm.config.yaml import Document
from tune_mm.core.support import Support
from tune_mm.tune.space import space as space_files
from tune_mm.tune.space import suite as suite_files
from tune_mm.tune.space.suite import Suite


def spaces(console: Console) -> int:
    """All spaces and suites; files that cannot be read are named below."""
    documents, problems = space_files.readable()
    suites: list[Suite] = []
    table = _table(
        "search spaces", "space", "method", "config", "objective", "searched", "baseline"
    )
    for name, document in documents.items():
        if suite_files.is_suite(document):
            try:
                suites.append(suite_files.build(name, document))
            except ConfigError as error:
                problems += error.problems
        else:
            _add(table, name, *_space_cells(document))
    console.print(table)
    if suites:
        console.print(_suites(suites))
    for problem in problems:
        console.print(Text(f"not listed: {problem}", style="yellow"))
    return 0


def _space_cells(document: Document) -> list[str]:
    raw = document.data
    finals = raw.get("finals")
    if isinstance(finals, Mapping):
        baseline = finals.get("baseline")
    else:
        baseline = None
    domains = raw.get("domains")
    searched = domains if isinstance(domains, Mapping) else {}
    return [
        str(raw.get("method", "-")),
        str(raw.get("config", "-")),
        str(raw.get("objective", "-")),
        ", ".join(map(str, searched)),
        str(baseline or "-"),
    ]


def _suites(suites: list[Suite]) -> Table:
    title = "suites: several spaces, searched alike and compared"
    table = _table(title, "suite", "config", "objective", "trials", "searches")
    for suite in suites:
        members = ", ".join(member.name for member in suite.members)
        spec = suite.spec
        _add(table, suite.name, spec.config, spec.objective, str(spec.trials), members)
    return table


def methods(console: Console) -> int:
    """The matrix of methods: what each can train, and what it costs beside joint training."""
    table = _table("methods", "method", "modalities", "tasks", "fusions", "extra cost")
    for name in plugins.available("methods"):
        support: Support = plugins.load("methods", name).support
        fusions = "any that its settings fit"
        if support.fusions is not None:
            fusions = ", ".join(support.fusions)
        _add(table, name, support.modalities, ", ".join(support.tasks), fusions, support.cost)
    console.print(table)
    return 0


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _add(table: Table, *cells: Any) -> None:
    """A row of plain text: brackets would be read as markup."""
    table.add_row(*[Text(str(cell)) for cell in cells])
