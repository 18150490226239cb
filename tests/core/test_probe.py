"""What a method asks of its data between epochs equals plain loops, and leaves the run as it was."""

from typing import Any

import pytest
import torch

from tests import support
from tune_mm import plugins
from tune_mm.config import load_config, with_overrides
from tune_mm.core import batches
from tune_mm.core.features import pooled
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.probe import STREAM, Probe
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, DataSpec, EpochEnd, Padded, Split, Task

MODALITIES = ("text", "audio", "visual")


def task_loss(net, batch):
    return net.loss(net.fuse(net.encode(batch.inputs)), batch.target)


def doubled(split):
    inputs = {m: Padded(x.value.double(), x.mask) for m, x in split.inputs.items()}
    return Split(inputs, split.target, split.ids)


def make(rule="sgd", dropout=0.0, clip=None):
    """A probe of batches of 16 (training) and 24 (evaluation) over 96 training and 32 validation
    samples.
    """
    small = support.dataset()
    data = Dataset(
        small.name, small.spec, {name: doubled(split) for name, split in small.splits.items()}
    )
    cfg = support.config("joint", overrides={"model.encoder.dropout_residual": dropout})
    _method, net = support.bound(cfg, data)
    hp = {
        "lr": 0.1,
        "weight_decay": 0.01,
        "momentum": 0.9,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-4,
    }
    tensors = {
        k: torch.tensor(v, dtype=torch.float64)
        for k, v in {**hp, **({} if clip is None else {"clip": clip})}.items()
    }
    splits = {name: data.splits[name] for name in ("train", "val")}
    return (
        Probe(
            net,
            splits,
            16,
            24,
            3,
            rule,
            tensors,
            {"fusion": {"lr": torch.tensor(0.05, dtype=torch.float64)}},
        ),
        net,
        data,
    )


def test_pooled_by_hand():
    """A sequence of 1 and 3 with a padded 9; frames [1, 2, 1, 1, 2] of 1 and 5, and 0 and 2; a
    vector.
    """
    sequence = Padded(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    assert pooled(sequence).tolist() == [[2.0]]
    assert pooled(Padded(sequence.value)).item() == pytest.approx(13 / 3)
    assert pooled(Padded(torch.tensor([1.0, 5.0, 0.0, 2.0]).reshape(1, 2, 1, 1, 2))).tolist() == [
        [2.0]
    ]
    assert pooled(Padded(torch.tensor([[4.0, 5.0]]))).tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize(
    ("fraction", "chosen"), [(1.0, range(32)), (0.25, [0, 4, 9, 13, 18, 22, 27, 31]), (0.001, [0])]
)
def test_features_equal_a_plain_loop(fraction, chosen):
    """0.25 of 32: 8 samples 31 / 7 apart, rounded."""
    probe, net, data = make(dropout=0.4)
    features, target = probe.features("val", fraction)
    net.model.eval()
    for place, i in enumerate(chosen):
        one = net.encode(data.splits["val"].batch(torch.tensor([i])).inputs)
        for m in MODALITIES:
            value, mask, _ = one[m]
            torch.testing.assert_close(features[m][place], value[0][mask[0]].mean(0))
    assert target.tolist() == data.splits["val"].target[list(chosen)].tolist()
    assert not features["text"].requires_grad


def test_loss_is_the_mean_over_samples():
    """32 samples in passes of 24 and 8: a mean of the passes' means would weigh the last 8 three
    times.
    """
    probe, net, data = make(dropout=0.4)
    net.model.eval()
    rows = [task_loss(net, data.splits["val"].batch(torch.tensor([i]))).item() for i in range(32)]
    net.model.train()
    assert float(probe.loss("val", task_loss)) == pytest.approx(sum(rows) / 32)
    assert net.model.training


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_copy_is_trained_as_by_torch(rule):
    """The same batches through `torch.optim`, clipped by `torch.nn.utils`, with the fusion's own
    learning rate.
    """
    probe, net, data = make(rule, clip=0.5)
    before = {n: p.detach().clone() for n, p in net.params.items()}
    found = probe.train(task_loss, ("encoders.text", "fusion"), 2, key=5)
    assert all(torch.equal(p, before[n]) for n, p in net.params.items())
    assert probe.samples == 2 * 96
    encoder, fusion = list(net.group("encoders.text").values()), list(net.group("fusion").values())
    groups: list[dict[str, Any]] = [{"params": encoder}, {"params": fusion, "lr": 0.05}]
    optimizer = (
        torch.optim.SGD(groups, 0.1, 0.9, weight_decay=0.01)
        if rule == "sgd"
        else torch.optim.Adam(groups, 0.1, eps=1e-4, weight_decay=0.01)
    )
    net.model.train()
    for epoch in range(2):
        stream = batches.key(3 * STREAM + 5, epoch)
        for index in batches.order(96, 16, stream):
            optimizer.zero_grad()
            task_loss(Net(net.model, net.task), data.splits["train"].batch(index)).backward()
            torch.nn.utils.clip_grad_norm_(encoder + fusion, 0.5)
            optimizer.step()
    for name, p in net.params.items():
        torch.testing.assert_close(found.params[name], p, msg=support.named(name))
        assert torch.equal(p, before[name]) == (not name.startswith(("encoders.text.", "fusion.")))


def test_copies_of_other_keys_see_other_batches():
    probe, _net, _data = make(dropout=0.4)
    one, same, other = (probe.train(task_loss, ("fusion",), 1, key=k) for k in (1, 1, 2))
    assert all(torch.equal(p, same.params[n]) for n, p in one.params.items())
    assert not all(torch.equal(p, other.params[n]) for n, p in one.params.items())


class Curious(Method):
    """Joint training that looks at everything there is to look at, and throws it away."""

    def __init__(self, config):
        super().__init__(config)
        self.inner = plugins.load("methods", "joint")(config)

    def loss(self, net, batch, hp, state, clock):
        return self.inner.loss(net, batch, hp, state, clock)

    def epoch_end(self, probe, hp, state, clock):
        probe.features("train", 0.5)
        probe.loss("val", task_loss)
        copy = probe.train(task_loss, ("encoders", "fusion"), 1)
        probe.loss("train", task_loss, copy)
        return EpochEnd(state)


class Recording(Curious):
    """Remembers in what precision a copy was trained."""

    def epoch_end(self, probe, hp, state, clock):
        def objective(net, batch):
            logits = net.fuse(net.encode(batch.inputs))
            self.seen = logits.dtype
            return net.loss(logits, batch.target)

        copy = probe.train(objective, ("encoders", "fusion"), 1)
        assert {p.dtype for p in copy.params.values()} == {torch.float32}
        return EpochEnd(state)


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_copies_are_trained_in_the_precision_of_the_run(amp, dtype):
    run = Run(
        with_overrides(support.config("joint"), {"train.amp": amp, "train.device": "cpu"}),
        support.dataset(),
    )
    run.method = Recording(run.config.method)
    run.epoch()
    assert run.method.seen == dtype


def images(count, seed):
    stream = torch.Generator().manual_seed(seed)
    inputs = {m: Padded(torch.randn(count, 1, 8, 8, generator=stream)) for m in ("audio", "visual")}
    return Split(
        inputs, torch.randint(0, 3, (count,), generator=stream), tuple(map(str, range(count)))
    )


def test_the_run_is_left_as_it_was_bit_for_bit():
    """With dropout (random stream) and BatchNorm (running statistics): two epochs with and without
    a look.
    """
    spec = DataSpec({"audio": (1, 8, 8), "visual": (1, 8, 8)}, Task("classification", 3))
    data = Dataset(
        "images", spec, {"train": images(40, 0), "val": images(16, 1), "test": images(16, 2)}
    )
    changes = {
        "model.encoder": {"name": "cnn", "channels": [4], "width": 6, "dropout": 0.3},
        "train.device": "cpu",
        "train.epochs": 2,
        "train.batch_size": 16,
        "train.probe_size": 8,
    }
    cfg = with_overrides(load_config("avdigits"), changes)
    plain, curious = Run(cfg, data), Run(cfg, data)
    curious.method = Curious(cfg.method)
    for _ in range(2):
        one, two = plain.epoch().metrics, curious.epoch().metrics
        assert {k: v for k, v in one.items() if k != "time/epoch"} == {
            k: v for k, v in two.items() if k != "time/epoch"
        }
    first, second = plain.state_dict(), curious.state_dict()
    for part in ("model", "rng"):
        assert all(torch.equal(t, second[part][n]) for n, t in first[part].items())
    assert all(
        torch.equal(t, second["slots"]["momentum"][n])
        for n, t in first["slots"]["momentum"].items()
    )
    assert first["steps"] == second["steps"]
    assert curious.model.training == plain.model.training
