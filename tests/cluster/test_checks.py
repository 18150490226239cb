"""Shipped cluster files are clean; each way of breaking one is seen, and nothing else."""

from __future__ import annotations

import copy
import random
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cases import ALL, CLUSTER, LAUNCHED, MODE, NAMES, broken
from tune_mm.cluster import checks
from tune_mm.cluster.formats import kuberay
from tune_mm.config import read_yaml
from tune_mm.config.yaml import write_yaml
from tune_mm.errors import UserError


@pytest.mark.parametrize("name", NAMES)
def test_shipped_files_have_nothing_but_places_to_fill_in(name):
    assert {p.check for p in checks.problems(checks.read(CLUSTER / name))} == {"placeholder"}


@pytest.mark.parametrize(("name", "old", "new", "check", "severity", "words"), ALL)
def test_each_way_to_break_a_file_is_seen_and_nothing_else(
    tmp_path, name, old, new, check, severity, words
):
    file = broken(tmp_path, name, old, new)
    found = [p for p in checks.problems(file) if p.severity != "note"]
    assert {(p.check, p.severity) for p in found} == {(check, severity)}
    assert any(words in p.what for p in found), [p.what for p in found]
    assert all(p.why and p.mend for p in found)
    assert all(0 <= p.line <= len(file.text.splitlines()) for p in found)


def test_every_check_is_broken_by_some_case():
    cases = ALL
    assert {c[3] for c in cases} | {"volume-mode"} == {
        *(
            "unknown-key",
            "wrong-value",
            "missing-key",
            "late-directive",
            "no-workers",
            "max-workers",
            "late-workers",
        ),
        *(
            "spare-worker",
            "autoscaling-config",
            "gpu-missing",
            "idle-timeout",
            "ray-stop",
            "stop",
            "spot-head",
        ),
        *(
            "one-per-node",
            "auth-mode",
            "auth-differs",
            "auth-token",
            "telemetry",
            "secret",
            "open-port",
            "no-storage",
        ),
        *(
            "local-storage",
            "volume-mode",
            "relative-path",
            "no-project",
            "not-pinned",
            "versions-differ",
        ),
    }


def test_a_volume_of_one_node_is_no_shared_storage(tmp_path):
    file = broken(tmp_path, "kuberay.yaml", "[ReadWriteMany]", "[ReadWriteOnce]")
    errors = [p.check for p in checks.problems(file) if p.severity == "error"]
    assert sorted(errors) == ["local-storage", "volume-mode"]


def test_initialization_commands_do_not_reach_the_container(tmp_path):
    line = "  - echo 'export RAY_AUTH_MODE=token' >> ~/.bashrc\n"
    text = (CLUSTER / "aws.yaml").read_text().replace(MODE, "")
    path = tmp_path / "aws.yaml"
    path.write_text(text.replace("initialization_commands:\n", "initialization_commands:\n" + line))
    found = [p for p in checks.problems(checks.read(path)) if p.severity == "error"]
    assert {p.check for p in found} == {"auth-mode"}
    assert all("initialization_commands run outside it" in p.what for p in found)


def test_a_cloud_file_without_start_commands_gets_rays_open_dashboard(tmp_path):
    text = (CLUSTER / "aws.yaml").read_text()
    path = tmp_path / "aws.yaml"
    path.write_text(text[: text.index("# The machines are ours alone")])
    found = [p for p in checks.problems(checks.read(path)) if p.severity == "error"]
    assert [(p.check, p.line) for p in found] == [("open-port", 0)]


@pytest.mark.parametrize(
    "text",
    [
        "provider: []\n",
        "provider: {type: aws}\ndocker: x\navailable_node_types: []\nfile_mounts: 3\nsetup_commands: {a: 1}\n",
        "provider: {type: gcp}\navailable_node_types: {a: 1, b: {node_config: [], resources: {GPU: x}}}\nauth: no\n",
        "provider: {type: local, worker_ips: 3}\nmax_workers: many\nhead_start_ray_commands: ray start --head\n",
        "apiVersion: ray.io/v1\nkind: RayJob\nspec: 3\n",
        "apiVersion: ray.io/v1\nkind: RayJob\nspec: {rayClusterSpec: {headGroupSpec: [], workerGroupSpecs: [1, {}]}}\n",
        "#!/bin/bash\n#SBATCH --nodes\n#SBATCH\nray start --head\n",
    ],
)
def test_values_of_a_wrong_type_are_problems_and_no_traceback(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert any(p.severity == "error" for p in checks.problems(checks.read(path)))


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(".yaml")])
def test_any_value_in_any_place_is_no_traceback(tmp_path, name):
    """Values of all YAML types in places drawn at random: a list of problems, or one message
    (UserError).
    """
    draw = random.Random(name)
    documents = [d.data for d in checks.read(CLUSTER / name).documents]
    values = [None, True, -1, 0.5, "x", "ray start --head", [], {}, [[1], {"a": 2}], {"a": ["b"]}]
    for _ in range(12):
        changed = copy.deepcopy(documents)
        place, key = draw.choice(list(places(changed)))
        place[key] = draw.choice(values)
        path = tmp_path / name
        path.write_text("---\n".join(write_yaml(d) for d in changed if isinstance(d, dict)))
        try:
            found = checks.problems(checks.read(path))
        except UserError as error:
            assert str(error)
        else:
            assert all(p.what and p.why and p.mend for p in found)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container within, with each of its keys or indices."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else list(range(len(value)))
        if isinstance(value, list)
        else []
    )
    for key in keys:
        yield value, key
        yield from places(value[key])


def test_rayversion_that_the_image_does_not_have_is_an_error(tmp_path):
    text = (CLUSTER / "kuberay.yaml").read_text()
    image = "rayproject/ray:2.60.0-py311-gpu"
    assert kuberay.version_of(image) == "2.60.0"
    text = text.replace("YOUR_REGISTRY/tune_mm:0.1.0\n", f"{image}\n").replace(
        "rayVersion: 2.60.0", "rayVersion: 2.59.0"
    )
    path = tmp_path / "kuberay.yaml"
    path.write_text(text)
    found = {p.what for p in checks.problems(checks.read(path)) if p.check == "versions-differ"}
    assert found == {
        "rayVersion is 2.59.0, and head has 2.60.0",
        "rayVersion is 2.59.0, and workers 'gpu' has 2.60.0",
    }


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_itself_takes_the_shipped_files(name):
    """`prepare_config` and `validate_config` are what `ray up` calls first: an oracle for our
    reading of the schema.
    """
    util = pytest.importorskip("ray.autoscaler._private.util")
    raw = dict(read_yaml(CLUSTER / name).data)
    prepared = util.prepare_config(dict(raw))
    util.validate_config(prepared)
    assert prepared["head_start_ray_commands"] == raw["head_start_ray_commands"], (
        "not Ray's own, with `ray stop`"
    )


@pytest.mark.parametrize(
    "option",
    ["--account=me", "--tasks-per-node 1", "-p gpu", "-A me", "--exclusive", "--mail-type=END"],
)
def test_options_of_sbatch_are_known(tmp_path, option):
    file = broken(tmp_path, "slurm.sbatch", "#SBATCH --mem=32G", f"#SBATCH {option}")
    assert {p.check for p in checks.problems(file)} == {"placeholder"}


def test_the_slurm_script_is_valid_shell():
    done = subprocess.run(
        ["bash", "-n", CLUSTER / "slurm.sbatch"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
