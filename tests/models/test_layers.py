"""Layers: byte dropout, and position 0 alone against the full computation."""

from __future__ import annotations

import pytest
import torch

from tune_mm.models import _layers
from tune_mm.models._attention import bias_of

DROPOUTS = _layers.Dropouts(0.3, 0.2, 0.1, 0.4)


def transformer(layers=2, dropouts=DROPOUTS, width=10):
    torch.manual_seed(0)
    body = _layers.Transformer(width, 2, layers, dropouts).double()
    for p in body.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return body


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_first_equals_position_0_of_the_full_computation(layers, masked):
    body = transformer(layers).eval()
    x = torch.randn(4, 7, 10, dtype=torch.float64)
    keys = torch.arange(7) < torch.tensor([[1], [3], [7], [5]]) if masked else None
    full, first = body(x, keys)[:, 0], body.first(x, keys)
    torch.testing.assert_close(first, full, rtol=0, atol=1e-13)
    seed = torch.randn_like(full)
    params = list(body.parameters())
    for a, b in zip(
        *(torch.autograd.grad(out, params, seed) for out in (first, full)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_layer_equals_torch_s_own():
    """torch's pre-norm encoder layer with the same numbers gives the same result."""
    layer = transformer(1).layers[0].eval()
    other = (
        torch.nn.TransformerEncoderLayer(10, 2, 40, 0.0, norm_first=True, batch_first=True)
        .double()
        .eval()
    )
    names = {
        "self_attn.in_proj_weight": "qkv.weight",
        "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight",
        "self_attn.out_proj.bias": "out.bias",
        "linear1.weight": "up.weight",
        "linear1.bias": "up.bias",
        "linear2.weight": "down.weight",
        "linear2.bias": "down.bias",
        "norm1.weight": "norm_attention.weight",
        "norm1.bias": "norm_attention.bias",
        "norm2.weight": "norm_ffn.weight",
        "norm2.bias": "norm_ffn.bias",
    }
    state = layer.state_dict()
    other.load_state_dict({theirs: state[ours] for theirs, ours in names.items()})
    x, keys = (
        torch.randn(3, 5, 10, dtype=torch.float64),
        torch.arange(5) < torch.tensor([[2], [5], [4]]),
    )
    torch.testing.assert_close(
        layer(x, bias_of(keys, 2, x.dtype))[keys],
        other(x, src_key_padding_mask=~keys)[keys],
        rtol=0,
        atol=1e-12,
    )


def test_no_dropout_in_evaluation():
    body = transformer().eval()
    x = torch.randn(2, 4, 10, dtype=torch.float64)
    assert torch.equal(body(x), body(x))
    body.train()
    assert not torch.equal(body(x), body(x))


def test_every_dropout_acts():
    """Each of the four probabilities alone changes the result of training mode."""
    x = torch.randn(2, 4, 10, dtype=torch.float64)
    for i in range(4):
        body = transformer(1, _layers.Dropouts(*[0.5 if j == i else 0.0 for j in range(4)]))
        still = transformer(1, _layers.Dropouts())
        assert not torch.allclose(body(x), still(x)), _layers.Dropouts._fields[i]


def test_sinusoids():
    table = _layers.sinusoids(5, 6, torch.zeros(1, dtype=torch.float64))
    rates = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)
    angles = torch.arange(5, dtype=torch.float64)[:, None] * rates
    torch.testing.assert_close(table, torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=1e-6)
    assert _layers.sinusoids(3, 5, torch.zeros(1)).shape == (3, 5)
    assert _layers.sinusoids(3, 1, torch.zeros(1)).shape == (3, 1)


def test_positions_made_in_inference_mode_serve_training():
    body = transformer(1, width=14).train()
    x = torch.randn(2, 9, 14, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        body(x.detach())
    body(x).sum().backward()
    assert x.grad is not None


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=3, width=10"):
        _layers.Transformer(10, 3, 1, _layers.Dropouts())


def test_bfloat16_autocast_trains():
    body = _layers.Transformer(10, 2, 2, DROPOUTS)
    x, keys = torch.randn(3, 6, 10), torch.arange(6) < torch.tensor([[2], [6], [4]])
    with torch.autocast("cpu", torch.bfloat16):
        out = body.first(x, keys)
    grads = torch.autograd.grad(out.float().sum(), list(body.parameters()))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
