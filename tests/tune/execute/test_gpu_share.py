"""How many trials share a GPU, and what is measured for it; with fake GPUs, which Ray counts and
nothing uses.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import ray
import torch
from rich.console import Console

from tests.tune.conftest import TOY, Searches
from tests.tune.toy import Toy
from tune_mm.config import flatten, load_config, with_overrides
from tune_mm.core.run import Run
from tune_mm.core.types import Padded, Stored
from tune_mm.data import base
from tune_mm.errors import UserError
from tune_mm.tune import search
from tune_mm.tune.execute import footprint, gpu_share, mps, nodes, ray_session, trainable
from tune_mm.tune.execute.nodes import Node
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.space import space as space_files

GB = 2**30


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "expected"),
    [
        (1, 0, (8, 0), 8),
        (0.5, 0, (3, 4), 6),  # a CPU trial on a node with GPUs
        (1, 0.25, (16, 0), 0),  # a node without GPUs takes none of the GPU trials
        (1, 0.25, (16, 2), 8),
        (1, 0.4, (16, 2), 4),  # two on each: one that lay on both would be on none
        (1, 0.3, (16, 1), 3),
        (2, 0.25, (5, 2), 2),  # CPUs are short
        (1, 2, (16, 5), 2),
        (1, 0.1, (16, 1), 10),
    ],
)
def test_a_node_takes_what_fits(
    cpus: float, gpus: float, node: tuple[float, float], expected: int
) -> None:
    assert ray_session.room(Node("id", "name", True, *node), cpus, gpus) == expected


@pytest.mark.parametrize(
    ("taken", "memory", "most", "expected"),
    [
        (10 * GB, 80 * GB, 16, 7),  # .92 of 80 is 73.6
        (10 * GB, 80 * GB, 4, 4),  # as many as have CPUs
        (75 * GB, 80 * GB, 16, 1),
        (90 * GB, 80 * GB, 16, 1),  # one has to go on in parts
    ],
)
def test_memory_and_cpus_bound_the_trials_of_a_gpu(
    taken: int, memory: int, most: int, expected: int
) -> None:
    assert gpu_share.fitting(taken, memory, most) == expected


@pytest.fixture(scope="module")
def fake() -> Iterator[None]:
    """A Ray with 8 CPUs and two GPUs that are not there, in place of the one that other tests
    share.
    """
    shared = ray.is_initialized()
    ray.shutdown()
    ray_session.quiet()
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=2,
        object_store_memory=ray_session.STORE,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    if shared:
        ray_session.connect(None, 1, 2)


def test_auto_divides_the_smallest_gpu_by_what_a_trial_takes(
    fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 GiB of 40: three fit; a third, to Ray's four digits; 8 CPUs for two GPUs would let four."""
    monkeypatch.setattr(gpu_share, "_memory", _forty)
    share, why = gpu_share.share(1, _twelve)
    assert share == 0.3333
    assert why == "one trial takes up to 12.00 of 40 GiB: 3 at a time on a GPU"
    assert ray_session.slots(1, share, None) == 6
    share, _ = gpu_share.share(2, _twelve)
    assert (share, ray_session.slots(2, share, None)) == (0.5, 4)


def test_without_a_measurement_a_trial_has_a_gpu(fake: None) -> None:
    assert gpu_share.share(1, None)[0] == 1.0


def test_a_gpu_that_torch_cannot_use_is_told_with_its_node(fake: None) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(
        UserError, match=r"node .+: .*Ray counts a GPU here, but torch cannot use it"
    ):
        gpu_share.share(1, _twelve)


def test_a_measurement_that_fails_says_what_to_give(
    fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_share, "_memory", _forty)
    with pytest.raises(
        UserError,
        match="cannot be measured: heads must divide width; give --gpus-per-trial a number",
    ):
        gpu_share.share(1, _refused)


def test_a_search_books_parts_of_gpus(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a GPU each: four at once; and never more than two on one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    space, out = Searches(tmp_path).write(TOY.replace("epochs: 9", "epochs: 1")), StringIO()
    options = Options(root=tmp_path, space=space, gpus=0.5, trials=8)
    assert search.run(options, Console(file=out, width=200), build=partial(Toy, wait=0.2)) == 0
    assert "8 trials, 4 at a time" in out.getvalue()
    workers = [
        t.user_attrs["best_metrics"]["val/worker"]
        for t in Searches(tmp_path).book("toy-1").trials()
    ]
    assert len(set(workers)) == 4


FAKE_MPS = """#!{shell}
if [ "$1" = -d ]; then touch "$CUDA_MPS_PIPE_DIRECTORY/control"; exit 0; fi
read command
[ -e "$CUDA_MPS_PIPE_DIRECTORY/control" ] || {{ echo "Cannot find MPS control daemon process" >&2; exit 1; }}
[ "$command" != quit ] || rm "$CUDA_MPS_PIPE_DIRECTORY/control"
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that keeps to the part of the daemon's interface which is used: -d,
    get_server_list, quit.
    """
    program = tmp_path / "bin" / mps.PROGRAM
    program.parent.mkdir()
    program.write_text(FAKE_MPS.format(shell="/bin/bash"))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "pipe"


def test_mps_is_started_once_and_ended_by_whom_it_was_started(control: Path) -> None:
    assert mps._start(str(control))
    assert not mps._start(str(control)), "it runs already"
    assert (control / "control").exists() and stat.S_IMODE(control.stat().st_mode) == 0o700
    mps._stop(str(control))
    assert not (control / "control").exists()
    mps._stop(str(control))


def test_mps_asks_every_node_with_a_gpu(fake: None, tmp_path: Path) -> None:
    """Ray's workers have the PATH of before: there the program is missing, which is told with the
    node.
    """
    with pytest.raises(UserError, match=r"node .+: --mps: nvidia-cuda-mps-control is not there"):
        mps.start(str(tmp_path))


# ---- what a worker does with it


def test_a_trial_without_a_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    job = trainable.TrialJob(
        lambda values: Toy(load_config("mosi")), 1, gpus=0, environment=mps.environment("/tmp/pipe")
    )
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "")
    monkeypatch.setenv("CUDA_MPS_LOG_DIRECTORY", "")
    trainable._keep_to(job)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/pipe"


def test_what_is_measured_is_the_greatest_that_a_space_draws(tmp_path: Path) -> None:
    text = TOY.replace(
        "domains:\n",
        "domains:\n  train.batch_size: {choice: [4, 64, 16]}\n  model.dropout: {uniform: [0.0, 0.5]}\n"
        "  method.unimodal_weight: {uniform: [0.0, 1.0]}\n",
    )
    text = text.replace("  model.dropout: {uniform: [0.0, 0.5]}\n", "").replace(
        "  method.unimodal_weight: {uniform: [0.0, 1.0]}\n",
        "  model.encoder.layers: {randint: [1, 3]}\n",
    )
    document = space_files.read(Searches(tmp_path).write(text))
    space = space_files.build("toy", document, {})
    (found,) = footprint.candidates(space, space.base)
    flat = flatten(found)
    assert (flat["train.batch_size"], flat["model.encoder.layers"]) == (64, 3)
    assert flat["optim.lr"] == flatten(space.base)["optim.lr"]


def test_a_short_data_set_trains_as_the_whole_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(base.ENV_CACHE, str(tmp_path))
    small = {
        "train.batch_size": 4,
        "train.probe_size": 4,
        "train.eval_batch_size": 8,
        "train.epochs": 1,
    }
    config = with_overrides(load_config("mosi"), small)
    dataset = base.load(config.data, base.resolve(config.data, tmp_path))
    part = footprint.shortened(dataset, config)
    assert {name: len(split) for name, split in part.splits.items()} == {
        "train": 12,
        "val": 8,
        "test": 8,
    }
    left = (
        0  # bytes of the samples beyond: float32 values, masks of a byte a step, targets of int64
    )
    for name, split in dataset.splits.items():
        for m, (steps, width) in dataset.spec.shapes.items():
            x = split.inputs[m]
            assert isinstance(x, Padded)
            left += (len(split) - len(part.splits[name])) * (
                steps * width * 4 + (x.mask is not None) * steps
            )
        left += (len(split) - len(part.splits[name])) * 8
    assert footprint.size(dataset) - footprint.size(part) == left
    assert Run(config, part).epoch().done


class Counted(Stored):
    """Ten samples that are their own number."""

    shape = (1,)

    def __len__(self) -> int:
        return 10

    def to(self, device: torch.device) -> Stored:
        return self

    def take(self, index: torch.Tensor, generator: torch.Generator | None = None) -> Padded:
        return Padded(index[:, None].float())


def test_stored_samples_stay_stored() -> None:
    first = footprint._First(Counted(), 3)
    assert (len(first), first.shape) == (3, (1,))
    moved = first.to(torch.device("cpu"))
    assert len(moved) == 3
    assert moved.take(torch.tensor([2, 0])).value.flatten().tolist() == [2.0, 0.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_trial_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least its data set and its parameters with both moments of Adam, at most the GPU."""
    monkeypatch.setenv(base.ENV_CACHE, str(tmp_path))
    config = load_config("mosi")
    source = base.resolve(config.data, tmp_path)
    dataset = base.load(config.data, source)
    parameters = sum(
        p.numel()
        for p in Run(with_overrides(config, {"train.device": "cpu"}), dataset).model.parameters()
    )
    found = footprint.peak([config], source, None)
    assert footprint.size(dataset) + 3 * 4 * parameters < found < torch.cuda.mem_get_info()[1]


def test_the_nodes_of_a_cluster_tell_their_resources(fake: None) -> None:
    (node,) = nodes.alive()
    assert (node.cpus, node.gpus, node.here) == (8, 2, True)


def _forty() -> int:
    return 40 * GB


def _twelve() -> int:
    return 12 * GB


def _refused() -> int:
    raise ValueError("heads must divide width")
