"""Task losses and their derivative with respect to the logits, as pure functions of tensors.

Shape legend: B batch, C outputs, H x W pixels. Logits [B, C] and target [B]; segmentation: [B, C,
H, W] and [B, H, W], where logits on a coarser grid are compared with the target at the nearest
pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_mm.core.types import Task

SMOOTH = 1.0  # pixels: an empty class that is not predicted has a Dice loss of nearly 0


def precise(logits: Tensor) -> Tensor:
    """In float32 if they are of half precision. Under autocast torch does so for the losses on
    CUDA, not on a CPU.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def per_sample(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Loss of each sample [B]: cross-entropy, or the absolute error (L1) for regression.

    Segmentation: the weighted mean over known pixels of the cross-entropy, and `task.dice` times 1
    - soft Dice, averaged over all classes but the first (CGGM, Sec. 4.1, with sums over a sample,
    not over the batch).
    """
    logits = precise(logits)
    if task.kind == "classification":
        return F.cross_entropy(logits, target, reduction="none")
    if task.kind == "regression":
        return (logits.squeeze(-1) - target).abs()
    target = _nearest(target, logits)
    chosen = torch.log_softmax(logits, 1).gather(1, _known(task, target)[:, None])[:, 0]
    loss = -(chosen * _weight(task, logits, target)).sum((1, 2))
    return (
        loss + task.dice * (1 - _soft_dice(logits, target, _truth(task, logits, target)))
        if task.dice
        else loss
    )


def task_loss(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Mean of `per_sample` over the batch (scalar)."""
    return per_sample(task, logits, target).mean()


def delta(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """d task_loss / d logits, of the logits' shape, in closed form: (softmax - one-hot) / B, or
    sign(error) / B.

    Segmentation: the same per pixel with its weight, and the Dice term's derivative through the
    softmax. It is itself differentiable with respect to the logits, so a loss of gradients needs no
    double backward.
    """
    logits = precise(logits)
    if task.kind == "classification":
        expected = F.one_hot(target, task.outputs).to(logits.dtype)
        return (torch.softmax(logits, -1) - expected) / len(target)
    if task.kind == "regression":
        return torch.sign(logits - target.unsqueeze(-1)) / len(target)
    truth, chances = _truth(task, logits, target), torch.softmax(logits, 1)
    out = (chances - truth) * _weight(task, logits, target)[:, None]
    if task.dice:
        slope = task.dice * _dice_slope(chances, target, truth)
        out = out + chances * (slope - (chances * slope).sum(1, keepdim=True))
    return out / len(target)


def head_gradient(task: Task, logits: Tensor, hidden: Tensor, target: Tensor) -> Tensor:
    """Gradient [C, H] of the task loss with respect to a linear head's weight: delta^T hidden.
    hidden [B, H].

    Segmentation: of a 1x1 convolution's weight, hidden [B, H, h, w], whose output is interpolated
    bilinearly to the logits' size. What crosses over to the hidden's size is delta [B, C, h, w]: C
    is smaller than H.
    """
    slope = delta(task, logits, target)
    if task.kind != "segmentation":
        return slope.transpose(0, 1) @ hidden
    if hidden.shape[2:] != slope.shape[2:]:
        slope = _pulled_back(slope, hidden.shape[2], hidden.shape[3])
    return torch.einsum("bchw,bkhw->ck", slope, hidden)


def _pulled_back(slope: Tensor, height: int, width: int) -> Tensor:
    """[B, C, height, width]: the adjoint of bilinear interpolation from there to the slope's size,
    which is linear along each axis. <slope, interpolated x> = <this, x> for any x.
    """

    def interpolation(size: int, wanted: int) -> Tensor:
        unit = torch.eye(size, dtype=slope.dtype, device=slope.device)[None]
        return F.interpolate(unit, wanted, mode="linear", align_corners=False)[0]

    rows, columns = interpolation(height, slope.shape[2]), interpolation(width, slope.shape[3])
    return torch.einsum("bcHW,hH,wW->bchw", slope, rows, columns)


def _nearest(target: Tensor, logits: Tensor) -> Tensor:
    """The target on the logits' grid [B, H, W]: of each of its pixels the one at the upper left."""
    for axis in (1, 2):
        size, wanted = target.shape[axis], logits.shape[axis + 1]
        if size != wanted:
            target = target.index_select(
                axis, torch.arange(wanted, device=target.device) * size // wanted
            )
    return target


def _known(task: Task, target: Tensor) -> Tensor:
    """The classes [B, H, W], some class where the pixel is unknown."""
    return torch.where(target < task.outputs, target, 0)


def _truth(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """One-hot [B, C, H, W], 0 for unknown pixels."""
    one_hot = F.one_hot(_known(task, target), task.outputs).movedim(-1, 1).to(logits.dtype)
    return one_hot * (target < task.outputs)[:, None]


def _weight(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """The pixels' weights [B, H, W], which sum to 1 per sample (to 0 where no pixel is known)."""
    weight = (target < task.outputs).to(logits.dtype)
    if task.weights:
        weight = weight * logits.new_tensor(task.weights)[_known(task, target)]
    return weight / weight.sum((1, 2), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


def _soft_dice(logits: Tensor, target: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice score [B] over known pixels, averaged over all classes but the first."""
    above, below, _ = _overlap(torch.softmax(logits, 1), target, truth)
    return (above / below).mean(1)


def _overlap(chances: Tensor, target: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Twice the overlap, and the sum of both sizes, [B, C - 1] each, smoothed; known pixels [B, 1,
    H, W].
    """
    known = (target < truth.shape[1])[:, None].to(chances.dtype)
    found, wanted = (chances * known)[:, 1:], truth[:, 1:]
    above = 2 * (found * wanted).sum((2, 3)) + SMOOTH
    return above, found.sum((2, 3)) + wanted.sum((2, 3)) + SMOOTH, known


def _dice_slope(chances: Tensor, target: Tensor, truth: Tensor) -> Tensor:
    """d (1 - soft Dice) / d chances [B, C, H, W] of each sample: (above - 2 truth below) / below^2
    / (C - 1).
    """
    above, below, known = _overlap(chances, target, truth)
    above, below = above[:, :, None, None], below[:, :, None, None]
    slope = known * (above - 2 * truth[:, 1:] * below) / below.square() / above.shape[1]
    return torch.cat([torch.zeros_like(slope[:, :1]), slope], 1)
