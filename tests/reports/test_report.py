"""The command line of reports on a store: files, artifacts, pages; nothing but the store is read."""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.reports import sample_runs
from tune_mm import report
from tune_mm.cli import run_cli
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.track import Store

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose store is a copy of the tests'; artifacts that are added lie with
    those of all tests.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(store_root / "mlruns/mlflow.db", tmp_path / "mlruns/mlflow.db")
    return tmp_path


def run(*arguments: str) -> int:
    return run_cli(lambda: report.main(arguments))


def written(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def parent(reader: Reader, search: sample_runs.Search) -> StoredRun:
    (found,) = [r for r in reader.records() if r.search == search.uid and r.parent is None]
    return found


def test_a_table_is_printed_written_and_attached(
    here: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("table3", "--data", "avdigits", "--out", "out") == 0
    told = capsys.readouterr().out
    assert written(here / "out") == {"dgl_table3.md", "dgl_table3.csv", "dgl_table3.tex"}
    text = (here / "out/dgl_table3.md").read_text(encoding="utf-8")
    assert told.startswith(text)
    assert "attached to 1 search\n" in told
    means = [
        float(r["mean"])
        for r in csv.DictReader((here / "out/dgl_table3.csv").open(encoding="utf-8"))
    ]
    assert means[::3] == pytest.approx(
        [100 * (cell.base + 0.022) for cell in sample_runs.TRUNCATION]
    )
    reader = Reader.open(None, here)
    file = reader.artifact(parent(reader, sample_runs.NEWER), "reports/dgl_table3.md")
    assert file is not None and file.read_text(encoding="utf-8") == text
    assert reader.artifact(parent(reader, sample_runs.ALPHAS), "reports/dgl_table3.md") is None


def test_a_figure_is_a_picture_with_its_caption(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("dgl_alpha", "--data", "avdigits", "--no-attach") == 0
    told = capsys.readouterr().out
    assert written(here / "reports") == {"dgl_alpha.png", "dgl_alpha.svg", "dgl_alpha.md"}
    assert Image.open(here / "reports/dgl_alpha.png").width > 500
    caption = (here / "reports/dgl_alpha.md").read_text(encoding="utf-8")
    assert caption.startswith(
        "![Accuracy against the weight of the unimodal losses](dgl_alpha.png)\n\n"
    )
    assert "avdigits (real), n = 3 seeds" in caption and "attached" not in told


def test_a_figure_is_attached_to_the_search_that_it_is_drawn_from(here: Path) -> None:
    assert run("cggm_fig5a", "--data", "utd_mhad") == 0
    reader = Reader.open(None, here)
    assert reader.artifact(parent(reader, sample_runs.RHOS), "reports/cggm_fig5a.svg") is not None


def test_missing_runs_are_no_mistake(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dgl_table3") == 0
    told = capsys.readouterr().out
    assert "Data: cremad (no runs)" in told and "attached" not in told
    assert "      python -m tune_mm.search --space ablation_truncation --set data=cremad\n" in told


def test_a_report_of_ones_own_needs_no_code(here: Path) -> None:
    lines = (
        (REPOSITORY / "configs/paper/dgl_table3.yaml")
        .read_text(encoding="utf-8")
        .replace("cremad", "avdigits")
    )
    (here / "mine.yaml").write_text(lines, encoding="utf-8")
    assert run("mine.yaml", "--no-attach") == 0
    assert written(here / "reports") == {"mine.md", "mine.csv", "mine.tex"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("table3", "--data", "avdigit"),
            "--data: no runs on 'avdigit'; nearest 'avdigits'; available: ",
        ),
        (
            ("table3", "--run", "ablation_alpha"),
            "--run: no search or run 'ablation_alpha'; nearest 'ablation_alpha-1'",
        ),
        (("search", "ablation_alpha"), "nearest 'ablation_alpha-1'"),
        (
            ("table3", "--no-attach", "--out", "taken/out"),
            "--out: cannot write to taken/out: Not a directory",
        ),
    ],
)
def test_what_is_not_there_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (here / "taken").touch()
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1


def test_since_and_run_narrow_down(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("table3", "--data", "avdigits", "--no-attach", "--run", sample_runs.OLDER.name) == 0
    assert "| Baseline | 57.20 ± " in capsys.readouterr().out
    assert run("table3", "--data", "avdigits", "--no-attach", "--since", "2100-01-01") == 0
    assert "Missing: 12 of 12 cells." in capsys.readouterr().out


def test_the_list_counts_runs_by_data_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("dgl_table3 ")]
    assert (
        lines[at + 1].strip() == "runs: avdigits 27"
    )  # four cells of two searches and one of a third, three seeds
    assert run("list", "--since", "2100-01-01") == 0
    assert {line.strip() for line in capsys.readouterr().out.splitlines() if "runs: " in line} == {
        "runs: none"
    }


def test_pages_are_written_and_attached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", sample_runs.ALPHAS.name) == 0
    assert run("paper", "dgl", "--data", "avdigits") == 0
    # DGL's rows are of the truncations, of the weights and, in the tables of methods, of the search
    # that goes on.
    assert "attached to 3 searches" in capsys.readouterr().out
    assert written(here / "reports") == {"search_ablation_alpha-1.html", "paper_dgl.html"}
    page = (here / "reports/paper_dgl.html").read_text(encoding="utf-8")
    assert all(
        f'id="{name}"' in page for name in ("dgl_table1", "dgl_table3", "dgl_fig1", "dgl_alpha")
    )
    assert "cggm_fig5a" not in page
    reader = Reader.open(None, here)
    found = reader.artifact(
        parent(reader, sample_runs.ALPHAS), "reports/search_ablation_alpha-1.html"
    )
    assert found is not None and sample_runs.ALPHAS.name in found.read_text(encoding="utf-8")
    searches = (
        sample_runs.OLDER,
        sample_runs.NEWER,
        sample_runs.ALPHAS,
        sample_runs.RHOS,
        sample_runs.UNFINISHED,
    )
    having = []
    for search in searches:
        if reader.artifact(parent(reader, search), "reports/paper_dgl.html") is not None:
            having.append(search)
    assert having == [sample_runs.NEWER, sample_runs.ALPHAS, sample_runs.UNFINISHED]


def elsewhere(
    folder: Path, code: str, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: MLflow remembers, as long as a process lives, where artifacts
    of a run lie.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )


def test_a_store_for_reading_only_still_gives_reports(here: Path) -> None:
    newer = parent(Reader.open(None, here), sample_runs.NEWER)
    (here / "blocked").touch()  # no folder of artifacts can be made where a file has its name
    uri = f"{(here / 'blocked').as_uri()}/artifacts"
    with sqlite3.connect(here / "mlruns/mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (uri, newer.id))
    done = elsewhere(
        here, "from tune_mm import report; report.main(['table3', '--data', 'avdigits'])"
    )
    assert done.returncode == 0
    assert done.stderr.startswith("not attached: dgl_table3.md cannot be attached to run")
    assert "attached to" not in done.stdout
    assert "dgl_table3.tex" in written(here / "reports")


def test_neither_torch_nor_ray_is_loaded_and_a_closed_pipe_loses_no_file(here: Path) -> None:
    code = (
        "import sys; from tune_mm import report; "
        "report.main(['table3', 'table4', 'dgl_fig1', '--data', 'avdigits', '--no-attach']); "
        "print(sorted({'torch', 'ray'} & set(sys.modules)), file=sys.stderr)"
    )
    read, write = os.pipe()
    os.close(read)
    done = elsewhere(here, code, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert {"dgl_table3.tex", "dgl_table4.tex", "dgl_fig1.png"} <= written(here / "reports")
