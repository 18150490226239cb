"""`ray up`, `ray submit`, `ray job submit` and `ray down` with the shipped cluster/onprem.yaml, on
two machines.

The machines are this one, twice (`machines`); what is replaced in the file is listed, with reasons,
in `shipped`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.submit.client import PATIENCE, Cluster
from tests.submit.machines import SHARED
from tests.submit.shipped import ADDRESSES
from tune_mm.track import Store

pytestmark = pytest.mark.slow
DATA = SHARED / "data"
SPACE = "joint_utd"
RUNS = {"search": 4, "final": 3}  # --trials, and the seeds of the space's finals
SMALL = ("--space", SPACE, "--require-real", "--trials", str(RUNS["search"]), "--epochs", "2")


def summary(mlruns: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((mlruns / "search" / name / "summary.json").read_text())
    return found


def statuses(mlruns: Path, name: str) -> dict[str, list[str]]:
    """Of the trials that the MLflow store has of a search, by stage."""
    client = Store.open(f"sqlite:///{mlruns}/mlflow.db", mlruns.parent).client()
    experiment = client.get_experiment_by_name(SPACE)
    runs = client.search_runs([experiment.experiment_id], f"tags.search = '{name}'")
    out: dict[str, list[str]] = {}
    for run in runs:
        if "mlflow.parentRunId" in run.data.tags:
            out.setdefault(run.data.tags["stage"], []).append(run.data.tags["status"])
    return out


@pytest.fixture(scope="module")
def submitted(cluster: Cluster) -> str:
    """What `ray submit` of a search said that has ended well, as one line: the remote terminal
    breaks lines.
    """
    done = cluster.submit(*SMALL, "--data-root", DATA, "--storage", SHARED / "tune_mm")
    assert done.returncode == 0, done.stdout
    return " ".join(done.stdout.split())


def test_the_check_finds_no_errors(cluster: Cluster) -> None:
    done = cluster.command(sys.executable, "-m", "tune_mm.cluster", "check", cluster.file)
    assert done.returncode == 0, done.stdout
    assert "onprem.yaml: 0 errors" in done.stdout


def test_a_submitted_search_is_complete(cluster: Cluster, submitted: str) -> None:
    assert (
        f"search {SPACE}-1: 4 trials, 2 at a time, 2 epochs, real data in {DATA}/utd_mhad"
        in submitted
    )
    mlruns = cluster.results("submit")
    assert summary(mlruns, f"{SPACE}-1")["status"] == "completed"
    found = statuses(mlruns, f"{SPACE}-1")
    assert {stage: len(them) for stage, them in found.items()} == RUNS
    assert set(found["final"]) == {"completed"} and set(found["search"]) <= {"completed", "pruned"}


@pytest.mark.usefixtures("submitted")
def test_trials_ran_on_both_machines(cluster: Cluster) -> None:
    # /tmp is each machine's own: a worker's log lies where the worker ran.
    for machine in cluster.machines:
        assert machine.workers_of("RunTrainable"), f"no trial ran on {machine.address}"


@pytest.mark.usefixtures("submitted")
def test_a_second_submit_extends_the_search(cluster: Cluster) -> None:
    done = cluster.submit("--space", SPACE, "--extend", "1")
    assert done.returncode == 0, done.stdout
    assert f"extended by 1 {SPACE}-1: 5 trials" in " ".join(done.stdout.split())
    assert len(statuses(cluster.results("extend"), f"{SPACE}-1")["search"]) == RUNS["search"] + 1


def test_a_job_is_a_search_too(cluster: Cluster) -> None:
    done = cluster.job(
        *SMALL, "--name", "job", "--data-root", DATA, "--storage", SHARED / "tune_mm_jobs"
    )
    assert done.returncode == 0, done.stdout
    mlruns = cluster.results("job")
    assert summary(mlruns, "job")["status"] == "completed"
    assert {stage: len(them) for stage, them in statuses(mlruns, "job").items()} == RUNS


@pytest.mark.parametrize("way", ["submit", "job"])
def test_an_unknown_space_is_a_message_and_an_exit_code(cluster: Cluster, way: str) -> None:
    done = getattr(cluster, way)("--space", "joint_udt", "--data-root", DATA)
    assert done.returncode != 0
    assert "no such name 'joint_udt'; nearest 'joint_utd'" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout


def test_a_job_without_the_token_is_refused(cluster: Cluster) -> None:
    done = cluster.job("--list", token=False)
    assert done.returncode != 0
    assert "cggm_iemocap" not in done.stdout


def test_storage_of_one_machine_is_refused(cluster: Cluster) -> None:
    done = cluster.submit(
        *SMALL, "--name", "unsafe", "--data-root", DATA, "--storage", "/tmp/checkpoints"
    )
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert re.search(
        rf"--storage: /tmp/checkpoints\S* is not seen by 1 of 2 nodes \(.*{ADDRESSES[1]}", said
    )
    assert "Traceback" not in said


def test_data_of_one_machine_are_refused(cluster: Cluster, data_root: Path) -> None:
    shutil.copytree(data_root / "utd_mhad", cluster.machines[0].tmp / "data" / "utd_mhad")
    done = cluster.submit(
        *SMALL, "--name", "lone", "--data-root", "/tmp/data", "--storage", SHARED / "tune_mm"
    )
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "data are missing on 1 of 2 nodes" in said and f"{ADDRESSES[1]}): " in said
    assert "Traceback" not in said


def test_down_and_a_word_to_the_worker_end_ray(cluster: Cluster) -> None:
    head, worker = cluster.machines
    assert head.of_ray() and worker.of_ray()
    done = cluster.command("ray", "down", "-y", cluster.file)
    assert done.returncode == 0, done.stdout
    assert not head.of_ray()
    (words,) = [
        line[1:].split("#")[0].split()
        for line in cluster.file.read_text().splitlines()
        if "pkill" in line
    ]
    cluster.command(*words)
    end = time.monotonic() + PATIENCE
    while left := worker.of_ray():
        assert time.monotonic() < end, left
