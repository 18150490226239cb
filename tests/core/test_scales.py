"""The loss over scales: what comes with logits counts in the loss, on the target's nearest pixels,
and nowhere else.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tune_mm.core import losses, scales
from tune_mm.core.types import VOID, Task

TASK = Task("segmentation", 3, weights=(0.5, 1.0, 2.0))


def random(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator)


def target():
    out = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(1))
    out[:, 0, :4] = VOID
    return out


def entropy(logits, classes):
    """Weighted mean over known pixels of each sample (torch's own, ignoring VOID), averaged over
    samples.
    """
    weights = torch.tensor(TASK.weights, dtype=logits.dtype)
    own = [
        F.cross_entropy(z[None], y[None], weights, ignore_index=VOID)
        for z, y in zip(logits, classes, strict=True)
    ]
    return torch.stack(own).mean()


def test_a_coarser_grid_is_compared_with_every_second_or_third_pixel():
    torch.testing.assert_close(
        losses.task_loss(TASK, random(8, 12), target()), entropy(random(8, 12), target())
    )
    found = losses.task_loss(TASK, random(4, 4), target())
    torch.testing.assert_close(found, entropy(random(4, 4), target()[:, ::2, ::3]))


def test_a_grid_that_does_not_divide_takes_torch_s_nearest_pixels():
    found = losses.task_loss(TASK, random(3, 5), target())
    nearest = F.interpolate(target()[:, None].double(), (3, 5), mode="nearest")[:, 0].long()
    torch.testing.assert_close(found, entropy(random(3, 5), nearest))


def test_predictions_beside_a_tensor_are_no_one_else_s():
    logits, coarse = random(8, 12), (random(4, 6), random(2, 3))
    assert scales.coarser(logits) == ()
    assert scales.beside(logits, coarse) is logits
    assert scales.coarser(logits) == coarse
    assert scales.coarser(logits + 1) == scales.coarser(logits.detach()) == ()
    assert scales.coarser(scales.beside(random(1, 1), ())) == ()
