"""Task losses and their derivative with respect to the logits, as pure functions of tensors.

Shape legend: B batch, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_mm.core.types import Task


def per_sample(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Loss of each sample [B]: cross-entropy, or the absolute error (L1) for regression. logits [B, C], target [B]."""
    if task.kind == "classification":
        return F.cross_entropy(logits, target, reduction="none")
    return (logits.squeeze(-1) - target).abs()


def task_loss(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Mean of `per_sample` over the batch (scalar)."""
    return per_sample(task, logits, target).mean()


def delta(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """d task_loss / d logits [B, C] in closed form: (softmax - one-hot) / B, or sign(error) / B.

    It is itself differentiable with respect to the logits, so a loss of gradients needs no double backward.
    """
    if task.kind == "classification":
        expected = F.one_hot(target, task.outputs).to(logits.dtype)
        return (torch.softmax(logits, -1) - expected) / len(target)
    return torch.sign(logits - target.unsqueeze(-1)) / len(target)


def head_gradient(task: Task, logits: Tensor, hidden: Tensor, target: Tensor) -> Tensor:
    """Gradient [C, H] of the task loss with respect to a linear head's weight: delta^T hidden. hidden [B, H]."""
    return delta(task, logits, target).transpose(0, 1) @ hidden
