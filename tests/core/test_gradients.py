"""Several losses of one forward pass, passes in evaluation mode, and windows of epochs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core import grads
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, Clock, Tensors

PREFIXES = ("encoders", "fusion")


def make() -> tuple[Net, Batch]:
    data = support.dataset()
    _, net = support.bound(with_overrides(support.config(), {"model.fusion": "concat"}), data)
    return net, support.batch(data)


@pytest.mark.parametrize("functional", [False, True])
def test_gradients_of_several_losses_are_those_of_each_alone(functional: bool) -> None:
    """Against one autograd.grad per loss; an encoder has no part in another modality's loss, so 0
    there.
    """
    net, batch = make()
    used = Net(net.model, net.task, net.params, net.buffers) if functional else net

    def losses(bound: Net) -> tuple[Tensor, Tensors]:
        alone = bound.unimodal(bound.encode(batch.inputs))
        found = torch.stack([bound.loss(z, batch.target) for z in alone.values()])
        return found, {"total": found.sum()}

    rows, values, logs = grads.gradients(losses, used, PREFIXES)
    expected, _ = losses(net)
    torch.testing.assert_close(values, expected.detach())
    assert not values.requires_grad
    torch.testing.assert_close(logs["total"], expected.sum().detach())
    for row, loss in zip(rows, expected, strict=True):
        given = net.group(*PREFIXES)
        alone = torch.autograd.grad(
            loss, list(given.values()), retain_graph=True, materialize_grads=True
        )
        for name, value in zip(given, alone, strict=True):
            torch.testing.assert_close(
                row[name], value, rtol=1e-10, atol=1e-12, msg=support.named(name)
            )
    audio = [n for n in rows[0] if n.startswith("encoders.audio.")]
    assert audio
    assert all(not rows[0][n].any() and not rows[2][n].any() for n in audio)
    assert any(rows[1][n].any() for n in audio)


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_in_evaluation_mode_leaves_batchnorm_and_the_mode_as_they_were(
    training: bool,
) -> None:
    model = nn.Module()
    model.encoders = nn.ModuleDict({"audio": nn.BatchNorm1d(3)})
    model.fusion = nn.Linear(3, 2)
    net = Net(model.train(training), support.dataset().spec.task)
    before = {n: b.clone() for n, b in model.named_buffers()}
    x = torch.randn(8, 3) + 5
    with net.evaluating():
        found = model.encoders["audio"](x)
    torch.testing.assert_close(
        found, x / (1 + 1e-5) ** 0.5
    )  # running mean 0 and variance 1, eps 1e-5
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert model.training is training


@pytest.mark.parametrize(
    ("start", "end", "epochs", "expected"),
    [
        (0.0, 1.0, 4, [0, 1, 2, 3]),
        (0.0, 0.5, 10, [0, 1, 2, 3, 4]),
        (0.3, 0.7, 10, [3, 4, 5, 6]),  # 0.3 * 10 is 3.0000001 in float32
        (0.5, 0.5, 10, []),
        (0.0, 0.04, 10, []),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_window_is_given_in_fractions_of_the_epochs(
    start: float, end: float, epochs: int, expected: list[int], dtype: torch.dtype
) -> None:
    edges = [torch.tensor(v, dtype=dtype) for v in (start, end)]
    assert [e for e in range(epochs) if bool(Clock(e, 0, 1, epochs).within(*edges))] == expected
