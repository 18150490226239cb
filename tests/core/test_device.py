"""Device choice, and the same run on CUDA where there is one."""

import pytest
import torch

from tests import support
from tests.methods import dense
from tune_mm.config import with_overrides
from tune_mm.core.build import device_of
from tune_mm.core.run import Run

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_auto_takes_cuda_where_it_is():
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of("cpu").type == "cpu"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("method", ["joint", "dgl", "cggm"])
def test_cuda_agrees_with_cpu_and_resumes_bit_for_bit(method, tmp_path):
    data = support.dataset()
    cpu = Run(support.config(method), data).epoch().metrics
    config = support.config(
        method, overrides={"train.device": "cuda", "model.encoder.dropout_residual": 0.0}
    )
    first = Run(config, data)
    found = first.epoch().metrics
    assert found["train/loss"] == pytest.approx(cpu["train/loss"], rel=1e-3)
    torch.save(first.state_dict(), tmp_path / "run.pt")
    second = Run(config, data)
    second.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    assert second.epoch().metrics["val/loss"] == pytest.approx(
        first.epoch().metrics["val/loss"], rel=1e-5
    )
    assert all(p.is_cuda for p in second.net.params.values())


@pytest.mark.gpu
@needs_cuda
def test_amp_on_cuda():
    config = support.config("cggm", overrides={"train.device": "cuda", "train.amp": "bf16"})
    assert not Run(config, support.dataset()).epoch().diverged


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
)
@pytest.mark.parametrize("network", dense.NETWORKS)
@pytest.mark.parametrize("method", ["joint", "dgl", "cggm", "ogm", "mmpareto"])
def test_methods_that_predict_pixels_in_half_precision(method, network, device):
    """An epoch's loss is that of float32, within what eight bits of mantissa do to sums of pixels."""
    guards = (
        {"variant": "stable"} if method == "cggm" else {}
    )  # its coefficients divide by what passes through 0
    config = with_overrides(
        dense.config(method, network, **guards), {"train.device": device, "train.epochs": 1}
    )
    data = dense.dataset(2, size=32)
    plain, half = (
        Run(with_overrides(config, {"train.amp": amp}), data).epoch().metrics["train/loss"]
        for amp in ("none", "bf16")
    )
    assert half == pytest.approx(plain, rel=0.05)
    assert half != plain
