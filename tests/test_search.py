"""The command line of the search: flags, exit codes, one message for a mistake. Nothing is searched
here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune_mm import search
from tune_mm.cli import run_cli

REPOSITORY = Path(__file__).resolve().parent.parent


def exit_code(*arguments: str) -> int:
    return run_cli(lambda: search.main(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--space NAME or PATH is needed"),
        (("--space", "cggm_iemocp"), "no such name 'cggm_iemocp'; nearest 'cggm_iemocap'"),
        (("--space", "nowhere/mine.yaml"), "nowhere/mine.yaml"),
        (("--spaces", "cggm_iemocap"), "unrecognized arguments: --spaces"),
        (
            ("--space", "cggm_iemocap", "--trials", "0"),
            "argument --trials: must be an integer >= 1, got '0'",
        ),
        (
            ("--space", "cggm_iemocap", "--trials", "x"),
            "argument --trials: must be an integer >= 1, got 'x'",
        ),
        (
            ("--space", "cggm_iemocap", "--gpus-per-trial", "-1"),
            "(whole above 1), such as 0.25, got '-1'",
        ),
        (
            ("--space", "cggm_iemocap", "--gpus-per-trial", "1.5"),
            "must be auto or a number >= 0 (whole above 1)",
        ),
        (("--space", "cggm_iemocap", "--cpus-per-trial", "nan"), "must be a number > 0, got 'nan'"),
        (
            ("--space", "cggm_iemocap", "--time-budget", "soon"),
            "must be a time such as 90s, 30m or 1.5h, got 'soon'",
        ),
        (("--space", "cggm_iemocap", "--set", "optim.lr"), "must be key=value, got 'optim.lr'"),
        (
            ("--space", "cggm_iemocap", "--set", "optim.lrr=1"),
            "optim.lrr: no such key; nearest 'optim.lr'",
        ),
        (
            ("--space", "cggm_iemocap", "--set", "optim.lr=fast"),
            "optim.lr: must be a number, got 'fast'",
        ),
        (("--space", "cggm_iemocap", "--seed", "-1"), "argument --seed: must be an integer from 0"),
        (
            ("--space", "cggm_iemocap", "--data-root", "/nowhere"),
            "--data-root: must be an existing folder, got /nowhere",
        ),
        (("--space", "cggm_iemocap", "--resume"), "no search of the space 'cggm_iemocap'"),
        (("--name", "x", "--resume", "--extend", "3"), "--resume and --extend: give one of them"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNE_MM_DATA", raising=False)
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172800)]
)
def test_time_budgets(text: str, seconds: float) -> None:
    assert search.parser().parse_args(["--time-budget", text]).time_budget == seconds


def test_values_of_set_are_read_as_in_files() -> None:
    given = search.parser().parse_args(
        ["--set", "optim.lr=1e-3", "--set", "model.fusion=sum", "--set", "optim.clip=null"]
    )
    assert given.settings == [("optim.lr", 1e-3), ("model.fusion", "sum"), ("optim.clip", None)]


def test_real_data_may_be_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNE_MM_DATA", raising=False)
    assert exit_code("--space", "cggm_iemocap", "--require-real", "--dry-run") == 2
    assert "real data are required" in capsys.readouterr().err


def test_list_and_dry_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TUNE_MM_CACHE": str(tmp_path / "cache"),
    }
    environment.pop("TUNE_MM_DATA", None)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tune_mm.search", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    listed = call("--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "cggm_iemocap" in listed.stdout
    planned = call("--space", "joint_utd", "--dry-run", "--trials", "5", "--set", "optim.lr=1e-3")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "SYNTHETIC" in planned.stdout
    assert "joint_utd-1" in planned.stdout
    assert not (tmp_path / "mlruns").exists()
