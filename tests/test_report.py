"""The command line of reports without a store: one message for a mistake, exit code 2, and nothing
is created.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_mm import report
from tune_mm.cli import run_cli


def exit_code(*arguments: str) -> int:
    return run_cli(lambda: report.main(arguments))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give names of reports, or --all"),
        (("dgl_table3", "--all"), "give names of reports, or --all"),
        (
            ("dgl_tabel3",),
            "report: no 'dgl_tabel3'; nearest 'dgl_table3'; `python -m tune_mm.report list` shows all",
        ),
        (("nowhere/mine.yaml",), "nowhere/mine.yaml"),
        (("list", "dgl_table3"), "list takes no name, got 1"),
        (("search",), "search takes one name, got 0"),
        (("search", "a", "b"), "search takes one name, got 2"),
        (("paper", "dlg"), "paper: no 'dlg'; nearest 'dgl'; available: dgl, cggm"),
        (
            ("dgl_table3", "--since", "soon"),
            "argument --since: must be a date or a time such as 2026-11-21",
        ),
        (("dgl_table3", "--sinse", "2026-11-21"), "unrecognized arguments: --sinse"),
        (
            ("dgl_table3",),
            "mlruns/mlflow.db does not exist: `python -m tune_mm.search --space NAME` makes runs",
        ),
        (("paper", "dgl"), "mlruns/mlflow.db does not exist"),
        (("search", "a"), "mlruns/mlflow.db does not exist"),
        (("list", "--tracking-uri", "sqlite:///none.db"), "none.db does not exist"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_created(
    arguments: tuple[str, ...], message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1 and told.out == ""
    assert list(elsewhere.iterdir()) == []


def test_without_a_store_the_reports_are_listed_all_the_same(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("list") == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].startswith("tracking store ") and "does not exist" in told
    assert "DGL (ICCV 2025), Table 3: Ablation of the gradient truncations" in told
    assert "made by: python -m tune_mm.search --space ablation_truncation --set data=cremad" in told
    assert list(elsewhere.iterdir()) == []


def test_an_empty_store_is_told_from_a_missing_one(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mlruns").mkdir()
    (elsewhere / "mlruns/mlflow.db").touch()
    assert exit_code("dgl_table3") == 2
    assert "is empty" in capsys.readouterr().err
    assert (elsewhere / "mlruns/mlflow.db").stat().st_size == 0


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        report.main(["--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    for word in (
        "list",
        "search NAME",
        "paper dgl",
        "--out",
        "--data",
        "--since",
        "--run",
        "--no-attach",
        "exit codes",
    ):
        assert word in told
