"""What a report is: one YAML file in `configs/paper/`, strict, so that a table or a figure more needs no code.

`where` selects runs by tags and parameters (text, numbers and booleans as MLflow shows them; a list: any of them). A
row's or a series' `where` comes on top of the report's, a column's on top of both. The data set is none of them: it is
`data`, or what --data says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tune_mm.config import Section

Scalar = bool | int | float | str | None
Where = dict[str, Scalar | tuple[Scalar, ...]]
Label = Annotated[str, Field(min_length=1)]


class Row(Section):
    """A row of a table. published: the paper's values by column label, in the unit that is shown."""

    label: Label
    where: Where = Field(default_factory=dict)
    published: dict[str, float] = Field(default_factory=dict)


class Column(Section):
    """A column. metric: of the run, as logged; scale: 100 for per cent; best: which way is better (none: no marks).

    data: a data set of its own (null: the report's).
    """

    label: Label
    metric: Label
    where: Where = Field(default_factory=dict)
    data: str | None = None
    scale: float = Field(1.0, gt=0)
    digits: int = Field(2, ge=0, le=6)
    best: Literal["max", "min", "none"] = "max"


class Series(Section):
    """One line of a figure."""

    label: Label
    where: Where = Field(default_factory=dict)


class Panel(Section):
    """One panel of curves over epochs. metrics: names; `{modality}` stands for each modality of the runs."""

    title: Label
    metrics: tuple[Label, ...] = Field(min_length=1)
    unit: str = ""
    log: bool = False


class Report(Section):
    """What all reports have. paper: whose it is; source: where in the paper; fill: the commands that make its runs.

    `{data}` in `fill` is the data set. reference: the row or series that the others are compared with.
    """

    title: Label
    paper: Literal["dgl", "cggm"]
    source: Label
    data: Label
    where: Where = Field(default_factory=dict)
    fill: tuple[Label, ...] = Field(min_length=1)
    reference: str | None = None
    note: str = ""


class TableReport(Report):
    """Rows by columns; a cell is mean and standard deviation over seeds."""

    kind: Literal["table"] = "table"
    rows: tuple[Row, ...] = Field(min_length=1)
    columns: tuple[Column, ...] = Field(min_length=1)


class SweepReport(Report):
    """A metric against a setting `x` (a parameter), or its gain over the reference's runs, paired by seed.

    gain: whether to show differences to `reference`, whose runs need not have the setting.
    """

    kind: Literal["sweep"] = "sweep"
    x: Label
    metric: Label
    scale: float = Field(1.0, gt=0)
    label: Label
    series: tuple[Series, ...] = Field(min_length=1)
    baseline: Where = Field(default_factory=dict)
    gain: bool = True
    log: bool = False


class CurvesReport(Report):
    """Metrics over epochs, mean and standard deviation over seeds, one panel per group of metrics."""

    kind: Literal["curves"] = "curves"
    panels: tuple[Panel, ...] = Field(min_length=1)
    series: tuple[Series, ...] = Field(min_length=1)


class ScatterReport(Report):
    """Vectors of a stored artifact in two dimensions (t-SNE). artifact: a .npz with one array [N, D] per label."""

    kind: Literal["scatter"] = "scatter"
    artifact: Label
    series: tuple[Series, ...] = Field(min_length=1)


AnyReport = Annotated[TableReport | SweepReport | CurvesReport | ScatterReport, Field(discriminator="kind")]
