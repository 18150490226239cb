"""Metrics against scikit-learn and scipy-style formulae on random logits, and closed forms against
autograd.
"""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from tune_mm.core import losses, metrics
from tune_mm.core.types import VOID, Task
from tune_mm.models.base import DenseHead
from tune_mm.stats import direction

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
    assert found["acc7"] == pytest.approx(
        (np.clip(score, -3, 3).round() == np.clip(truth, -3, 3).round()).mean()
    )
    assert found["f1"] == pytest.approx(sk.f1_score(truth > 0, score > 0, average="weighted"))


def test_direction_of_metrics_and_unknown_names():
    assert direction("val/accuracy") == "max"
    assert direction("val/mae") == "min"
    assert direction("val/accuracy/audio") == "max"
    assert direction("train/loss") == "min"
    for wrong in ("val/accurcy", "accuracy", "valid/accuracy", "val/accuracy/audio/x"):
        with pytest.raises(KeyError):
            direction(wrong)


@pytest.mark.parametrize("task", [CLASSES, SCORE], ids=["classification", "regression"])
def test_closed_forms_equal_autograd(task):
    """delta = dL/dz and delta^T h = dL/dW, both from autograd in float64."""
    torch.manual_seed(0)
    hidden = torch.randn(12, 7, dtype=torch.float64)
    weight = torch.randn(task.outputs, 7, dtype=torch.float64, requires_grad=True)
    target = (
        torch.randint(0, 5, (12,))
        if task.kind == "classification"
        else torch.randn(12, dtype=torch.float64)
    )
    logits = hidden @ weight.T
    loss = losses.task_loss(task, logits, target)
    by_logits, by_weight = torch.autograd.grad(loss, [logits, weight])
    torch.testing.assert_close(
        losses.delta(task, logits, target), by_logits, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        losses.head_gradient(task, logits, hidden, target), by_weight, rtol=1e-12, atol=1e-14
    )


def test_batch_metrics():
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    task = Task("classification", 2)
    assert float(metrics.batch_metric(task, "accuracy", logits, target)) == 0.5
    wrong = 1 - (torch.sigmoid(torch.tensor(2.0)) + torch.sigmoid(torch.tensor(-2.0))) / 2
    assert float(metrics.batch_metric(task, "mae", logits, target)) == pytest.approx(float(wrong))
    score, truth = torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([2.0, -1.0, -1.0])
    assert float(metrics.batch_metric(SCORE, "mae", score, truth)) == pytest.approx(
        (1 + 1 + 1.5) / 3
    )
    assert float(metrics.batch_metric(SCORE, "accuracy", score, truth)) == pytest.approx(2 / 3)
    with pytest.raises(KeyError):
        metrics.batch_metric(SCORE, "dice", score, truth)


IMAGES = Task(
    "segmentation",
    4,
    ("a", "b", "c", "d"),
    (0.2, 0.3, 0.25, 0.25),
    1.0,
    (("ab", (1, 2)), ("c", (3,))),
)


def pictures(task, classes=None, void=0.1, seed=0):
    """Random logits and classes of 5 images of 6 x 7 pixels, some of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, task.outputs, 6, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, classes or task.outputs, (5, 6, 7), generator=generator)
    return logits, torch.where(torch.rand(5, 6, 7, generator=generator) < void, VOID, target)


@pytest.mark.parametrize("classes", [4, 2])
def test_segmentation_equals_scikit_learn(classes):
    """Over all known pixels at once; with 2 of 4 classes there, those that are predicted count as
    scikit-learn's.
    """
    logits, target = pictures(IMAGES, classes)
    found = {k: float(v) for k, v in metrics.compute(IMAGES, logits, target).items()}
    known = target != VOID
    truth, guess = target[known].numpy(), logits.argmax(1)[known].numpy()
    assert tuple(found) == metrics.names(IMAGES)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert found["miou"] == pytest.approx(sk.jaccard_score(truth, guess, average="macro"))
    each = sk.jaccard_score(truth, guess, average=None, labels=range(4), zero_division=0)
    assert [found[f"iou_{name}"] for name in "abcd"] == pytest.approx(list(each))
    dice = [
        sk.f1_score(np.isin(truth, region), np.isin(guess, region)) for region in ((1, 2), (3,))
    ]
    assert [found["dice_ab"], found["dice_c"]] == pytest.approx(dice)
    assert found["dice"] == pytest.approx(np.mean(dice))


def test_regions_that_are_nowhere_and_images_without_a_known_pixel():
    """A region neither there nor predicted has Dice 1, and a class like that no part in the mean
    IoU.
    """
    logits, target = pictures(IMAGES, 1)
    logits[:, 1:] -= 100
    target[2] = VOID
    found = {k: float(v) for k, v in metrics.compute(IMAGES, logits, target).items()}
    assert found["dice_ab"] == found["dice_c"] == found["miou"] == found["accuracy"] == 1
    assert np.isfinite(found["loss"])


def test_segmentation_is_the_same_in_every_batch():
    logits, target = pictures(IMAGES)
    whole = metrics.compute(IMAGES, logits, target)
    for cut in ([1, 4], [2, 1, 2]):
        meter = metrics.Meter(IMAGES)
        for part in zip(logits.split(cut), target.split(cut), strict=True):
            meter.add(*part)
        for key, value in meter.compute().items():
            torch.testing.assert_close(value, whole[key], rtol=1e-12, atol=0)


def test_the_loss_of_images_written_out():
    """Per image: sum of w_y times -log p_y over known pixels by the sum of w_y; and 1 - the mean
    over b, c, d of (2 sum p t + 1) / (sum p + sum t + 1).
    """
    logits, target = pictures(IMAGES)
    found = losses.per_sample(IMAGES, logits, target)
    for z, y, value in zip(logits, target, found, strict=True):
        p, total, weights = torch.softmax(z, 0), 0.0, 0.0
        size = {c: [0.0, 0.0, 0.0] for c in (1, 2, 3)}
        for i, j in np.argwhere((y != VOID).numpy()):
            c = int(y[i, j])
            total -= IMAGES.weights[c] * float(p[c, i, j].log())
            weights += IMAGES.weights[c]
            for k, sums in size.items():
                hit = float(k == c)
                terms = (float(p[k, i, j]) * hit, float(p[k, i, j]), hit)
                sums[:] = [a + b for a, b in zip(sums, terms, strict=True)]
        dice = np.mean(
            [(2 * both + 1) / (mine + theirs + 1) for both, mine, theirs in size.values()]
        )
        assert float(value) == pytest.approx(total / weights + 1 - dice)


@pytest.mark.parametrize("task", [IMAGES, Task("segmentation", 3)], ids=["dice", "plain"])
@pytest.mark.parametrize("size", [(6, 7), (3, 4)], ids=["same", "smaller"])
def test_closed_forms_of_images_equal_autograd(task, size):
    """Of the logits, and of the weight of a 1x1 convolution whose output is interpolated to the
    images' size.
    """
    _, target = pictures(task)
    head = DenseHead(5, task.outputs, (6, 7)).double()
    hidden = torch.randn(
        5, 5, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    logits = head(hidden)
    by_logits, by_weight = torch.autograd.grad(
        losses.task_loss(task, logits, target), [logits, head.weight]
    )
    torch.testing.assert_close(
        losses.delta(task, logits, target), by_logits, rtol=1e-10, atol=1e-14
    )
    found = losses.head_gradient(task, logits, hidden, target)
    torch.testing.assert_close(found, by_weight[:, :, 0, 0], rtol=1e-10, atol=1e-14)


def test_batch_metrics_of_images():
    """Over known pixels: hits; 1 - probability of the true class; Dice of all pixels, the mean over
    regions.
    """
    logits, target = pictures(IMAGES)
    known = target != VOID
    truth, guess = target[known].numpy(), logits.argmax(1)[known].numpy()
    found = {
        k: float(metrics.batch_metric(IMAGES, k, logits, target))
        for k in ("accuracy", "mae", "dice")
    }
    assert found["accuracy"] == pytest.approx((truth == guess).mean())
    p = torch.softmax(logits, 1).movedim(1, -1)[known].numpy()
    assert found["mae"] == pytest.approx(1 - p[np.arange(len(truth)), truth].mean())
    dice = [
        sk.f1_score(np.isin(truth, region), np.isin(guess, region)) for region in ((1, 2), (3,))
    ]
    assert found["dice"] == pytest.approx(np.mean(dice))
    with pytest.raises(KeyError):
        metrics.batch_metric(IMAGES, "corr", logits, target)


@pytest.mark.parametrize("task", [IMAGES, Task("segmentation", 3)], ids=["dice", "plain"])
def test_half_precision_is_left_behind_where_losses_begin(task):
    """Under autocast on a CPU too, which leaves softmax and sums in bfloat16: 150 pixels of weight
    1/150.
    """
    logits, target = (x[:, ..., :6, :7] for x in pictures(task))
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = [losses.per_sample(task, half, target), losses.delta(task, half, target)]
        found += [
            metrics.batch_metric(task, kind, half, target)
            for kind in ("loss", "dice", "mae", "accuracy")
        ]
    exact = half.double()
    wanted = [losses.per_sample(task, exact, target), losses.delta(task, exact, target)]
    wanted += [
        metrics.batch_metric(task, kind, exact, target)
        for kind in ("loss", "dice", "mae", "accuracy")
    ]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-7)


def test_metrics_of_classes_and_regions_have_a_direction():
    assert direction("val/iou_flood") == direction("test/dice_wt/flair") == "max"
    assert metrics.default(IMAGES) == "val/dice"
    assert metrics.default(Task("segmentation", 40)) == "val/miou"
