"""Metrics as functions of all logits of a split [N, C] and its targets [N] (0-dim tensors out).

Segmentation has logits [N, C, H, W] and targets [N, H, W], of which a `Meter` keeps sums over
batches only. Equal to scikit-learn's (held by a test). A metric is named `split/metric[/modality]`;
`tune_mm.stats.direction` says which way is better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_mm.core import losses
from tune_mm.core.types import Task, Tensors
from tune_mm.stats import CLASSIFICATION, REGRESSION, SEGMENTATION

FEW = 10  # classes up to which each has an IoU of its own


def names(task: Task) -> tuple[str, ...]:
    """Metrics computed for a task."""
    if task.kind == "segmentation":
        classes = task.class_names if task.outputs <= FEW else ()
        return (
            *SEGMENTATION,
            *(f"iou_{c}" for c in classes),
            *(f"dice_{name}" for name, _ in task.regions),
        )
    return tuple(CLASSIFICATION if task.kind == "classification" else REGRESSION)


def default(task: Task) -> str:
    """The metric a run selects its best epoch by unless told otherwise."""
    if task.kind == "segmentation":
        if task.regions:
            return "val/dice"
        return "val/miou"
    if task.kind == "classification":
        return "val/accuracy"
    return "val/mae"


def compute(task: Task, logits: Tensor, target: Tensor) -> Tensors:
    """All metrics of the task; shares in [0, 1], losses in the unit of the loss."""
    if task.kind == "segmentation":
        meter = Meter(task)
        meter.add(logits, target)
        return meter.compute()
    loss = losses.task_loss(task, logits, target)
    if task.kind == "classification":
        return {"loss": loss, **_classification(task.outputs, logits, target)}
    return {"loss": loss, **_regression(logits.squeeze(-1), target)}


class Meter:
    """Metrics of a split whose logits come batch by batch: however they are cut, the result is the
    same.

    Of images only sums are kept: the loss of each sample, and the confusion matrix over all known
    pixels of the split.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch."""
        if self._task.kind == "segmentation":
            loss = losses.per_sample(self._task, logits, target).to(torch.float64)
            logits, target = loss, _confusion(self._task.outputs, logits.argmax(1), target)[None]
        self._parts.append((logits, target))

    def compute(self) -> Tensors:
        """All metrics of the task."""
        first, second = (torch.cat(column) for column in zip(*self._parts, strict=True))
        if self._task.kind == "segmentation":
            return {"loss": first.mean(), **_segmentation(self._task, second.sum(0))}
        return compute(self._task, first, second)


def _confusion(classes: int, guess: Tensor, target: Tensor) -> Tensor:
    """Known pixels by true class (row) and predicted class (column): float64 [C, C]."""
    known = target < classes
    pairs = torch.where(known, target * classes + guess, classes * classes)
    return (
        torch.bincount(pairs.flatten(), minlength=classes * classes + 1)[:-1]
        .view(classes, classes)
        .double()
    )


def _segmentation(task: Task, confusion: Tensor) -> Tensors:
    """Over all pixels of the split. miou: over the classes that are there or predicted. dice: over
    the regions (none: all classes but the first), each the F1 score of its pixels; 1 for one that
    is neither there nor predicted.
    """
    hits = confusion.diagonal()
    support = confusion.sum(1)
    chosen = confusion.sum(0)
    either = support + chosen - hits
    iou = hits / either.clamp(min=1)
    out = {
        "accuracy": hits.sum() / support.sum().clamp(min=1),
        "miou": iou.sum() / (either > 0).sum().clamp(min=1),
    }
    regions = task.regions or tuple((str(c), (c,)) for c in range(1, task.outputs))
    dice = {}
    for name, classes in regions:
        dice[name] = _dice(confusion, torch.tensor(classes, device=confusion.device))
    out["dice"] = torch.stack(list(dice.values())).mean()
    if task.outputs <= FEW:
        out |= {f"iou_{name}": iou[c] for c, name in enumerate(task.class_names)}
    return out | {f"dice_{name}": dice[name] for name, _ in task.regions}


def _dice(confusion: Tensor, classes: Tensor) -> Tensor:
    both = confusion[classes][:, classes].sum()
    total = confusion[classes].sum() + confusion[:, classes].sum()
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


def _classification(classes: int, logits: Tensor, target: Tensor) -> Tensors:
    truth = F.one_hot(target, classes).to(torch.float64)
    guess = F.one_hot(logits.argmax(-1), classes).to(torch.float64)
    confusion = truth.transpose(0, 1) @ guess
    hits = confusion.diagonal()
    support = confusion.sum(1)
    chosen = confusion.sum(0)
    f1 = 2 * hits / (support + chosen).clamp(min=1)
    present = support > 0
    named = (support + chosen) > 0
    return {
        "accuracy": hits.sum() / support.sum(),
        "balanced_accuracy": (hits / support.clamp(min=1)).sum() / present.sum(),
        "f1": (f1 * support).sum() / support.sum(),
        "f1_macro": f1.sum() / named.sum(),
    }


def _regression(score: Tensor, target: Tensor) -> Tensors:
    """MOSI's metrics. acc2: >= 0 against < 0; acc2_nonzero: > 0 against < 0 where the target is not
    0; acc2_positive (CGGM's code) and f1: > 0 against <= 0; acc7: rounded and clipped to [-3, 3].
    """
    score = score.to(torch.float64)
    target = target.to(torch.float64)
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
    """One metric of a batch (0-dim): `accuracy` (sign agreement for regression), `mae` or `loss`;
    of segmentation `accuracy`, `dice`, `loss`, or `mae` over known pixels.

    For classes `mae` is 1 - probability of the true class. Raises KeyError for another kind.
    """
    if kind == "loss":
        return losses.task_loss(task, logits, target)
    logits = losses.precise(logits)
    if task.kind == "segmentation":
        return _batch_of_images(task, kind, logits, target)
    if task.kind == "classification":
        if kind == "accuracy":
            return (logits.argmax(-1) == target).to(logits.dtype).mean()
        chosen = torch.softmax(logits, -1) * F.one_hot(target, task.outputs).to(logits.dtype)
        return {"mae": 1 - chosen.sum(-1).mean()}[kind]
    score = logits.squeeze(-1)
    if kind == "accuracy":
        return ((score > 0) == (target > 0)).to(score.dtype).mean()
    return {"mae": (score - target).abs().mean()}[kind]


def _batch_of_images(task: Task, kind: str, logits: Tensor, target: Tensor) -> Tensor:
    known = (target < task.outputs).to(logits.dtype)
    if kind == "mae":
        truth = torch.where(target < task.outputs, target, 0)[:, None]
        chosen = torch.softmax(logits, 1).gather(1, truth)[:, 0]
        return ((1 - chosen) * known).sum() / known.sum().clamp(min=1)
    guess = logits.argmax(1)
    if kind == "accuracy":
        return ((guess == target) * known).sum() / known.sum().clamp(min=1)
    regions = task.regions or tuple((str(c), (c,)) for c in range(1, task.outputs))
    scores = []
    for _, classes in regions:
        mine, theirs = (
            torch.stack([of == c for c in classes]).any(0) * known for of in (guess, target)
        )
        total = mine.sum() + theirs.sum()
        scores.append(torch.where(total > 0, 2 * (mine * theirs).sum() / total.clamp(min=1), 1.0))
    return {"dice": torch.stack(scores).mean()}[kind]
