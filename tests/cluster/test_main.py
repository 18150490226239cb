"""The command that checks cluster files: exit codes, lines, one message for what is no such file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.cases import CLUSTER, NAMES, broken
from tune_mm.cli import run_cli
from tune_mm.cluster import __main__


def exit_code(*arguments: str | Path) -> int:
    return run_cli(lambda: __main__.main([str(a) for a in arguments]))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("aws.yaml", "  cache_stopped_nodes: false", "  cache_stopped_nodes: maybe"),
        ("kuberay.yaml", "apiVersion: ray.io/v1\n", "apiVersion: ray.io/v1alpha1\n"),
        ("slurm.sbatch", "--ntasks-per-node=1", "--ntasks-per-node=4"),
        ("gcp.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
    ],
)
def test_a_problem_names_the_line(tmp_path, monkeypatch, capsys, name, old, new):
    file = broken(tmp_path, name, old, new)
    (number,) = [i for i, line in enumerate(file.text.splitlines(), 1) if new.strip() in line]
    monkeypatch.chdir(tmp_path)
    assert exit_code("check", name) == 2
    assert f" ({name} line {number}): " in capsys.readouterr().out.splitlines()[0]


def test_warnings_alone_leave_the_exit_code_at_zero(tmp_path, monkeypatch, capsys):
    broken(tmp_path, "aws.yaml", "idle_timeout_minutes: 10\n", "")
    monkeypatch.chdir(tmp_path)
    assert exit_code("check", "aws.yaml") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "warning idle-timeout (aws.yaml): idle_timeout_minutes is missing"
    assert out[1].startswith("  why: ") and out[2].startswith("  mend: ")
    assert out[-1] == "aws.yaml: 0 errors, 1 warning, 1 note"


def test_a_secret_is_not_printed(tmp_path, capsys):
    broken(tmp_path, "aws.yaml", "auth:\n", "# AKIAABCDEFGHIJKLMNOP\nauth:\n")
    assert exit_code("check", tmp_path / "aws.yaml") == 2
    assert "AKIA" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", None, "no such file"),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "a: 1\nb: 2\n", "no cluster file; it must have provider (`ray up`)"),
        ("a.yaml", "provider: {type: aws}\nprovider: {}\n", "given twice; first on line 1"),
        ("a.yaml", "provider: &x {type: aws}\nauth: *x\n", "alias '*x' is not allowed"),
        ("a.yaml", "provider: [\n", "not valid YAML"),
        (
            "a.yaml",
            "apiVersion: ray.io/v1\nkind: RayJobs\n",
            "must hold one RayJob, got RayJobs; nearest 'RayJob'",
        ),
        ("a.yaml", "kind: A\n---\nkind: !!python/name:os.system\n", "a.yaml line 3)"),
        ("a.yaml", "kind: A\n---\nkind: B\nkind: C\n", "a.yaml line 4)"),
        ("a.sh", "#!/bin/bash\nray up\n", "a script without #SBATCH directives"),
        ("a.yaml", b"provider: \xff\n", "must be UTF-8 text, got byte 0xff (line 1)"),
        ("a.yaml", b"# " + b"x" * 1_000_001, "must be at most 1000000 bytes"),
    ],
)
def test_what_is_no_cluster_file_is_refused_in_one_message(tmp_path, capsys, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert exit_code("check", path) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: check"),
        (("chek", "a.yaml"), "invalid choice: 'chek'"),
        (("check",), "required: FILE"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_message(capsys, arguments, message):
    assert exit_code(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_module_runs_as_a_command():
    command = [
        sys.executable,
        "-m",
        "tune_mm.cluster",
        "check",
        *[str(CLUSTER / name) for name in NAMES],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CLUSTER.parent)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith("0 errors, 1 note")] == [
        f"cluster/{name}: 0 errors, 1 note" for name in NAMES
    ]
