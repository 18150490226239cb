"""The trainer: reproducible, resumable, honest about splits."""

import math

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, Split

TIMES = {"time/epoch"}


def values(result):
    return {k: v for k, v in result.metrics.items() if k not in TIMES}


def test_same_seed_is_bit_equal_and_another_is_not():
    cfg, data = (
        support.config("dgl", overrides={"model.encoder.dropout_residual": 0.1}),
        support.dataset(),
    )
    a, b = Run(cfg, data), Run(cfg, data)
    c = Run(with_overrides(cfg, {"seed": 1}), data)
    for _ in range(2):
        one, two, other = a.epoch(), b.epoch(), c.epoch()
        assert values(one) == values(two) != values(other)
    assert all(torch.equal(p, b.net.params[n]) for n, p in a.net.params.items())


def test_runs_in_one_process_do_not_touch_each_other_or_the_outer_stream():
    """Two interleaved runs equal the same runs one after the other; torch's global generator stays
    where it was.
    """
    cfg = support.config("joint", overrides={"model.encoder.dropout_residual": 0.3})
    other, data = with_overrides(cfg, {"seed": 7}), support.dataset()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    a, b = Run(cfg, data), Run(other, data)
    mixed = [r.epoch() for _ in range(2) for r in (a, b)]
    assert torch.equal(before, torch.get_rng_state())
    alone = [Run(cfg, data), Run(other, data)]
    apart = [[r.epoch() for _ in range(2)] for r in alone]
    assert [values(r) for r in mixed] == [values(apart[i % 2][i // 2]) for i in range(4)]


def test_test_split_is_evaluated_at_the_best_validation_epoch():
    """Labels of the test split do not influence the choice; the tested weights are those of the
    best epoch.
    """
    cfg, data = (
        support.config("joint", overrides={"train.epochs": 5, "optim.lr": 0.05}),
        support.dataset(),
    )
    run = Run(cfg, data)
    results = [run.epoch() for _ in range(5)]
    best = max(results, key=lambda r: (r.metrics["val/accuracy"], -r.epoch))
    assert run.best_epoch == best.epoch
    assert run.best_value == best.metrics["val/accuracy"]
    found = run.test()
    again = Run(with_overrides(cfg, {"train.epochs": 5}), data)
    for _ in range(best.epoch):
        again.epoch()
    assert again.evaluate("test") == pytest.approx(found, rel=1e-5)
    flipped = data.splits["test"]
    hidden = Dataset(
        data.name, data.spec, {**data.splits, "test": Split(flipped.inputs, 2 - flipped.target)}
    )
    blind = Run(cfg, hidden)
    for _ in range(5):
        blind.epoch()
    assert blind.best_epoch == run.best_epoch
    assert blind.test() != found


def test_best_epoch_of_an_error_metric_is_the_smallest():
    run = Run(
        support.config("joint", overrides={"train.epochs": 4}), support.dataset(task="regression")
    )
    results = [run.epoch() for _ in range(4)]
    assert run.objective == "val/mae"
    assert run.mode == "min"
    assert run.best_value == min(r.metrics["val/mae"] for r in results)


def test_every_sample_is_evaluated_whatever_the_batch():
    """33 samples in batches of 16: accuracy is a multiple of 1/33, and the same as in one batch."""
    data = support.dataset()
    val = data.splits["val"]
    again = torch.arange(33) % 32
    longer = Split({m: x.take(again) for m, x in val.inputs.items()}, val.target[again])
    data = Dataset(data.name, data.spec, {**data.splits, "val": longer})
    a = Run(support.config(overrides={"train.eval_batch_size": 16}), data).evaluate("val")
    b = Run(support.config(overrides={"train.eval_batch_size": 999}), data).evaluate("val")
    assert a.keys() == b.keys()
    assert all(a[k] == pytest.approx(b[k], rel=1e-5) for k in a)
    assert a["val/accuracy"] * 33 == pytest.approx(round(a["val/accuracy"] * 33))


def test_divergence_is_told_and_ends_the_run():
    run = Run(support.config(overrides={"optim.lr": 1e30, "optim.clip": None}), support.dataset())
    result = run.epoch()
    while not result.done:
        result = run.epoch()
    assert result.diverged
    assert not math.isfinite(result.metrics["val/loss"])


def test_no_epoch_after_the_last():
    run = Run(support.config(overrides={"train.epochs": 1}), support.dataset())
    assert run.epoch().done
    with pytest.raises(RuntimeError, match="all 1 epochs are done"):
        run.epoch()
    with pytest.raises(RuntimeError, match="nothing to test"):
        Run(support.config(), support.dataset()).test()


def test_schedule_reaches_the_optimizer_and_scales_with_the_budget():
    schedule = {"schedule.name": "step", "schedule.milestones": (0.5,), "schedule.factor": 0.1}
    for epochs in (2, 4):
        run = Run(support.config(overrides={**schedule, "train.epochs": epochs}), support.dataset())
        rates = [run.epoch().metrics["lr"] for _ in range(epochs)]
        base = run.config.optim.lr
        assert rates == pytest.approx([base] * (epochs // 2) + [0.1 * base] * (epochs // 2))


def test_a_schedule_by_step_moves_within_the_epoch():
    """A warm-up from 0 over one epoch: by epoch nothing moves in it, by step all but the first step
    does.
    """
    for per, moves in (("epoch", False), ("step", True)):
        schedule = {"schedule.per": per, "schedule.warmup": 1, "schedule.warmup_start": 0.0}
        run = Run(support.config(overrides=schedule), support.dataset())
        before = {n: p.detach().clone() for n, p in run.net.params.items()}
        run.epoch()
        assert any(not torch.equal(p, before[n]) for n, p in run.net.params.items()) == moves


def test_amp_trains_in_bf16_with_float32_weights():
    run = Run(support.config("cggm", overrides={"train.amp": "bf16"}), support.dataset())
    result = run.epoch()
    assert not result.diverged
    assert {p.dtype for p in run.net.params.values()} == {torch.float32}
    exact = Run(support.config("cggm"), support.dataset()).epoch()
    assert result.metrics["train/loss"] != exact.metrics["train/loss"]
    assert result.metrics["train/loss"] == pytest.approx(exact.metrics["train/loss"], rel=0.1)


def test_vectors_instead_of_sequences():
    data = support.dataset(vectors=True)
    cfg = with_overrides(support.config("dgl"), {"model.encoder": "mlp", "model.fusion": "concat"})
    run = Run(cfg, data)
    assert run.epoch().metrics["val/loss"] > run.epoch().metrics["val/loss"]


def test_unimodal_has_no_parameters_of_the_others():
    run = Run(support.config("unimodal", modality="audio"), support.dataset())
    assert {n.split(".")[1] for n in run.net.params if n.startswith("encoders.")} == {"audio"}
    with pytest.raises(
        ValueError,
        match=r"method\.modality: must be one of text, audio, visual, got 'adio'; nearest 'audio'",
    ):
        Run(support.config("unimodal", modality="adio"), support.dataset())


def test_what_does_not_fit_is_refused_without_training():
    data = support.dataset()
    check(support.config("cggm"), data.spec)
    with pytest.raises(
        ValueError, match=r"model\.encoder: .*heads must divide width, but got heads=3, width=10"
    ):
        check(support.config(overrides={"model.encoder.heads": 3}), data.spec)
    with pytest.raises(ValueError, match=r"no metric 'val/mae' in classification"):
        check(support.config(overrides={"train.monitor": "val/mae"}), data.spec)
    with pytest.raises(ValueError, match=r"nearest 'val/accuracy/audio'"):
        Run(support.config(overrides={"train.monitor": "val/accuracy/adio"}), data)
    run = Run(support.config(overrides={"train.monitor": "val/accuracy/audio"}), data)
    assert run.epoch().metrics["val/accuracy/audio"] == run.best_value


def test_classifiers_of_a_method_are_measured_too():
    """val/classifier_accuracy/<m> is the share of samples whose largest logit of m's classifier is
    the target's.
    """
    run = Run(support.config("cggm"), support.dataset())
    values = run.epoch().metrics
    split = run.splits["val"]
    whole = split.batch(torch.arange(len(split)))
    run.model.eval()
    for m in run.spec.modalities:
        with torch.no_grad():
            logits = run.model.get_submodule(f"aux.{m}")(run.net.encode_one(m, whole.inputs[m]))
        right = sum(int(z.argmax()) == int(y) for z, y in zip(logits, split.target, strict=True))
        assert values[f"val/classifier_accuracy/{m}"] == pytest.approx(right / len(split))
    assert (
        f"val/classifier_accuracy/{m}"
        not in Run(support.config("joint"), support.dataset()).epoch().metrics
    )
