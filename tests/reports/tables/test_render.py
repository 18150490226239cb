"""Tables as Markdown, CSV and LaTeX: every cell is there, and no name breaks the markup."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.reports.tables.tabling import choice, made, mine, percents, seeds, shipped, t_interval
from tune_mm.reports import catalogue
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.tables.tables import Table, build, render_csv, render_latex, render_markdown

EVIL = r"50%_a&b#{x}\$~^|<b>"


@pytest.fixture(scope="module")
def records(store_root: Path) -> Sequence[StoredRun]:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root).records()


@pytest.fixture
def evil() -> Table:
    """A table whose names and texts are markup; two groups of columns."""
    columns = [
        {"group": EVIL, "label": EVIL, "metric": "test/accuracy", "scale": 100},
        {"group": EVIL, "label": "F1", "metric": "test/f1"},
        {"label": "Alone", "metric": "test/f1"},
    ]
    rows = [
        {"label": EVIL, "where": {"method": "joint"}},
        {"label": "[B]", "where": {"method": "dgl"}},
    ]
    report = mine(title=EVIL, note=EVIL, columns=columns, rows=rows, reference=EVIL)
    found = [*made("joint", seeds(0.5, 0.6, 0.7)), *made("dgl", seeds(0.6, 0.8, 0.9))]
    return build(report, found, choice(), "evil_1")


def cells(line: str) -> list[str]:
    """Cells of a line of a Markdown table."""
    return [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_a_line_per_row_with_marks_and_brackets(records: Sequence[StoredRun]) -> None:
    lines = render_markdown(build(shipped("dgl_table3"), records, choice("avdigits"))).splitlines()
    assert lines[0] == "# Ablation of the gradient truncations"
    assert cells(lines[2]) == ["", "Accuracy", "audio alone", "visual alone"]
    std = statistics.stdev(percents(3))
    assert cells(lines[7])[:2] == ["DGL (MT+UT)", f"**77.20 ± {std:.2f}** [77.48]"]
    assert cells(lines[6])[1].startswith("<u>74.20 ± ")
    rest = lines[lines.index("Difference to Baseline:") :]
    low, high = t_interval([a - b for a, b in zip(percents(3), percents(0), strict=True)])
    assert cells(rest[6])[1] == f"+10.00 [{low:.2f}, {high:.2f}], p = 0.25"


def test_markdown_escapes_what_would_be_markup(evil: Table) -> None:
    text = render_markdown(evil)
    assert {len(cells(line)) for line in text.splitlines() if line.startswith("|")} == {4}
    assert not re.search(r"(?<!\\)<b>", text)
    assert r"50%\_a&b#{x}\\$~^\|\<b>" in text


def test_markdown_names_missing_cells_and_commands(records: Sequence[StoredRun]) -> None:
    text = render_markdown(build(shipped("dgl_table4"), records, choice()))
    assert "| alpha = 4 | missing [69.21] | missing [77.48] |" in text
    command = "python -m tune_mm.search --space ablation_alpha --set data=cremad"
    assert text.index("Missing:\n") < text.index(f"\n      {command}\n")


def test_csv_has_a_row_per_cell_with_all_digits(evil: Table) -> None:
    found = list(csv.DictReader(io.StringIO(render_csv(evil))))
    assert len(found) == 2 * 3
    first, last = found[0], found[3]
    assert (first["report"], first["row"], first["column"], first["data"]) == (
        "evil_1",
        EVIL,
        f"{EVIL} {EVIL}",
        "avdigits",
    )
    assert (first["status"], first["n"], first["published"], first["reference"]) == (
        "measured",
        "3",
        "",
        "",
    )
    assert float(first["mean"]) == pytest.approx(60) and float(first["std"]) == pytest.approx(10)
    assert (last["row"], last["best"], last["second"], last["reference"], last["n_paired"]) == (
        "[B]",
        "1",
        "0",
        EVIL,
        "3",
    )
    ends = t_interval([10, 20, 20])
    assert [float(last[k]) for k in ("difference", "low", "high", "p")] == pytest.approx(
        [50 / 3, *ends, 0.25]
    )
    missing = found[1]
    assert (missing["status"], missing["mean"]) == ("missing", "")
    assert missing["why"] == "test/f1 is not logged for seeds 1, 2, 3"


def test_csv_tells_missing_from_not_applicable(records: Sequence[StoredRun]) -> None:
    found = list(
        csv.DictReader(io.StringIO(render_csv(build(shipped("dgl_table1"), records, choice()))))
    )
    alone = {r["column"]: r["status"] for r in found if r["row"] == "audio only"}
    assert alone["KS audio"] == "missing" and alone["KS visual"] == alone["KS multi"] == "none"
    assert {r["published_on"] for r in found if r["published"]} == {
        "cremad",
        "kinetics_sounds",
        "vggsound",
    }


def test_latex_is_well_formed_whatever_the_names(evil: Table) -> None:
    text = render_latex(evil)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    known = re.compile(
        r"\\(?:begin|end)\{(?:table|tabular)\}|\\(?:centering|toprule|midrule|bottomrule|medskip|smallskip)\b"
        r"|\\(?:caption|label|textbf|underline)(?=\{)|\\multicolumn\{\d+\}\{c\}|\\cmidrule\(lr\)\{\d-\d\}"
        r"|\\text(?:backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[&%$#_{}]|\\\\|\$\\pm\$|(?<=\})\{l?r+\}"
    )
    rest = known.sub(lambda m: "{}" if m[0] == "\\\\" else "", body)
    assert not re.search(r"[\\$#%^~_<>|]", rest)
    depth = 0
    for sign in re.sub(r"\\[{}]", "", body):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0


def test_latex_has_as_many_cells_as_columns_and_groups_over_them(evil: Table) -> None:
    text = render_latex(evil)
    rows = [
        line for line in text.splitlines() if line.endswith(r" \\") and "multicolumn" not in line
    ]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {3}
    assert len(rows) == 2 * 1 + 2 + 1  # headings twice, two rows, and one with differences
    assert r"\cmidrule(lr){2-3}" in text and r"\cmidrule(lr){4-4}" not in text
    # A bracket that opens a row would be read as the option of the line break before it.
    assert rows[2].startswith("{[B]} & \\textbf{76.67")


def test_latex_marks_the_best_and_names_the_packages(records: Sequence[StoredRun]) -> None:
    text = render_latex(build(shipped("dgl_table3"), records, choice("avdigits"), "dgl_table3"))
    assert text.startswith("% \\usepackage{booktabs}\n")
    assert r"\label{tab:dgl-table3}" in text
    assert re.search(r"\{DGL \(MT\+UT\)\} & \\textbf\{77\.20 \$\\pm\$ \d\.\d\d\} \[77\.48\]", text)
    assert re.search(r"\{\+UT\} & \\underline\{74\.20", text)


def test_everything_that_is_shipped_can_be_built_of_nothing_and_of_a_store(
    records: Sequence[StoredRun],
) -> None:
    for name in (n for n in catalogue.names() if "table" in n):
        for data in (None, "avdigits", "utd_mhad", "mosi"):
            for found in ([], records):
                table = build(shipped(name), found, choice(data), name)
                assert len(list(csv.DictReader(io.StringIO(render_csv(table))))) == len(
                    table.rows
                ) * len(table.columns)
                assert render_markdown(table).count("\n| ") >= len(table.rows)
                assert render_latex(table).count("\\begin{tabular}") == (2 if table.compared else 1)
