"""Optimizers against torch.optim in float64: the independent implementation."""

import pytest
import torch

from tune_mm.core import grads, optim, step

HP = {"lr": 0.03, "weight_decay": 0.1, "momentum": 0.9, "beta1": 0.8, "beta2": 0.95, "eps": 1e-7}


def reference(name, params):
    if name == "sgd":
        return torch.optim.SGD(
            params, lr=HP["lr"], momentum=HP["momentum"], weight_decay=HP["weight_decay"]
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    betas = (HP["beta1"], HP["beta2"])
    return kind(params, lr=HP["lr"], betas=betas, eps=HP["eps"], weight_decay=HP["weight_decay"])


def tensors(hp=HP):
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in hp.items()}


def parameters():
    torch.manual_seed(0)
    shapes = {
        "encoders.a.w": (4, 3),
        "encoders.b.w": (5,),
        "fusion.head.weight": (2, 2),
        "fusion.head.bias": (2,),
    }
    return {n: torch.randn(s, dtype=torch.float64) for n, s in shapes.items()}


@pytest.mark.parametrize("name", sorted(optim.RULES))
def test_equals_torch(name):
    params = parameters()
    theirs = {n: p.clone().requires_grad_() for n, p in params.items()}
    optimizer, state = reference(name, list(theirs.values())), step.init(name, params)
    for _ in range(7):
        gradients = {n: torch.randn_like(p) for n, p in params.items()}
        for n, p in theirs.items():
            p.grad = gradients[n].clone()
        optimizer.step()
        params, state, _ = step.descend(name, params, gradients, state, tensors())
    for n, p in params.items():
        torch.testing.assert_close(p, theirs[n].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(optim.RULES))
def test_parameter_without_gradient_is_untouched_as_in_torch(name):
    """Gradients for changing subsets of names: torch skips `p.grad is None` and counts its steps
    apart.
    """
    params = parameters()
    theirs = {n: p.clone().requires_grad_() for n, p in params.items()}
    optimizer, state = reference(name, list(theirs.values())), step.init(name, params)
    names = list(params)
    for chosen in (names, names[:1], names[2:3], names[1:], names):
        gradients = {n: torch.randn_like(params[n]) for n in chosen}
        for n, p in theirs.items():
            p.grad = gradients[n].clone() if n in gradients else None
        optimizer.step()
        new, state, _ = step.descend(name, params, gradients, state, tensors())
        assert set(new) == set(chosen)
        params = {**params, **new}
    for n, p in params.items():
        torch.testing.assert_close(p, theirs[n].detach(), rtol=1e-12, atol=1e-12)


def test_clip_equals_torch_and_spares_aux():
    params = {**parameters(), "aux.a.head.weight": torch.ones(3, dtype=torch.float64)}
    gradients = {n: torch.full_like(p, 3.0) for n, p in params.items()}
    main = [n for n in params if not n.startswith("aux")]
    theirs = {n: params[n].clone().requires_grad_() for n in main}
    for n, p in theirs.items():
        p.grad = gradients[n].clone()
    torch.nn.utils.clip_grad_norm_(list(theirs.values()), 0.8)
    torch.optim.SGD(list(theirs.values()), lr=0.5).step()
    hp = tensors({"lr": 0.5, "weight_decay": 0.0, "momentum": 0.0, "clip": 0.8})
    new, _, logs = step.descend("sgd", params, gradients, step.init("sgd", params), hp)
    for n in main:
        torch.testing.assert_close(new[n], theirs[n].detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(new["aux.a.head.weight"], params["aux.a.head.weight"] - 1.5)
    torch.testing.assert_close(
        logs["grad/norm/a"], theirs["encoders.a.w"].grad.norm(), rtol=1e-9, atol=0
    )


def test_override_by_owner():
    params = parameters()
    gradients = {n: torch.ones_like(p) for n, p in params.items()}
    hp = tensors({"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0})
    overrides = {"encoders.b": tensors({"lr": 0.5})}
    new, _, _ = step.descend("sgd", params, gradients, step.init("sgd", params), hp, overrides)
    torch.testing.assert_close(new["encoders.b.w"], params["encoders.b.w"] - 0.5)
    torch.testing.assert_close(new["encoders.a.w"], params["encoders.a.w"] - 0.1)


@pytest.mark.parametrize("name", sorted(optim.RULES))
def test_lanes_with_their_own_settings_equal_separate_runs(name):
    """[K, P] vectors with [K, 1] settings give each lane what it gets alone."""
    torch.manual_seed(1)
    p, g = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    lanes = {k: torch.tensor([[v], [v / 2], [v / 4]], dtype=torch.float64) for k, v in HP.items()}
    rule, slots = optim.RULES[name], {slot: torch.zeros_like(p) for slot in optim.SLOTS[name]}
    moved, _ = rule(p, g, slots, lanes, 2)
    for k in range(3):
        alone, _ = rule(
            p[k], g[k], {s: v[k] for s, v in slots.items()}, {n: v[k] for n, v in lanes.items()}, 2
        )
        torch.testing.assert_close(moved[k], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", sorted(optim.RULES))
@pytest.mark.parametrize("part", [1, 5, 9])
def test_parts_and_in_place_give_the_same(name, part, monkeypatch):
    """Vectors of at most `part` values (or one tensor), written to the parameters, against whole
    vectors.
    """
    torch.manual_seed(2)
    whole, pieces = ({n: p.clone() for n, p in parameters().items()} for _ in range(2))
    whole_state, state = step.init(name, whole), step.init(name, pieces)
    hp = tensors({**HP, "clip": 0.8})
    for _ in range(3):
        gradients = {n: torch.randn_like(p) for n, p in whole.items()}
        monkeypatch.setattr(step, "PART", 2**21)
        whole, whole_state, logs = step.descend(name, whole, gradients, whole_state, hp)
        monkeypatch.setattr(step, "PART", part)
        places = {n: p.data_ptr() for n, p in pieces.items()}
        new, state, again = step.descend(name, pieces, gradients, state, hp, in_place=True)
        assert {n: p.data_ptr() for n, p in new.items()} == places
        torch.testing.assert_close(again, logs, rtol=1e-13, atol=0)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state.slots, whole_state.slots, rtol=1e-12, atol=1e-13)
    assert state.steps == whole_state.steps


def test_flat_and_back():
    params = parameters()
    names = list(params)
    back = grads.unflat(grads.flat(params, names), params, names)
    assert all(torch.equal(back[n], params[n]) for n in names)
    owners = grads.groups([*names, "aux.a.head.weight"])
    assert owners["fusion"] == ["fusion.head.weight", "fusion.head.bias"]
    assert set(owners) == {"encoders.a", "encoders.b", "fusion", "aux"}
