"""Gradient statistics against what autograd and the papers' formulae give, written out here."""

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core import statistics


def make(fusion="concat", task="classification"):
    data = support.dataset(task=task)
    cfg = with_overrides(support.config("joint"), {"model.fusion": fusion})
    _, net = support.bound(cfg, data)
    net.model.eval()
    return net, support.batch(data)


def norm(loss, net, modality):
    params = list(net.group(f"encoders.{modality}").values())
    found = torch.autograd.grad(loss, params, retain_graph=True)
    return torch.cat([g.flatten() for g in found]).norm()


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_norms_and_cosine(fusion, task):
    net, batch = make(fusion, task)
    logs = statistics.probe(net, batch, "zero")
    features = net.encode(batch.inputs)
    joint = net.loss(net.fuse(features), batch.target)
    weight = net.params["fusion.head.weight"]
    (fused,) = torch.autograd.grad(joint, weight, retain_graph=True)
    for m in net.modalities:
        only = {k: f if k == m else f.zero() for k, f in features.items()}
        loss = net.loss(net.fuse(only), batch.target)
        (own,) = torch.autograd.grad(loss, weight, retain_graph=True)
        block = net.block(m)
        cosine = torch.cosine_similarity(fused[:, block].flatten(), own[:, block].flatten(), 0)
        torch.testing.assert_close(
            logs[f"grad/norm_multi/{m}"], norm(joint, net, m), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(
            logs[f"grad/norm_uni/{m}"], norm(loss, net, m), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(logs[f"grad/cos/{m}"], cosine, rtol=1e-9, atol=0)
        torch.testing.assert_close(logs[f"probe/loss/{m}"], loss)


def test_suppression_of_concat_by_hand():
    """s for text = mean over samples and k != y of exp((W_k - W_y) z) with W, z of audio and visual
    (DGL, Fig. 3a).
    """
    net, batch = make("concat")
    with torch.no_grad():
        features = net.encode(batch.inputs)
        found = statistics.suppression(net, features, batch.target)["grad/suppression/text"]
        hidden = net.hidden(features)
        hidden[:, net.block("text")] = 0
        scores = hidden @ net.params["fusion.head.weight"].T
        terms = [
            torch.exp(scores[i, k] - scores[i, y])
            for i, y in enumerate(batch.target.tolist())
            for k in range(3)
            if k != y
        ]
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_probe_leaves_no_gradient_and_draws_no_random_number():
    net, batch = make()
    before = torch.get_rng_state()
    statistics.probe(net, batch, "zero")
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in net.params.values())
