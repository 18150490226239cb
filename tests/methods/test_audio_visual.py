"""Every method on stored clips (spectrograms and frames) with convolutional encoders and each
fusion, through `Run`.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch

from tests import support
from tests.methods import combinations
from tests.methods.combinations import CLIPS, clips
from tests.methods.combinations import clips_config as config
from tune_mm import plugins
from tune_mm.config import with_overrides
from tune_mm.core.build import method_of
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset
from tune_mm.data import base

METHODS = combinations.METHODS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """49 training clips after 10 % are held out: the last batch would have one sample."""
    root = tmp_path_factory.mktemp("clips")
    section = config("joint").data
    plugin = base.plugin_of(section)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(base.ENV_CACHE, str(root / "cache"))
        base.make(section, root, plugin.options(section).changed(train=42, val=12, test=12))
        found = base.load(section, base.resolve(section, root))
    assert dict(found.spec.shapes) == dict(CLIPS.shapes)
    return found


@pytest.mark.parametrize(
    ("method", "fusion"),
    combinations.params(
        [
            clips(*pair)
            for pair in product(METHODS, combinations.FUSIONS)
            if pair[1] != "transformer"
        ],
        "method",
        "fusion",
    ),
)
def test_every_trained_parameter_moves_and_all_numbers_are_finite(
    data: Dataset, method: str, fusion: str
) -> None:
    cfg = config(method, fusion)
    epochs = support.turns(method_of(cfg), data.spec.modalities)
    run = Run(with_overrides(cfg, {"train.epochs": epochs + 1}), data)
    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    result = [run.epoch() for _ in range(epochs)][-1]
    trained = set(run.net.group(*run.method.trained(run.net)))
    assert {n for n, p in run.net.params.items() if not torch.equal(p, before[n])} == trained
    assert all(math.isfinite(v) for v in result.metrics.values())
    run.epoch()
    assert set(run.test()) >= {"test/accuracy", "test/loss"}


@pytest.mark.parametrize(
    ("method", "fusion"),
    combinations.params(
        [clips(*pair) for pair in product(METHODS, ["concat", "mmtm"])], "method", "fusion"
    ),
)
def test_a_resumed_run_ends_bit_equal(
    data: Dataset, method: str, fusion: str, tmp_path: Path
) -> None:
    """Random crops, frames and flips, and BatchNorm's running statistics, go on as if nothing had
    happened.
    """
    cfg = config(method, fusion)
    whole, first = Run(cfg, data), Run(cfg, data)
    whole.epoch()
    whole.epoch()
    first.epoch()
    torch.save(first.state_dict(), tmp_path / "run.pt")
    second = Run(cfg, data)
    second.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    second.epoch()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert whole.test() == second.test()


def test_neutral_dgl_equals_joint_training(data: Dataset) -> None:
    """alpha 0 without truncations: the first cell of the paper's Table 3."""
    neutral = plugins.load("methods", "dgl").neutral
    runs = [Run(config("joint"), data), Run(config("dgl", **neutral), data)]
    for run in runs:
        run.epoch()
    joint, dgl = (run.net.params for run in runs)
    for name, value in joint.items():
        torch.testing.assert_close(dgl[name], value, rtol=1e-4, atol=1e-5, msg=support.named(name))


def test_the_last_batch_of_one_joins_the_one_before(data: Dataset) -> None:
    count = len(data.splits["train"])
    assert count % 16 == 1, count
    run = Run(config("joint"), data)
    assert math.isfinite(run.epoch().metrics["train/loss"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fusion", ["concat", "mmtm"])
def test_cuda_agrees_with_cpu(data: Dataset, fusion: str) -> None:
    """The first epoch's loss: batches read ahead and resized on the GPU are those of the CPU within
    a grey level.
    """
    cpu = Run(config("dgl", fusion), data).epoch().metrics
    on_cuda = with_overrides(config("dgl", fusion), {"train.device": "cuda"})
    found = Run(on_cuda, data).epoch().metrics
    assert found["train/loss"] == pytest.approx(cpu["train/loss"], rel=1e-2)
