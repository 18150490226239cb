"""The page of a paper: our values beside the published ones, what is missing, and nothing from
outside.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.reports import sample_runs
from tests.reports.pages.pages import EVIL, Page
from tune_mm.errors import ConfigError
from tune_mm.reports.figures.figures import Figure, sweep
from tune_mm.reports.pages.paper_page import paper_page
from tune_mm.reports.runs.select import Choice
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.spec.spec import Column, SweepReport, SweepSeries, TableReport, TableRow
from tune_mm.reports.tables.tables import Table, build


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


def truncation(reader: Reader, **changes: Any) -> Table:
    """DGL's Table 3 on the runs of NEWER, in per cent: truncation of both losses' gradients by row."""
    cells = (
        ("no", False, False, 67.1),
        ("multi", True, False, None),
        ("uni", False, True, None),
        ("both", True, True, 76.1),
    )
    rows = tuple(
        TableRow(
            label=name,
            where={"method.truncate_multimodal": multi, "method.truncate_unimodal": uni},
            published={"all": value} if value else {},
        )
        for name, multi, uni, value in cells
    )
    columns = (
        Column(label="all", metric="test/accuracy", scale=100),
        Column(label="rgb", metric="test/accuracy/rgb", group="alone", scale=100),
    )
    given: dict[str, Any] = {
        "title": "Truncation",
        "paper": "dgl",
        "source": "Table 3",
        "data": "avdigits",
        "where": {"method": "dgl"},
        "fill": ("python -m tune_mm.search --space ablation_truncation",),
        "reference": "no",
        "rows": rows,
        "columns": columns,
    }
    report = TableReport(**{**given, **changes})
    return build(
        report,
        reader.records(),
        Choice(data=None, since=None, run=sample_runs.NEWER.name),
        "dgl_table3",
    )


def alpha(
    reader: Reader,
    title: str = "Weight of the unimodal losses",
    data: str = "avdigits",
    gain: bool = False,
) -> Figure:
    """DGL's Table 4 as a curve, on the runs of ALPHAS."""
    report = SweepReport(
        title=title,
        paper="dgl",
        source="Table 4",
        data=data,
        x="method.alpha",
        metric="test/accuracy",
        label="accuracy",
        fill=("python -m tune_mm.search --space ablation_alpha --set data={data}",),
        gain=gain,
        series=(SweepSeries(label="DGL", where={"method": "dgl"}),),
        where={"space": "ablation_alpha"},
        baseline={"method": "joint"},
    )
    return sweep(
        report, reader.records(), reader, Choice(data=None, since=None, run=None), "dgl_alpha"
    )


def test_a_papers_page_shows_our_values_marked_beside_the_papers(reader: Reader) -> None:
    text = paper_page("dgl", [truncation(reader)], [], "sqlite:///x.db")
    page = Page(text)
    # the mean over seeds of 100 (b + 0.01 s + 0.002 ((s + i) mod 3)) is 100 b + 2.2
    ours = [float(cell.split(" ± ")[0]) for cell in page.column("all", "all")[:4]]
    assert ours == pytest.approx([100 * c.base + 2.2 for c in sample_runs.TRUNCATION])
    assert page.column("all", "all")[0].endswith("[67.10]") and page.column("all", "all")[
        3
    ].endswith("[76.10]")
    assert "[" not in page.column("all", "all")[1]
    best, second = (
        100 * sample_runs.TRUNCATION[3].base + 2.2,
        100 * sample_runs.TRUNCATION[2].base + 2.2,
    )
    assert re.findall(r"<strong>([\d.]+) ", text) == [f"{best:.2f}"]
    assert re.findall(r"<u>([\d.]+) ", text) == [f"{second:.2f}"]
    assert "DGL (ICCV 2025)" in page.text and "from sqlite:///x.db" in page.text
    assert "Differences to no" in page.text and f"{100 * (0.75 - 0.65):+.2f} [" in page.text


def test_what_a_paper_page_lacks_is_shown_with_the_command_that_makes_it(reader: Reader) -> None:
    table = truncation(
        reader,
        rows=(TableRow(label="G-Blending", where={"method": "cggm"}),),
        reference=None,
        where={},
    )
    text = paper_page("dgl", [table], [alpha(reader, data="cremad")])
    page = Page(text)
    assert page.column("all", "all") == ["missing"]
    assert "python -m tune_mm.search --space ablation_truncation" in page.text
    assert "python -m tune_mm.search --space ablation_alpha --set data=cremad" in page.text
    gain = alpha(reader, data="cremad", gain=True)  # whose line at 0 is there without runs
    assert "<svg" not in paper_page("dgl", [], [gain])
    assert "No runs to draw." in page.text and "<svg" not in text  # rather than empty axes


def test_a_papers_page_is_whole_small_and_its_contents_lead_to_its_parts(reader: Reader) -> None:
    text = paper_page("dgl", [truncation(reader)], [alpha(reader)])
    page = Page(text)
    assert [load for load in page.loads if not load.startswith("href=#")] == []
    targets = {load.removeprefix("href=#") for load in page.loads if not load.startswith("href=#m")}
    assert {"dgl_table3", "dgl_alpha"} <= targets
    assert all(f'<section id="{name}">' in text for name in ("dgl_table3", "dgl_alpha"))
    assert text.count("<svg") == 1 and len(text) < 200_000


def test_what_comes_from_reports_is_escaped_on_a_papers_page(reader: Reader) -> None:
    table = truncation(reader, title=EVIL, note=EVIL)
    text = paper_page("dgl", [table], [alpha(reader, title=EVIL)], EVIL)
    assert "<script>alert" not in text
    assert Page(text).text.count(EVIL) >= 5


def test_an_unknown_paper_is_refused_with_the_nearest(reader: Reader) -> None:
    with pytest.raises(ConfigError, match="no 'cgm'; nearest 'cggm'; available: dgl, cggm"):
        paper_page("cgm", [], [])
    assert "No tables and no figures." in Page(paper_page("cggm", [], [])).text
