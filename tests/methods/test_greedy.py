"""Greedy: conditional speeds by hand, windows as a loop written out, gates held and averaged each
on its own.
"""

import math

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import Batch, Clock, Dataset, DataSpec, Padded, Split, Task
from tune_mm.methods import greedy

CLOCK = Clock(1, 0, 6, 10)
MODEL = {
    "encoder": {"name": "cnn", "channels": [4, 6], "width": 6},
    "fusion": {"name": "mmtm", "stages": [1, 2], "ratio": 2.0},
}


def data(task="classification", modalities=("audio", "visual"), count=48):
    """6 x 6 images of three classes (or a score from them), one channel."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, len(modalities), 1, 6, 6, generator=generator)

    def split(n):
        label = torch.arange(n) % 3
        value = means[label] + torch.randn(n, len(modalities), 1, 6, 6, generator=generator)
        inputs = {m: Padded(value[:, i]) for i, m in enumerate(modalities)}
        return Split(inputs, label if task == "classification" else label.float() - 1)

    kind = Task("classification", 3) if task == "classification" else Task("regression", 1)
    spec = DataSpec(dict.fromkeys(modalities, (1, 6, 6)), kind)
    return Dataset("images", spec, {"train": split(count), "val": split(24), "test": split(24)})


def config(overrides=(), **settings):
    return with_overrides(support.config("greedy", overrides, **settings), {"model": MODEL})


def make(task="classification", seed=0, **settings):
    cfg, some = config(**settings), data(task)
    method, net = support.bound(cfg, some, seed)
    assert isinstance(method, greedy.Greedy)
    return cfg, method, net, support.batch(some)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_difference_of_the_speeds_by_hand():
    """s_1 = log10(2 / .02) = 2, s_2 = log10(.3 / 3) = -1."""
    found = greedy.speed_difference(tensor(0.02, 3.0), tensor(2.0, 0.3))
    assert float(found) == pytest.approx(3.0)
    assert math.isfinite(float(greedy.speed_difference(tensor(0.0, 1.0), tensor(0.0, 0.0))))


def by_hand(differences, epsilon, length):
    """Which modality is held at each step (-1: none), by counters and ifs; d is looked at in
    regular steps only.
    """
    out, window, whose = [], 0, -1
    for d in differences:
        out.append(whose)
        if window:
            window -= 1
            whose = whose if window else -1
        elif abs(d) > epsilon:
            window, whose = length, 0 if d > 0 else 1
    return out


@pytest.mark.parametrize("length", [1, 3])
def test_windows_by_hand(length):
    differences = [0.0, 0.2, -0.5, 0.3, -0.3, 0.05, -0.2, 0.0, 0.0, -0.4, 0.3, 0.3, 0.3, 0.3]
    left, held, found = tensor(0.0)[0], tensor(0.0, 0.0), []
    for value in differences:
        found.append(-1 if not held.any() else int(held.argmax()))
        d = torch.tensor(value)
        opens = (left <= 0) & (d.abs() > 0.1)
        left, held = greedy.next_window(left, held, opens, d > 0, length)
    assert found == by_hand(differences, 0.1, length)
    assert found[:5] == ([-1, -1, 0, -1, 0] if length == 1 else [-1, -1, 0, 0, 0])


def norms(net, found, modality):
    """mu of main and bypass from flat vectors of the parameters picked by their names."""
    other = "visual" if modality == "audio" else "audio"
    block = net.block(modality)
    main = [(found[n], p) for n, p in net.params.items() if n.startswith(f"encoders.{modality}.")]
    main.append((found["fusion.head.weight"][:, block], net.params["fusion.head.weight"][:, block]))
    bypass = [
        (found[n], p)
        for n, p in net.params.items()
        if "exchanges" in n and f"gates.{other}" not in n
    ]
    out = []
    for pairs in (main, bypass):
        g, w = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        out.append(float((g @ g / (w @ w)).detach()))
    return out


def test_speeds_by_hand_and_summed_in_regular_steps_only():
    cfg, method, net, batch = make(epsilon=0.0)
    state = method.init(net, support.start())
    first = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    expected = [norms(net, first.grads, m) for m in net.modalities]
    torch.testing.assert_close(first.state["main"], tensor(expected[0][0], expected[1][0]))
    torch.testing.assert_close(first.state["bypass"], tensor(expected[0][1], expected[1][1]))
    d = math.log10(expected[0][1] / expected[0][0]) - math.log10(expected[1][1] / expected[1][0])
    assert float(first.logs["speed_difference"]) == pytest.approx(d)
    assert first.state["held"].tolist() == ([1.0, 0.0] if d > 0 else [0.0, 1.0])
    assert float(first.state["left"]) == cfg.method.window
    second = method.grads(net, batch, support.hp(cfg.method), first.state, CLOCK)
    assert torch.equal(second.state["main"], first.state["main"])
    assert float(second.state["left"]) == cfg.method.window - 1


def gates_of(net, batch):
    """Gates [B, C] by (stage, modality), from the exchange's layers applied one by one."""
    model, out = net.model, {}
    maps = net.encode(batch.inputs)
    for number in (1, 2):
        if number == 2:
            maps = {m: model.encoders[m].stage(2, x) for m, x in maps.items()}
        layer = model.fusion.exchanges[str(number)]
        squeezed = torch.cat([x.value.mean((1, 3, 4)) for x in maps.values()], 1)
        excited = layer.squeeze(squeezed).relu()
        for m in maps:
            out[number, m] = 2 * torch.sigmoid(layer.gates[m](excited))
        maps = {
            m: Padded(x.value * out[number, m][:, None, :, None, None], x.mask)
            for m, x in maps.items()
        }
    return out


def test_each_modality_s_average_is_of_its_own_gates():
    """Over two batches: the mean of both means. Public code averages the first modality's gates for
    both.
    """
    cfg, method, net, batch = make(start=1.0)
    net.model.eval()
    other = Batch(
        {m: Padded(x.value.flip(0) * 0.5) for m, x in batch.inputs.items()},
        batch.target,
        batch.index,
    )
    state = method.init(net, support.start())
    expected = [gates_of(net, b) for b in (batch, other)]
    for b in (batch, other):
        state = method.grads(net, b, support.hp(cfg.method), state, CLOCK).state
    for (number, m), first in expected[0].items():
        mean = (first.mean(0) + expected[1][number, m].mean(0)) / 2
        torch.testing.assert_close(state[f"gate/{number}/{m}"], mean.detach())
    assert not torch.allclose(state["gate/1/audio"], state["gate/1/visual"])
    assert state["held"].tolist() == [0.0, 0.0], "no window before `start`"


@pytest.mark.parametrize("whose", [0, 1])
def test_a_held_branch_sees_its_own_input_only(whose):
    """Its output does not move with the other modality's input, and nothing of its loss reaches the
    other's encoder.
    """
    cfg, method, net, batch = make()
    net.model.eval()
    state = method.grads(
        net, batch, support.hp(cfg.method), method.init(net, support.start()), CLOCK
    ).state
    held, other = net.modalities[whose], net.modalities[1 - whose]
    state["held"] = torch.eye(2, dtype=torch.float64)[whose]
    inputs = {**batch.inputs, other: Padded(batch.inputs[other].value * -3 + 1)}
    changed = Batch(inputs, batch.target, batch.index)
    one, two = (
        method.loss(net, b, support.hp(cfg.method), state, CLOCK)[1] for b in (batch, changed)
    )
    torch.testing.assert_close(one[f"train/loss/{held}"], two[f"train/loss/{held}"])
    assert not torch.allclose(one[f"train/loss/{other}"], two[f"train/loss/{other}"])
    theirs = list(net.group(f"encoders.{other}").values())
    reached = torch.autograd.grad(
        one[f"train/loss/{held}"], theirs, retain_graph=True, materialize_grads=True
    )
    assert all(not g.any() for g in reached)
    own = torch.autograd.grad(
        one[f"train/loss/{held}"], list(net.group(f"encoders.{held}").values())
    )
    assert all(g.any() for g in own)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_branch_outputs_average_to_the_fused_prediction(task):
    _, method, net, batch = make(task)
    net.model.eval()
    found = method.predict(net, batch.inputs, {})
    torch.testing.assert_close((found["branch/audio"] + found["branch/visual"]) / 2, found["joint"])
    torch.testing.assert_close(found["joint"], net.fuse(net.encode(batch.inputs)))
    hidden, head = net.hidden(net.encode(batch.inputs)), net.model.fusion.head
    torch.testing.assert_close(
        found["branch/audio"], 2 * hidden[:, :6] @ head.weight[:, :6].T + head.bias
    )


def test_random_windows_last_one_step_and_take_each_choice():
    cfg, method, net, batch = make(windows="random")
    torch.manual_seed(0)
    state, seen = method.init(net, support.start()), []
    for _ in range(60):
        state = method.grads(net, batch, support.hp(cfg.method), state, CLOCK).state
        seen.append(tuple(state["held"].tolist()))
    assert set(seen) == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)}
    assert all(10 <= seen.count(choice) <= 30 for choice in set(seen))


def test_alone_equals_vmap_through_a_window():
    """Two trials, two steps each, the second of which lies in a window that may be another
    modality's.
    """
    runs = [make(seed=s, epsilon=0.0) for s in (0, 3)]
    cfg, method, net, batch = runs[0]
    net.model.eval()
    hps = [{k: v * (1 + 0.2 * s) for k, v in support.hp(cfg.method).items()} for s in range(2)]

    def two(bound, hp):
        state = method.init(bound, support.start())
        state = method.grads(bound, batch, hp, state, CLOCK).state
        found = method.grads(bound, batch, hp, state, CLOCK)
        return found.grads, found.logs, found.state

    for r in runs:
        r[2].model.eval()
    alone = [two(r[2], h) for r, h in zip(runs, hps, strict=True)]
    stacked = {n: torch.stack([r[2].params[n].detach() for r in runs]) for n in net.params}
    lanes = {k: torch.stack([h[k] for h in hps]) for k in hps[0]}
    together = torch.func.vmap(lambda p, h: two(Net(net.model, net.task, p, net.buffers), h))(
        stacked, lanes
    )
    for s, expected in enumerate(alone):
        assert expected[2]["held"].sum() == 1
        for theirs, mine in zip(expected, together, strict=True):
            assert set(theirs) == set(mine)
            for key, value in theirs.items():
                torch.testing.assert_close(
                    mine[key][s], value, rtol=1e-8, atol=1e-10, msg=support.named(key)
                )


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_run_learns_and_a_resumed_one_ends_bit_equal(task, tmp_path):
    cfg, some = config({"train.epochs": 5, "optim.lr": 3e-3}, window=2, start=0.2), data(task)
    whole, first = Run(cfg, some), Run(cfg, some)
    before = {n: p.detach().clone() for n, p in whole.net.params.items()}
    found = [whole.epoch().metrics for _ in range(5)]
    assert found[-1]["train/loss"] < found[0]["train/loss"]
    assert all(math.isfinite(v) for metrics in found for v in metrics.values())
    assert found[0]["balance/audio"] + found[0]["balance/visual"] == 0, (
        "no window in the first fifth"
    )
    assert found[-1]["balance/audio"] + found[-1]["balance/visual"] > 0.3
    assert all(not torch.equal(p, before[n]) for n, p in whole.net.params.items())
    first.epoch()
    first.epoch()
    torch.save(first.state_dict(), tmp_path / "run.pt")
    second = Run(cfg, some)
    second.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    while not second.epoch().done:
        pass
    assert all(torch.equal(p, second.net.params[n]) for n, p in whole.net.params.items())
    assert all(torch.equal(t, second.state[n]) for n, t in whole.state.items())


def test_what_it_cannot_train_is_refused():
    three = data(modalities=("audio", "visual", "depth"))
    with pytest.raises(
        ValueError, match=r"method\.name: greedy needs 2 modalities, got 3 \(audio, visual, depth\)"
    ):
        check(config(), three.spec)
    with pytest.raises(ValueError, match=r"model\.fusion: greedy needs mmtm, got 'concat'"):
        check(with_overrides(config(), {"model.fusion": "concat"}), data().spec)
    check(config(), data("regression").spec)
