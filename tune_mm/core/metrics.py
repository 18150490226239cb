"""Metrics as functions of all logits of a split [N, C] and its targets [N] (0-dim tensors out, no host reads).

Equal to scikit-learn's (held by a test). A metric is named `split/metric[/modality]`; `mode` says which way is better.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_mm.core import losses
from tune_mm.core.types import Task, Tensors

Mode = Literal["min", "max"]

CLASSIFICATION: dict[str, Mode] = {
    "loss": "min",
    "accuracy": "max",
    "balanced_accuracy": "max",
    "f1": "max",
    "f1_macro": "max",
}
REGRESSION: dict[str, Mode] = {
    "loss": "min",
    "mae": "min",
    "corr": "max",
    "acc2": "max",
    "acc2_nonzero": "max",
    "acc2_positive": "max",
    "acc7": "max",
    "f1": "max",
}


def names(task: Task) -> tuple[str, ...]:
    """Metrics computed for a task."""
    return tuple(CLASSIFICATION if task.kind == "classification" else REGRESSION)


def mode(metric: str) -> Mode:
    """`min` or `max` for `split/metric[/modality]`. Raises KeyError for a name that is no metric."""
    parts = metric.split("/")
    if len(parts) not in {2, 3} or parts[0] not in {"train", "val", "test"}:
        raise KeyError(metric)
    return {**REGRESSION, **CLASSIFICATION}[parts[1]]


def default(task: Task) -> str:
    """The metric a run selects its best epoch by unless told otherwise."""
    return "val/accuracy" if task.kind == "classification" else "val/mae"


def compute(task: Task, logits: Tensor, target: Tensor) -> Tensors:
    """All metrics of the task; shares in [0, 1], losses in the unit of the loss."""
    loss = losses.task_loss(task, logits, target)
    if task.kind == "classification":
        return {"loss": loss, **_classification(task.outputs, logits, target)}
    return {"loss": loss, **_regression(logits.squeeze(-1), target)}


def _classification(classes: int, logits: Tensor, target: Tensor) -> Tensors:
    truth = F.one_hot(target, classes).to(torch.float64)
    guess = F.one_hot(logits.argmax(-1), classes).to(torch.float64)
    confusion = truth.transpose(0, 1) @ guess
    hits, support, chosen = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / (support + chosen).clamp(min=1)
    present, named = support > 0, (support + chosen) > 0
    return {
        "accuracy": hits.sum() / support.sum(),
        "balanced_accuracy": (hits / support.clamp(min=1)).sum() / present.sum(),
        "f1": (f1 * support).sum() / support.sum(),
        "f1_macro": f1.sum() / named.sum(),
    }


def _regression(score: Tensor, target: Tensor) -> Tensors:
    """MOSI's metrics. acc2: >= 0 against < 0; acc2_nonzero: > 0 against < 0 where the target is not 0; acc2_positive
    (CGGM's code) and f1: > 0 against <= 0; acc7: rounded and clipped to [-3, 3]."""
    score, target = score.to(torch.float64), target.to(torch.float64)
    nonzero = (target != 0).to(torch.float64)
    same_sign = ((score > 0) == (target > 0)).to(torch.float64)
    bins = (score.clamp(-3, 3).round() == target.clamp(-3, 3).round()).to(torch.float64)
    centred = score - score.mean(), target - target.mean()
    spread = (centred[0].square().sum() * centred[1].square().sum()).sqrt()
    two = torch.stack([(score <= 0).to(torch.float64), (score > 0).to(torch.float64)], -1)
    return {
        "mae": (score - target).abs().mean(),
        "corr": (centred[0] * centred[1]).sum() / spread.clamp(min=torch.finfo(torch.float64).tiny),
        "acc2": ((score >= 0) == (target >= 0)).to(torch.float64).mean(),
        "acc2_nonzero": (same_sign * nonzero).sum() / nonzero.sum().clamp(min=1),
        "acc2_positive": same_sign.mean(),
        "acc7": bins.mean(),
        "f1": _classification(2, two, (target > 0).to(torch.int64))["f1"],
    }


def batch_metric(task: Task, kind: str, logits: Tensor, target: Tensor) -> Tensor:
    """One metric of a batch (0-dim): `accuracy` (sign agreement for regression), `mae` or `loss`.

    For classification `mae` is 1 - probability of the true class. Raises KeyError for another kind.
    """
    if kind == "loss":
        return losses.task_loss(task, logits, target)
    if task.kind == "classification":
        if kind == "accuracy":
            return (logits.argmax(-1) == target).to(logits.dtype).mean()
        chosen = torch.softmax(logits, -1) * F.one_hot(target, task.outputs).to(logits.dtype)
        return {"mae": 1 - chosen.sum(-1).mean()}[kind]
    score = logits.squeeze(-1)
    if kind == "accuracy":
        return ((score > 0) == (target > 0)).to(score.dtype).mean()
    return {"mae": (score - target).abs().mean()}[kind]
