"""Attention: every form against the formula, with the same dropout, in values, gradients and types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tune_mm.models import _attention
from tune_mm.models._dropout import keep_bytes, kept_share

SAMPLES, HEADS, KEYS, CHANNELS = 3, 2, 6, 4


Three = tuple[Tensor, Tensor, Tensor]


def case(queries=KEYS, dtype=torch.float64, masked=True) -> tuple[Three, Any]:
    torch.manual_seed(1)
    q, k, v = (
        torch.randn(SAMPLES * HEADS, n, CHANNELS, dtype=dtype) for n in (queries, KEYS, KEYS)
    )
    mask = torch.rand(SAMPLES, KEYS) < 0.6
    mask[:, 0] = True
    return (q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), mask if masked else None


def formula(
    qkv: Three, mask: Tensor | None, keep: Tensor | None = None, share: float = 1.0
) -> Tensor:
    q, k, v = qkv
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.repeat_interleave(HEADS, 0)[:, None, :], float("-inf"))
    weights = scores.softmax(-1)
    return (weights if keep is None else weights * keep / share) @ v


def attend(qkv: Three, mask: Tensor | None, p: float = 0.0) -> Tensor:
    return _attention.attention(qkv, _attention.bias_of(mask, HEADS, qkv[0].dtype), p, HEADS)


def assert_same(found, wanted, tensors, tolerance=1e-14):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    seed = torch.randn_like(wanted)
    for a, b in zip(
        *(torch.autograd.grad(out, tensors, seed, retain_graph=True) for out in (found, wanted)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=2 * tolerance)


@pytest.fixture
def long(monkeypatch):
    """Every sequence counts as long: the chunked form is used."""
    monkeypatch.setattr(_attention, "LONG", 1)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, KEYS])
@pytest.mark.parametrize("chunk", [1, 150, 1 << 20])
def test_chunks_equal_the_formula(monkeypatch, dropped, masked, queries, chunk):
    tensors, mask = case(queries, masked=masked)
    keep = keep_bytes((SAMPLES * HEADS, queries, KEYS), 0.3) if dropped else None
    share = kept_share(0.3) if dropped else 1.0
    monkeypatch.setattr(_attention, "CHUNK", chunk)
    found = _attention.ChunkedAttention.apply(
        *tensors, _attention.bias_of(mask, HEADS, torch.float64), keep, share, HEADS
    )
    assert_same(found, formula(tensors, mask, keep, share), tensors)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked):
    tensors, mask = case(masked=masked)
    keep, bias = (
        keep_bytes((SAMPLES * HEADS, KEYS, KEYS), 0.3),
        _attention.bias_of(mask, HEADS, torch.float64),
    )
    assert torch.autograd.gradcheck(
        lambda *t: _attention.ChunkedAttention.apply(*t, bias, keep, kept_share(0.3), HEADS),
        tensors,
    )


@pytest.mark.parametrize("form", ["short", "long"])
@pytest.mark.parametrize("masked", [False, True])
def test_dropout_equals_the_formula(monkeypatch, form, masked):
    """Both forms draw one mask of the scores' shape from the global generator."""
    monkeypatch.setattr(_attention, "LONG", 1 if form == "long" else 1 << 30)
    tensors, mask = case(masked=masked)
    torch.manual_seed(3)
    keep = keep_bytes((SAMPLES * HEADS, KEYS, KEYS), 0.3)
    torch.manual_seed(3)
    assert_same(attend(tensors, mask, 0.3), formula(tensors, mask, keep, kept_share(0.3)), tensors)


PRECISIONS = [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 3e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_without_dropout_equals_sdpa(monkeypatch, dtype, tolerance, masked):
    tensors, mask = case(dtype=dtype, masked=masked)
    q, k, v = (t.view(SAMPLES, HEADS, -1, CHANNELS) for t in tensors)
    allowed = None if mask is None else mask[:, None, None, :]
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).flatten(0, 1)
    short = attend(tensors, mask)
    monkeypatch.setattr(_attention, "LONG", 1)
    chunked = attend(tensors, mask)
    assert "ChunkedAttention" in type(chunked.grad_fn).__name__
    plain = _attention.plain_attention(*tensors, bias=_attention.bias_of(mask, HEADS, dtype), p=0.0)
    for found in (short, chunked, plain):
        assert found.dtype == dtype
        assert_same(found, wanted, tensors, tolerance)


@pytest.mark.parametrize("form", ["short", "long"])
def test_half_precision_keeps_its_type_with_dropout(monkeypatch, form):
    monkeypatch.setattr(_attention, "LONG", 1 if form == "long" else 1 << 30)
    tensors, mask = case(dtype=torch.bfloat16)
    out = attend(tensors, mask, 0.5)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(out.sum(), tensors))


def test_dropout_follows_the_global_generator(long):
    tensors, mask = case()
    torch.manual_seed(5)
    first, state, second = (
        attend(tensors, mask, 0.5),
        torch.get_rng_state(),
        attend(tensors, mask, 0.5),
    )
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(attend(tensors, mask, 0.5), second)
    torch.manual_seed(5)
    assert torch.equal(attend(tensors, mask, 0.5), first)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("form", ["short", "long"])
def test_padded_keys_change_nothing(monkeypatch, form, p):
    monkeypatch.setattr(_attention, "LONG", 1 if form == "long" else 1 << 30)
    (q, k, v), mask = case()
    real = mask.repeat_interleave(HEADS, 0)[..., None]
    k2, v2 = (torch.where(real, t, torch.randn_like(t) * 100) for t in (k, v))
    outs = []
    for tensors in ((q, k, v), (q, k2, v2)):
        torch.manual_seed(3)
        outs.append(attend(tensors, mask, p))
    assert torch.equal(*outs)


def test_fold_and_unfold():
    x = torch.arange(2.0 * 3 * 8).view(2, 3, 8)
    (folded,) = _attention.fold(x, 1, HEADS)
    assert folded.shape == (4, 3, 4)
    assert torch.equal(folded[1], x[0, :, 4:])
    assert torch.equal(_attention.unfold(folded, HEADS), x)
    q, k = _attention.fold(torch.cat([x, -x], 2), 2, HEADS)
    assert torch.equal(_attention.unfold(q, HEADS), x)
    assert torch.equal(_attention.unfold(k, HEADS), -x)


def test_under_functorch(long):
    """`grad` takes the chunked form, `vmap` the plain one, at any depth."""
    (q, k, v), mask = case()
    wanted = torch.autograd.grad(formula((q, k, v), mask).square().sum(), q)[0]
    q, k, v = (t.detach() for t in (q, k, v))

    def loss(q):
        return attend((q, k, v), mask).square().sum()

    torch.testing.assert_close(torch.func.grad(loss)(q), wanted)
    found = torch.func.vmap(torch.func.grad(loss))(torch.stack([q, 2 * q]))
    torch.testing.assert_close(found[0], wanted)
    twice = torch.stack([q, q])
    dropped = torch.func.vmap(lambda q: attend((q, k, v), mask, 0.5), randomness="different")(twice)
    assert not torch.equal(dropped[0], dropped[1])
