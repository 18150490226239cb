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
    """In float32 if they are of half precision.

    Under autocast torch does so for the losses on CUDA, not on a CPU.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        return logits.float()
    return logits


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
    classes = _known(task, target)
    log_chances = torch.log_softmax(logits, 1)
    chosen = log_chances.gather(1, classes[:, None])[:, 0]
    weight = _weight(task, logits, target)
    cross_entropy = -(chosen * weight).sum((1, 2))
    if not task.dice:
        return cross_entropy
    score = _soft_dice(logits, target, _truth(task, logits, target))
    return cross_entropy + task.dice * (1 - score)


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
        error = torch.softmax(logits, -1) - expected
        return error / len(target)
    if task.kind == "regression":
        error = logits - target.unsqueeze(-1)
        return torch.sign(error) / len(target)
    truth = _truth(task, logits, target)
    chances = torch.softmax(logits, 1)
    weight = _weight(task, logits, target)
    out = (chances - truth) * weight[:, None]
    if task.dice:
        slope = task.dice * _dice_slope(chances, target, truth)
        mean_slope = (chances * slope).sum(1, keepdim=True)
        out = out + chances * (slope - mean_slope)  # through the softmax
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

    rows = interpolation(height, slope.shape[2])
    columns = interpolation(width, slope.shape[3])
    return torch.einsum("bcHW,hH,wW->bchw", slope, rows, columns)


def _nearest(target: Tensor, logits: Tensor) -> Tensor:
    """The target on the logits' grid [B, H, W]: of each of its pixels the one at the upper left."""
    for axis in (1, 2):
        size = target.shape[axis]
        wanted = logits.shape[axis + 1]
        if size != wanted:
            steps = torch.arange(wanted, device=target.device)
            target = target.index_select(axis, steps * size // wanted)
    return target


def _known(task: Task, target: Tensor) -> Tensor:
    """The classes [B, H, W], some class where the pixel is unknown."""
    return torch.where(target < task.outputs, target, 0)


def _truth(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """One-hot [B, C, H, W], 0 for unknown pixels."""
    one_hot = F.one_hot(_known(task, target), task.outputs)
    known = target < task.outputs
    return one_hot.movedim(-1, 1).to(logits.dtype) * known[:, None]


def _weight(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """The pixels' weights [B, H, W], which sum to 1 per sample (to 0 where no pixel is known)."""
    weight = (target < task.outputs).to(logits.dtype)
    if task.weights:
        of_class = logits.new_tensor(task.weights)
        weight = weight * of_class[_known(task, target)]
    total = weight.sum((1, 2), keepdim=True)
    return weight / total.clamp(min=torch.finfo(weight.dtype).tiny)


def _soft_dice(logits: Tensor, target: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice score [B] over known pixels, averaged over all classes but the first."""
    above, below, _ = _overlap(torch.softmax(logits, 1), target, truth)
    return (above / below).mean(1)


def _overlap(chances: Tensor, target: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Twice the overlap, and the sum of both sizes, [B, C - 1] each, smoothed; known [B, 1, H, W]."""
    classes = truth.shape[1]
    known = (target < classes)[:, None].to(chances.dtype)
    found = (chances * known)[:, 1:]
    wanted = truth[:, 1:]
    overlap = (found * wanted).sum((2, 3))
    sizes = found.sum((2, 3)) + wanted.sum((2, 3))
    return 2 * overlap + SMOOTH, sizes + SMOOTH, known


def _dice_slope(chances: Tensor, target: Tensor, truth: Tensor) -> Tensor:
    """d (1 - soft Dice) / d chances [B, C, H, W]: (above - 2 truth below) / below^2 / (C - 1)."""
    above, below, known = _overlap(chances, target, truth)
    above = above[:, :, None, None]
    below = below[:, :, None, None]
    numerator = known * (above - 2 * truth[:, 1:] * below)
    slope = numerator / below.square() / above.shape[1]
    of_first_class = torch.zeros_like(slope[:, :1])
    return torch.cat([of_first_class, slope], 1)
