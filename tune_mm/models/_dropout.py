"""Dropout with a byte per element on the CPU, where torch draws masks in `bernoulli_` and stores
them as floats.

Sixteen random bits decide on an element: 5 times as fast as torch's, and p is rounded to a multiple
of 2^-16 (what is kept is divided by the rounded share, so means are exact). On other devices, and
under vmap, it is torch's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tune_mm.core.torch_internals import vmapped

LEVELS = 1 << 16
# Elements drawn at once: the words of random bits stay in the cache.
CHUNK = 1 << 20


def kept_share(p: float) -> float:
    """The probability with which `keep_bytes` keeps an element: 1 - p to the nearest 2^-16."""
    return 1.0 - round(p * LEVELS) / LEVELS


def keep_bytes(shape: tuple[int, ...], p: float) -> Tensor:
    """A uint8 mask of `shape` on the CPU, 0 with probability p and else 1, from torch's global
    generator.
    """
    size = math.prod(shape)
    mask = torch.empty(size, dtype=torch.bool)
    threshold = round(p * LEVELS) - LEVELS // 2
    for start in range(0, size, CHUNK):
        part = mask[start : start + CHUNK]
        count = (len(part) + 3) // 4  # four draws of 16 bits to a word
        words = torch.empty(count, dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: len(part)]
        torch.ge(draws, threshold, out=part)
    return mask.view(torch.uint8).view(shape)


def _bytes_fit(x: Tensor) -> bool:
    return x.device.type == "cpu" and not vmapped()


def _scaled_mask(x: Tensor, p: float) -> Tensor:
    mask = keep_bytes(tuple(x.shape), p).to(x.dtype)
    return mask.mul_(1 / kept_share(p))


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with probability p (0 in evaluation)."""
    if p == 0:
        return x
    if _bytes_fit(x):
        return x * _scaled_mask(x, p)
    return functional.dropout(x, p)


def add_dropped(x: Tensor, branch: Tensor, p: float) -> Tensor:
    """x + dropout(branch); p = 0 in evaluation."""
    if p == 0:
        return x + branch
    if _bytes_fit(x):
        return torch.addcmul(x, branch, _scaled_mask(branch, p))
    return x + functional.dropout(branch, p)


def relu_dropout(x: Tensor, p: float) -> Tensor:
    """dropout(relu(x)); p = 0 in evaluation."""
    if p == 0:
        return functional.relu(x)
    if not _bytes_fit(x):
        return functional.dropout(functional.relu(x), p)
    out: Tensor = _ReluDropout.apply(x, p)
    return out


class _ReluDropout(torch.autograd.Function):
    """ReLU and dropout in one: the output is positive exactly where both let a value pass, so no
    mask is stored.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, p: float) -> Tensor:
        keep = keep_bytes(tuple(x.shape), p)
        return x.clamp(min=0).mul_(keep).mul_(1 / kept_share(p))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.share = kept_share(inputs[1])
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        passed = torch.ops.aten.threshold_backward(grad, out, 0)
        return passed.mul_(1 / ctx.share), None
