"""ReconBoost: stages, the learner's loss and the agreement by hand, and what each phase trains."""

import math

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, Task
from tune_mm.methods.reconboost import agreement, boosting, stages_of

MODALITIES = ("text", "audio", "visual")
HEAD = "fusion.head.weight"
EPOCHS = 6  # three stages of one epoch per phase: text 0 and 1, audio 2 and 3, visual 4 and 5
CLASSES = Task("classification", 2)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(task="classification", **settings):
    data = support.dataset(MODALITIES, task)
    cfg = support.config("reconboost", **settings)
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data), method.init(net, support.start())


def own_logits(net, batch, modality):
    """W h + b of the mean feature over real steps, written out."""
    value, mask, _ = net.encode_one(modality, batch.inputs[modality])
    vector = torch.stack([v[real].mean(0) for v, real in zip(value, mask, strict=True)])
    return vector @ net.params[HEAD].T + net.params["fusion.head.bias"]


@pytest.mark.parametrize(
    ("stages", "epochs", "expected"),
    [
        (2, 8, [(0, 2, 4), (4, 6, 8)]),
        (4, 30, [(0, 4, 7), (7, 11, 15), (15, 19, 22), (22, 26, 30)]),
        (12, 6, [(0, 1, 2), (2, 3, 4), (4, 5, 6)]),
        (12, 1, [(0, 1, 1)]),
    ],
)
def test_stages_share_the_epochs_of_a_run(stages, epochs, expected):
    """Stage k ends at the whole part of (k + 1) epochs / stages; its first phase has the odd epoch."""
    assert [tuple(s[1:]) for s in stages_of(stages, epochs)] == expected
    method = make(stages=stages)[1]
    assert method.dips(epochs) == tuple((first + 1, rectify) for first, rectify, _ in expected)


def test_boosting_by_hand():
    """The others give the true class 3/4, the learner 1/2 and 1/5: -5 mean(y ln p) + mean(y
    p_others ln p), over the elements of [B, C] = [2, 2].
    """
    own, others = tensor([0, 0], [math.log(4), 0]), tensor([math.log(3), 0], [0, math.log(3)])
    found = boosting(CLASSES, own, others, torch.tensor([0, 1]), tensor(5)[0], tensor(1)[0])
    expected = (-5 * (math.log(0.5) + math.log(0.2)) + 0.75 * (math.log(0.5) + math.log(0.2))) / 4
    torch.testing.assert_close(found, tensor(expected)[0])


def test_boosting_of_a_score_by_hand():
    """Others off by ln 2 are trusted 1/2, the learner is off by 3: (4 - 2 / 2) * 3."""
    found = boosting(
        Task("regression", 1),
        tensor([4]),
        tensor([1 + math.log(2)]),
        tensor(1),
        tensor(4)[0],
        tensor(2)[0],
    )
    torch.testing.assert_close(found, tensor(9)[0])


def test_agreement_by_hand():
    """(1/2, 1/2) and (3/4, 1/4): 1/16 on average; scores 1 and 3: 4."""
    torch.testing.assert_close(
        agreement(CLASSES, tensor([0, 0]), tensor([math.log(3), 0])), tensor(1 / 16)[0]
    )
    torch.testing.assert_close(
        agreement(Task("regression", 1), tensor([1]), tensor([3])), tensor(4)[0]
    )


def at(epoch, step=0):
    return Clock(epoch, step, 6, EPOCHS)


@pytest.mark.parametrize("kind", ["gradient", "detached"])
def test_the_agreement_has_a_gradient(kind):
    """Public code detaches both sides, so that its weight changes nothing: `detached`."""
    cfg, method, net, batch, state = make(agreement=kind)
    hp = support.hp(cfg.method)
    names = net.group("encoders.audio", "fusion")
    none, much = (
        method.grads(net, batch, {**hp, "alpha": tensor(a)[0]}, state, at(2)).grads for a in (0, 10)
    )
    assert all(torch.equal(none[name], much[name]) for name in names) == (kind == "detached")


def test_the_first_phase_by_autograd():
    """Stage 1 trains audio with text fixed: L from whole expressions, p_others with the rate, and
    audio alone moves.
    """
    cfg, method, net, batch, state = make(alpha=0.7, w1=3.0, w2=2.0)
    with torch.no_grad():
        net.params["aux.rate.value"].fill_(1.5)
    found = method.grads(net, batch, support.hp(cfg.method), state, at(2))
    own, text = own_logits(net, batch, "audio"), own_logits(net, batch, "text").detach()
    y = torch.nn.functional.one_hot(batch.target, 3)
    p = own.softmax(-1)
    loss = -3 * (y * p.log()).mean() + 2 * (y * (1.5 * text).softmax(-1) * p.log()).mean()
    loss = loss + 0.7 * (p - text.softmax(-1)).square().mean()
    params = net.group("encoders.audio", "fusion")
    torch.testing.assert_close(found.loss, loss.detach())
    assert found.grads.keys() == params.keys()
    for name, gradient in zip(
        params, torch.autograd.grad(loss, list(params.values())), strict=True
    ):
        torch.testing.assert_close(found.grads[name], gradient, msg=support.named(name))


def test_the_second_phase_by_autograd():
    """Cross-entropy of the rate times the sum over text and audio, which had a turn; visual stays
    as it is.
    """
    cfg, method, net, batch, state = make()
    found = method.grads(net, batch, support.hp(cfg.method), state, at(3))
    total = own_logits(net, batch, "text") + own_logits(net, batch, "audio")
    loss = torch.nn.functional.cross_entropy(net.params["aux.rate.value"] * total, batch.target)
    params = net.group("encoders.text", "encoders.audio", "fusion", "aux")
    assert found.grads.keys() == params.keys()
    for name, gradient in zip(
        params, torch.autograd.grad(loss, list(params.values())), strict=True
    ):
        torch.testing.assert_close(found.grads[name], gradient, msg=support.named(name))


def test_others_predict_with_the_head_as_the_stage_began():
    """Within a stage the state's head stays, whatever the head has become; at the next it is taken
    anew.
    """
    cfg, method, net, batch, state = make()
    hp = support.hp(cfg.method)
    begun = method.grads(net, batch, hp, state, at(2)).state
    old = net.params[HEAD].detach().clone()
    with torch.no_grad():
        net.params[HEAD].mul_(3)
    assert torch.equal(method.grads(net, batch, hp, begun, at(2, 1)).state["head.weight"], old)
    assert torch.equal(method.grads(net, batch, hp, begun, at(4)).state["head.weight"], 3 * old)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_ensemble_grows_by_a_modality_per_stage(task):
    """Its prediction is the rate times the sum (of scores: the mean) over those that had a turn."""
    cfg, method, net, batch, state = make(task)
    with torch.no_grad():
        net.params["aux.rate.value"].fill_(1.5)
    z = [own_logits(net, batch, m) for m in MODALITIES]
    for stage in range(3):
        state = method.grads(net, batch, support.hp(cfg.method), state, at(2 * stage)).state
        total = sum(z[: stage + 1]) / (1 if task == "classification" else stage + 1)
        found = method.predict(net, batch.inputs, state)
        torch.testing.assert_close(found["joint"], 1.5 * total)
        torch.testing.assert_close(found["visual"], z[2])


def test_modalities_take_turns_and_the_optimizer_begins_anew():
    run = Run(support.config("reconboost", overrides={"train.epochs": EPOCHS}), support.dataset())
    for epoch in range(EPOCHS):
        before = {n: p.detach().clone() for n, p in run.net.params.items()}
        run.epoch()
        moved = {n for n, p in run.net.params.items() if not torch.equal(p, before[n])}
        turn = epoch // 2
        learners = MODALITIES[: turn + 1] if epoch % 2 else (MODALITIES[turn],)
        prefixes = (*(f"encoders.{m}" for m in learners), "fusion", *(["aux"] if epoch % 2 else []))
        assert moved == set(run.net.group(*prefixes))
        if epoch + 1 < EPOCHS:
            assert not any(run.opt.steps.values())
            assert not any(bool(t.any()) for slot in run.opt.slots.values() for t in slot.values())


def test_a_run_resumed_within_a_phase_ends_bit_equal(tmp_path):
    """Stages of 2 + 2 epochs: after the first epoch the head of the stage's beginning is known from
    the state only.
    """
    cfg, data = (
        support.config("reconboost", overrides={"train.epochs": 8}, stages=2),
        support.dataset(),
    )
    whole, part = Run(cfg, data), Run(cfg, data)
    for _ in range(5):
        part.epoch()
    torch.save(part.state_dict(), tmp_path / "run.pt")
    again = Run(cfg, data)
    again.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    for _ in range(8):
        whole.epoch()
    for _ in range(3):
        again.epoch()
    assert all(torch.equal(p, again.net.params[n]) for n, p in whole.net.params.items())
    assert all(torch.equal(t, again.state[n]) for n, t in whole.state.items())


def test_encoders_may_begin_as_they_were_trained_alone():
    cfg, data = (
        support.config("reconboost", start="unimodal", teacher={"epochs": 1}),
        support.dataset(),
    )
    run, scratch = Run(cfg, data), Run(support.config("reconboost"), data)
    teachers = Run(support.config("umt", teacher={"epochs": 1}), data).state
    for name, p in run.net.params.items():
        same = name in teachers
        assert torch.equal(p, teachers[name]) if same else torch.equal(p, scratch.net.params[name])
    assert run.state["members"].tolist() == [1, 1, 1]
    run.epoch()


@pytest.mark.parametrize(
    ("changes", "modalities", "message"),
    [
        (
            {"model.fusion": "sum"},
            MODALITIES,
            r"model\.fusion: reconboost needs shared_head, got 'sum'",
        ),
        ({}, ("text",), r"reconboost needs 2 or more modalities, got 1 \(text\)"),
    ],
)
def test_refusals_name_what_is_supported(changes, modalities, message):
    with pytest.raises(ValueError, match=message):
        check(
            with_overrides(support.config("reconboost"), changes), support.dataset(modalities).spec
        )
