"""Byte dropout against its formulae, and the share of what it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tune_mm.models import _dropout


def drawn(shape, p, seed=7):
    torch.manual_seed(seed)
    return _dropout.keep_bytes(tuple(shape), p) / _dropout.kept_share(p)


def test_dropouts_equal_their_formulae():
    x, y = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    cases = {
        "dropout": (lambda: _dropout.dropout(x, 0.3), lambda m: x * m),
        "add_dropped": (lambda: _dropout.add_dropped(x, y, 0.3), lambda m: x + y * m),
        "relu_dropout": (lambda: _dropout.relu_dropout(x, 0.3), lambda m: F.relu(x) * m),
    }
    for name, (ours, formula) in cases.items():
        torch.manual_seed(7)
        found, wanted = ours(), formula(drawn(x.shape, 0.3))
        torch.testing.assert_close(found, wanted, msg=name)
        seed = torch.randn_like(wanted)
        a, b = (torch.autograd.grad(t, (x, y), seed, allow_unused=True) for t in (found, wanted))
        for one, two in zip(a, b, strict=True):
            assert (one is None) == (two is None), name
            if one is not None and two is not None:
                torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize("p", [0.0, 0.001, 0.15, 0.5, 0.999])
def test_keep_bytes_have_the_stated_share(p):
    torch.manual_seed(0)
    keep = _dropout.keep_bytes((4_000_003,), p)  # not a multiple of four, and several chunks
    assert keep.dtype == torch.uint8
    assert set(keep.unique().tolist()) <= {0, 1}
    assert keep.float().mean().item() == pytest.approx(_dropout.kept_share(p), abs=4 * 0.5 / 2000)
    assert _dropout.kept_share(p) == pytest.approx(1 - p, abs=2**-17)
