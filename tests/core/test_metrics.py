"""Metrics against scikit-learn and scipy-style formulae on random logits, and closed forms against autograd."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from tune_mm.core import losses, metrics
from tune_mm.core.types import Task

CLASSES = Task("classification", 5)
SCORE = Task("regression", 1)


@pytest.mark.parametrize("present", [5, 3])
def test_classification_equals_scikit_learn(present):
    """With 3 of 5 classes present in the targets, absent classes count as scikit-learn counts them."""
    torch.manual_seed(0)
    logits, target = torch.randn(200, 5), torch.randint(0, present, (200,))
    found = {k: float(v) for k, v in metrics.compute(CLASSES, logits, target).items()}
    guess = logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(target, guess))
    recalls = sk.recall_score(target, guess, average=None, labels=range(present))
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["f1"] == pytest.approx(sk.f1_score(target, guess, average="weighted"))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(target, guess, average="macro"))
    assert found["loss"] == pytest.approx(
        sk.log_loss(target, torch.softmax(logits.double(), -1), labels=range(5)), rel=1e-5
    )


def test_regression_equals_numpy():
    torch.manual_seed(0)
    target = (torch.rand(300) * 6 - 3).round(decimals=1)
    target[:20] = 0
    logits = target[:, None] + torch.randn(300, 1) * 1.5
    found = {k: float(v) for k, v in metrics.compute(SCORE, logits, target).items()}
    score, truth = logits[:, 0].double().numpy(), target.double().numpy()
    nonzero = truth != 0
    assert found["mae"] == pytest.approx(np.abs(score - truth).mean())
    assert found["corr"] == pytest.approx(np.corrcoef(score, truth)[0, 1])
    assert found["acc2"] == pytest.approx(((score >= 0) == (truth >= 0)).mean())
    assert found["acc2_nonzero"] == pytest.approx(((score > 0) == (truth > 0))[nonzero].mean())
    assert found["acc2_positive"] == pytest.approx(((score > 0) == (truth > 0)).mean())
    assert found["acc7"] == pytest.approx((np.clip(score, -3, 3).round() == np.clip(truth, -3, 3).round()).mean())
    assert found["f1"] == pytest.approx(sk.f1_score(truth > 0, score > 0, average="weighted"))


def test_direction_of_metrics_and_unknown_names():
    assert metrics.mode("val/accuracy") == "max"
    assert metrics.mode("val/mae") == "min"
    assert metrics.mode("val/accuracy/audio") == "max"
    assert metrics.mode("train/loss") == "min"
    for wrong in ("val/accurcy", "accuracy", "valid/accuracy", "val/accuracy/audio/x"):
        with pytest.raises(KeyError):
            metrics.mode(wrong)


@pytest.mark.parametrize("task", [CLASSES, SCORE], ids=["classification", "regression"])
def test_closed_forms_equal_autograd(task):
    """delta = dL/dz and delta^T h = dL/dW, both from autograd in float64."""
    torch.manual_seed(0)
    hidden = torch.randn(12, 7, dtype=torch.float64)
    weight = torch.randn(task.outputs, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (12,)) if task.kind == "classification" else torch.randn(12, dtype=torch.float64)
    logits = hidden @ weight.T
    loss = losses.task_loss(task, logits, target)
    by_logits, by_weight = torch.autograd.grad(loss, [logits, weight])
    torch.testing.assert_close(losses.delta(task, logits, target), by_logits, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses.head_gradient(task, logits, hidden, target), by_weight, rtol=1e-12, atol=1e-14)


def test_batch_metrics():
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    task = Task("classification", 2)
    assert float(metrics.batch_metric(task, "accuracy", logits, target)) == 0.5
    wrong = 1 - (torch.sigmoid(torch.tensor(2.0)) + torch.sigmoid(torch.tensor(-2.0))) / 2
    assert float(metrics.batch_metric(task, "mae", logits, target)) == pytest.approx(float(wrong))
    score, truth = torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([2.0, -1.0, -1.0])
    assert float(metrics.batch_metric(SCORE, "mae", score, truth)) == pytest.approx((1 + 1 + 1.5) / 3)
    assert float(metrics.batch_metric(SCORE, "accuracy", score, truth)) == pytest.approx(2 / 3)
    with pytest.raises(KeyError):
        metrics.batch_metric(SCORE, "dice", score, truth)
