"""What a report is: one YAML file in `configs/paper/`, strict, so that a table or a figure more
needs no code.

`where` selects runs by tags and parameters (text, numbers and booleans as MLflow shows them; a
list: any of them; null: not set; "*": set, whatever to). A row's or a series' `where` comes on top
of the report's, a column's on top of both. The data set is none of them: it is `data`, or what
--data says.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tune_mm.config import Section
from tune_mm.errors import nearest

Scalar = bool | int | float | str | None
Where = dict[str, Scalar | tuple[Scalar, ...]]
Label = Annotated[str, Field(min_length=1)]
MODALITY = "{modality}"
ANY = "*"  # in `where`: all values but null


class TableRow(Section):
    """A row of a table.

    `{modality}` in the label stands for each modality: a row for each, with the name in `where`,
    `only` and `fill` too.
    """

    label: Label
    where: Where = Field(default_factory=dict)
    # The paper's values by column name, in the unit that is shown.
    published: dict[str, float] = Field(default_factory=dict)
    # The columns it has cells in, by name or label; (): all.
    only: tuple[Label, ...] = ()
    # Whether columns' `where` does not apply to it: a reference that does not have their setting.
    fixed: bool = False
    # The commands that make its runs; (): the report's.
    fill: tuple[Label, ...] = ()
    # Commands of its cells below a group's heading, by group.
    fill_below: dict[str, tuple[Label, ...]] = Field(default_factory=dict)


class Column(Section):
    """A column; its name is group and label.

    `{modality}` in label and metric stands for each modality, as in rows.
    """

    label: Label
    # Of the run, as logged.
    metric: Label
    # A heading over neighbouring columns.
    group: str = ""
    where: Where = Field(default_factory=dict)
    # A data set of its own; null: the report's.
    data: str | None = None
    modalities: tuple[Label, ...] = ()
    # 100 for per cent.
    scale: float = Field(1.0, gt=0)
    digits: int = Field(2, ge=0, le=6)
    # Which way is better; none: no marks.
    best: Literal["max", "min", "none"] = "max"
    # Commands of rows without one.
    fill: tuple[Label, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in `published` and `only`."""
        return f"{self.group} {self.label}".strip()


class Series(Section):
    """One line of a figure."""

    label: Label
    where: Where = Field(default_factory=dict)


class SweepSeries(Series):
    """One line of a sweep. published: the paper's values by value of the setting, in the unit that
    is shown.
    """

    published: dict[float, float] = Field(default_factory=dict)


class Panel(Section):
    """One panel of curves over epochs."""

    title: Label
    # Names; `{modality}` stands for each modality of the runs.
    metrics: tuple[Label, ...] = Field(min_length=1)
    unit: str = ""
    log: bool = False


class Report(Section):
    """What all reports have."""

    title: Label
    # Whose it is.
    paper: Literal["dgl", "cggm"]
    # Where in the paper.
    source: Label
    data: Label
    where: Where = Field(default_factory=dict)
    # The commands that make its runs; `{data}` is the data set, and in a table `{method}` the
    # method of the row.
    fill: tuple[Label, ...] = Field(min_length=1)
    # The row or series that the others are compared with.
    reference: str | None = None
    note: str = ""


class TableReport(Report):
    """Rows by columns; a cell is mean and standard deviation over seeds.

    On another data set (--data) `{modality}` stands for the modalities that its runs log.
    """

    kind: Literal["table"] = "table"
    # The data set's, for `{modality}`.
    modalities: tuple[Label, ...] = ()
    rows: tuple[TableRow, ...] = Field(min_length=1)
    columns: tuple[Column, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> TableReport:
        """Names are unique, and those referred to exist."""
        labels = [r.label for r in self.rows]
        names = [c.name for c in self.columns]
        for what, given in (("row", labels), ("column", names)):
            again = [name for name, n in Counter(given).items() if n > 1]
            if again:
                raise ValueError(f"{what}s must have names of their own, got '{again[0]}' twice")
        if self.reference is not None and self.reference not in labels:
            near = nearest(self.reference, labels)
            raise ValueError(f"reference must be the label of a row, got '{self.reference}'{near}")
        known = set()
        for column in self.columns:
            for name in self._expanded(column):
                known.add(name)
        groups = {column.group for column in self.columns if column.group}
        for row in self.rows:
            for key, named, what, allowed in (
                ("published", row.published, "columns", known),
                ("fill_below", row.fill_below, "groups of columns", groups),
            ):
                wrong = next((name for name in named if name not in allowed), None)
                if wrong is not None:
                    near = nearest(wrong, allowed)
                    raise ValueError(
                        f"{key} of row '{row.label}' must name {what}, got '{wrong}'{near}"
                    )
        return self

    def _expanded(self, column: Column) -> list[str]:
        modalities = column.modalities or self.modalities
        if MODALITY in column.name:
            found = []
            for m in modalities:
                found.append(column.name.replace(MODALITY, m))
            return found
        return [column.name]


class SweepReport(Report):
    """A metric against a setting `x` (a parameter), or its gain over the reference's runs, paired
    by seed.

    gain: whether to show differences to `reference`, whose runs need not have the setting.
    """

    kind: Literal["sweep"] = "sweep"
    x: Label
    metric: Label
    scale: float = Field(1.0, gt=0)
    label: Label
    series: tuple[SweepSeries, ...] = Field(min_length=1)
    baseline: Where = Field(default_factory=dict)
    gain: bool = True
    log: bool = False


class CurvesReport(Report):
    """Metrics over epochs, mean and standard deviation over seeds, one panel per group of metrics."""

    kind: Literal["curves"] = "curves"
    panels: tuple[Panel, ...] = Field(min_length=1)
    series: tuple[Series, ...] = Field(min_length=1)


class ScatterReport(Report):
    """Vectors of a stored artifact in two dimensions (t-SNE). artifact: a .npz with one array [N,
    D] per label.
    """

    kind: Literal["scatter"] = "scatter"
    artifact: Label
    series: tuple[Series, ...] = Field(min_length=1)


AnyReport = Annotated[
    TableReport | SweepReport | CurvesReport | ScatterReport, Field(discriminator="kind")
]
