"""Diagnosing and Re-learning: purity and resets by hand, when they come, and what a reset leaves
alone.
"""

import math

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, Dataset, DataSpec, Padded, Split, Task
from tune_mm.methods import relearn


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def resets(epochs, **settings):
    method = relearn.Relearn(relearn.RelearnConfig(**settings))
    return method.resets(epochs), method.dips(epochs)


def test_purity_by_hand():
    """Clusters {a a b}, {b b}, {c}: the commonest are 2 + 2 + 1 of 6."""
    clusters, labels = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 2])
    assert float(relearn.purity(clusters, labels)) == pytest.approx(5 / 6)
    assert float(relearn.purity(torch.zeros(6, dtype=torch.int64), labels)) == pytest.approx(3 / 6)
    assert float(relearn.purity(torch.tensor([2, 2, 2, 0, 0, 1]), labels)) == pytest.approx(
        5 / 6
    )  # names do not count


def test_features_are_scaled_to_the_unit_interval():
    """Columns 2 4 8 -> 0 1/3 1, and a constant one -> 0."""
    found = relearn.scaled(tensor([2.0, 5.0], [4.0, 5.0], [8.0, 5.0]))
    torch.testing.assert_close(found, tensor([0.0, 0.0], [1 / 3, 0.0], [1.0, 0.0]))


def test_k_means_finds_clusters_that_only_scaling_makes_visible():
    """Two groups .01 apart in one column, noise of 100 in the other: raw distances see the noise
    alone.
    """
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(60) % 2
    noise = 100 * (torch.arange(60) % 30 // 2 / 15 - 0.5)  # the same for both groups
    features = torch.stack(
        [0.01 * group + 1e-4 * torch.randn(60, generator=generator), 0.2 * noise + 3], 1
    )
    assert float(relearn.purity(relearn.cluster(features, 2, 0), group)) == 1.0
    assert (
        len(relearn.cluster(features[:3], 5, 0).unique()) == 3
    )  # never more clusters than samples
    assert relearn.cluster(torch.zeros(6, 2), 3, 0).unique().tolist() == [0]  # an encoder that died


def test_regression_s_classes_are_equal_shares_of_the_training_targets():
    """Training targets 0..9 in 5 classes of two; what lies outside belongs to the ends."""
    train = torch.arange(10.0)
    task = Task("regression", 1)
    assert relearn.labels_of(task, train, train, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert relearn.labels_of(task, torch.tensor([-7.0, 4.4, 99.0]), train, 5).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("epochs", "settings", "when", "dips"),
    [
        (
            90,
            {"period": 20 / 90, "times": 3},
            (20, 40, 60),
            ((20, 24), (40, 44), (60, 64)),
        ),  # as published
        (30, {"period": 0.5, "times": 2}, (15,), ((15, 17),)),  # none after the last epoch
        (10, {"period": 0.2, "times": 9}, (2, 4, 6, 8), ((2, 3), (4, 5), (6, 7), (8, 9))),
        (3, {"period": 0.01, "times": 2}, (1,), ((1, 2),)),
        (10, {"times": 0}, (), ()),
        (1, {}, (), ()),
    ],
)
def test_when_encoders_are_reset(epochs, settings, when, dips):
    assert resets(epochs, **settings) == (when, dips)


def trained(task="classification", modalities=("text", "audio", "visual"), **settings):
    data = support.dataset(modalities, task)
    run = Run(support.config("relearn", {"train.epochs": 4}, period=0.5, times=1, **settings), data)
    run.epoch()
    return run


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    "modalities", [("text", "audio"), ("text", "audio", "visual")], ids=["two", "three"]
)
def test_a_reset_by_hand(task, modalities):
    """beta = tanh(3 |p_train - p_val|), every weight of the encoder beta of the way to where it
    began.
    """
    run = trained(task, modalities)
    begun = Run(run.config, run.dataset)
    end = run.method.epoch_end(run._probe(1.0), run.hp, run.state, Clock(1, 6, 6, 4))
    assert end.samples == 96
    for m in modalities:
        pure = [float(end.logs[f"purity_{split}/{m}"]) for split in ("train", "val")]
        assert all(0 < p <= 1 for p in pure)
        beta = math.tanh(3 * abs(pure[0] - pure[1]))
        assert float(end.logs[f"balance/{m}"]) == pytest.approx(beta, rel=1e-6)
        for name, p in run.net.group(f"encoders.{m}").items():
            expected = beta * begun.net.params[name] + (1 - beta) * p
            torch.testing.assert_close(end.params[name], expected.detach(), rtol=1e-5, atol=1e-6)
    assert set(end.params) == set(run.net.group("encoders"))


def test_at_lam_0_nothing_moves_and_at_a_large_one_all_is_as_it_was_at_first():
    run = trained()
    begun = Run(run.config, run.dataset)
    clock, probe = Clock(1, 6, 6, 4), run._probe(1.0)
    still = run.method.epoch_end(probe, {"lam": torch.tensor(0.0)}, run.state, clock)
    assert all(torch.equal(p, run.net.params[n]) for n, p in still.params.items())
    back = run.method.epoch_end(probe, {"lam": torch.tensor(1e6)}, run.state, clock)
    wide = [m for m in run.net.modalities if float(back.logs[f"balance/{m}"]) == 1.0]
    assert wide
    for m in wide:
        for name in run.net.group(f"encoders.{m}"):
            torch.testing.assert_close(
                back.params[name], begun.net.params[name].detach(), rtol=0, atol=1e-6
            )


def test_the_optimizer_forgets_what_was_reset_and_only_that():
    """Public code goes on with the momentum of the weights that are gone."""
    run = Run(
        support.config("relearn", {"train.epochs": 4}, period=0.25, times=1), support.dataset()
    )
    found = run.epoch()
    assert "balance/text" in found.metrics
    assert found.metrics["samples"] == 2 * 96
    for values in run.opt.slots.values():
        for name, memory in values.items():
            assert bool((memory == 0).all()) == name.startswith("encoders."), name
    assert {k for n, k in run.opt.steps.items() if n.startswith("encoders.")} == {0}
    assert "balance/text" not in run.epoch().metrics
    assert run.samples == 3 * 96


def images():
    """Two modalities of 6 x 6 images in three classes."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, 1, 6, 6, generator=generator)

    def split(n):
        label = torch.arange(n) % 3
        noise = torch.randn(n, 2, 1, 6, 6, generator=generator)
        value = means[label] + noise
        return Split({"audio": Padded(value[:, 0]), "visual": Padded(value[:, 1])}, label)

    spec = DataSpec({"audio": (1, 6, 6), "visual": (1, 6, 6)}, Task("classification", 3))
    return Dataset("images", spec, {"train": split(48), "val": split(24), "test": split(24)})


@pytest.mark.parametrize(
    "fusion", [{"name": "concat"}, {"name": "mmtm", "stages": [1, 2]}], ids=["concat", "mmtm"]
)
@pytest.mark.parametrize("reset", [True, False])
def test_running_statistics_are_drawn_back_with_the_weights(fusion, reset):
    """mean <- (1 - beta) mean, variance <- beta + (1 - beta) variance: of BatchNorm's start, 0 and
    1.
    """
    model = {"encoder": {"name": "cnn", "channels": [4, 6], "width": 6}, "fusion": fusion}
    settings = {"period": 0.5, "times": 1, "reset_statistics": reset, "lam": 5.0}
    run = Run(
        with_overrides(
            support.config("relearn", {"train.epochs": 4}, **settings), {"model": model}
        ),
        images(),
    )
    run.epoch()
    before = {n: b.clone() for n, b in run.net.buffers.items()}
    end = run.method.epoch_end(run._probe(1.0), run.hp, run.state, Clock(1, 6, 6, 4))
    run._replace(end.params)
    betas = {m: float(end.logs[f"balance/{m}"]) for m in run.net.modalities}
    assert max(betas.values()) > 0
    for name, buffer in run.model.named_buffers():
        beta = betas.get(name.split(".")[1], 0.0) if reset and name.startswith("encoders.") else 0.0
        initial = {"running_mean": 0.0, "running_var": 1.0}.get(name.rpartition(".")[2])
        expected = before[name] if initial is None else beta * initial + (1 - beta) * before[name]
        torch.testing.assert_close(buffer, expected, rtol=1e-5, atol=1e-6, msg=support.named(name))


def test_initial_weights_survive_a_checkpoint():
    """They are those of the first run, not of the object that resumes under another seed."""
    run = trained()
    other = Run(with_overrides(run.config, {"seed": 5}), run.dataset)
    kept = {n: t.clone() for n, t in run.state.items()}
    assert any(not torch.equal(other.state[n], t) for n, t in kept.items())
    other.load_state_dict(run.state_dict())
    assert all(torch.equal(other.state[n], t) for n, t in kept.items())
