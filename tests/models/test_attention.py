"""Attention: the chunked form against the formula, with the same dropout, in values, gradients and types."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tune_mm.models import _attention as A


def case(queries=6, dtype=torch.float64, samples=3, heads=2, keys=6, channels=4):
    torch.manual_seed(1)
    q, k, v = (torch.randn(samples, heads, n, channels, dtype=dtype) for n in (queries, keys, keys))
    mask = torch.rand(samples, keys) < 0.6
    mask[:, 0] = True
    return [t.requires_grad_() for t in (q, k, v)], mask


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor | None, share: float) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    weights = scores.softmax(-1)
    return (weights if keep is None else weights * keep / share) @ v


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("chunk", [1, 150, 1 << 20])
def test_chunks_equal_the_formula(monkeypatch, dropped, masked, queries, chunk):
    (q, k, v), mask = case(queries)
    mask = mask if masked else None
    keep = A.keep_bytes((3, 2, queries, 6), 0.3) if dropped else None
    share = A.kept_share(0.3) if dropped else 1.0
    monkeypatch.setattr(A, "CHUNK", chunk)
    found = A.ChunkedAttention.apply(q, k, v, A.bias_of(mask, q), keep, share)
    wanted = formula(q, k, v, mask, keep, share)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    seed = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad(out, (q, k, v), seed) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked):
    (q, k, v), mask = case()
    keep, share = A.keep_bytes((3, 2, 6, 6), 0.3), A.kept_share(0.3)
    bias = A.bias_of(mask, q) if masked else None
    assert torch.autograd.gradcheck(lambda *t: A.ChunkedAttention.apply(*t, bias, keep, share), (q, k, v))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_without_dropout_equals_sdpa(monkeypatch, dtype, tolerance, masked):
    (q, k, v), mask = case(dtype=dtype)
    mask = mask if masked else None
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
    short = A.attention(q, k, v, mask)
    monkeypatch.setattr(A, "LONG", 1)
    found = A.attention(q, k, v, mask)
    assert "ChunkedAttention" in type(found.grad_fn).__name__
    assert found.dtype == dtype
    for out in (short, found, A.plain_attention(q, k, v, mask, 0.0)):
        torch.testing.assert_close(out, wanted, rtol=0, atol=tolerance)
    grads = [torch.autograd.grad(out.sum(), (q, k, v)) for out in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2 * tolerance)


def test_half_precision_inputs_keep_their_type_with_dropout():
    (q, k, v), mask = case(dtype=torch.bfloat16)
    out = A.attention(q, k, v, mask, 0.5)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_dropout_follows_the_global_generator():
    (q, k, v), mask = case()
    torch.manual_seed(5)
    first, state, second = A.attention(q, k, v, mask, 0.5), torch.get_rng_state(), A.attention(q, k, v, mask, 0.5)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(A.attention(q, k, v, mask, 0.5), second)
    torch.manual_seed(5)
    assert torch.equal(A.attention(q, k, v, mask, 0.5), first)


@pytest.mark.parametrize("p", [0.0, 0.001, 0.15, 0.5, 0.999])
def test_keep_bytes_have_the_stated_share(p):
    torch.manual_seed(0)
    keep = A.keep_bytes((4_000_003,), p)  # not a multiple of four, and several chunks
    assert keep.dtype == torch.uint8
    assert set(keep.unique().tolist()) <= {0, 1}
    assert keep.float().mean().item() == pytest.approx(A.kept_share(p), abs=4 * 0.5 / 2000)
    assert A.kept_share(p) == pytest.approx(1 - p, abs=2**-17)


def test_mean_under_dropout_is_unbiased():
    torch.manual_seed(0)
    (q, k, v), mask = case(samples=1)
    big = [t.detach().expand(4000, -1, -1, -1) for t in (q, k, v)]
    found = A.attention(*big, mask[:1].expand(4000, -1), 0.4).mean(0)
    torch.testing.assert_close(found, formula(q, k, v, mask[:1], None, 1.0)[0], rtol=0, atol=0.1)


def test_padded_keys_change_nothing():
    (q, k, v), mask = case()
    other = [torch.where(mask[:, None, :, None], t, torch.randn_like(t) * 100) for t in (k, v)]
    for p in (0.0, 0.3):
        torch.manual_seed(3)
        one = A.attention(q, k, v, mask, p)
        torch.manual_seed(3)
        assert torch.equal(one, A.attention(q, *other, mask, p))


def test_under_functorch(monkeypatch):
    """`grad` takes the chunked form, `vmap` the plain one, at any depth."""
    (q, k, v), mask = case()
    q, k, v = (t.detach() for t in (q, k, v))
    monkeypatch.setattr(A, "LONG", 1)

    def loss(q):
        return A.attention(q, k, v, mask).square().sum()

    wanted = torch.autograd.grad(formula(q.requires_grad_(), k, v, mask, None, 1.0).square().sum(), q)[0]
    q = q.detach()
    torch.testing.assert_close(torch.func.grad(loss)(q), wanted)
    stacked = torch.stack([q, 2 * q])
    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    torch.testing.assert_close(found[0], wanted)
    dropped = torch.func.vmap(lambda q: A.attention(q, k, v, mask, 0.5), randomness="different")(torch.stack([q, q]))
    assert not torch.equal(dropped[0], dropped[1])
