"""Multi-head attention: torch's `scaled_dot_product_attention`, and two forms of it for the CPU.

On the CPU that function leaves its fast path as soon as dropout is on, is a slow loop under vmap,
and is slower than the formula written out for short sequences. There, short sequences take the
formula and long ones the chunked form: scores of a few samples at a time, nothing kept but a byte
per score for the dropout, scores computed again in the backward pass. It writes channels before
time steps (`v^T P^T` instead of `P v`): the product of a large and a very thin matrix is three
times faster that way round. At 64x5x350x350 on two cores, forward and backward take 0.12 s with
dropout (torch: 0.62 s) and 0.07 s without (0.10 s).

Shape legend: B batch, H heads, N = B * H, Q queries, K keys, E channels of a head, W = H * E.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tune_mm.core.torch_internals import softmax_backward, vmapped
from tune_mm.models._dropout import dropout, keep_bytes, kept_share

# Scores computed at once: 4 MiB of float32 stay in the cache, and the threads still have enough to
# share.
CHUNK = 1 << 20
# Scores per head from which the chunked form is used.
LONG = 64 * 64
# torch's softmax over fewer numbers than a vector register holds is scalar code, ten times as slow.
NARROW = 16


def fold(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, T, parts * W] -> `parts` tensors [N, T, E]."""
    b, t, _ = x.shape
    return (
        x.view(b, t, parts, heads, -1)
        .permute(2, 0, 3, 1, 4)
        .reshape(parts, b * heads, t, -1)
        .unbind(0)
    )


def unfold(x: Tensor, heads: int) -> Tensor:
    """[N, T, E] -> [B, T, W]."""
    n, t, e = x.shape
    return x.view(n // heads, heads, t, e).transpose(1, 2).reshape(n // heads, t, heads * e)


def bias_of(keys: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores, [N, 1, K]: 0 where `keys` [B, K] is True, -inf where it is False;
    None for None.
    """
    if keys is None:
        return None
    bias = torch.where(keys, torch.zeros((), dtype=dtype, device=keys.device), -math.inf)
    return bias[:, None, :].expand(-1, heads, -1).reshape(-1, 1, keys.shape[1])


def attention(
    qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, p: float, heads: int
) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v: q [N, Q, E], k and v [N, K, E] -> [N, Q, E].

    bias: from `bias_of`; every sample has a key that is not masked. p: the probability with which a
    weight is dropped (0 in evaluation).
    """
    q, k, v = qkv
    bias = None if bias is None else bias.to(q.dtype)
    shape = (len(q), q.shape[1], k.shape[1])
    if q.device.type != "cpu":
        q, k, v = (t.view(-1, heads, *t.shape[1:]) for t in qkv)
        if bias is None:
            mask = None
        else:
            mask = bias.view(-1, heads, 1, shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p).flatten(0, 1)
    if vmapped() or math.prod(shape[1:]) < LONG:
        return plain_attention(q, k, v, bias, p)
    keep = keep_bytes(shape, p) if p > 0 else None
    out: Tensor = ChunkedAttention.apply(q, k, v, bias, keep, kept_share(p), heads)
    return out


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float) -> Tensor:
    """The formula as it is written."""
    scores = torch.bmm(q * (1 / math.sqrt(q.shape[-1])), k.transpose(1, 2))
    scores = scores if bias is None else scores + bias
    if k.shape[1] < NARROW:
        weights = torch.softmax(scores.permute(2, 0, 1), 0).permute(1, 2, 0)
    else:
        weights = torch.softmax(scores, -1)
    return torch.bmm(dropout(weights, p), v)


class ChunkedAttention(torch.autograd.Function):
    """Attention with given dropout bytes [N, Q, K] (None: no dropout), a few samples at a time.

    share: the expected share of ones in `keep`. Half precision is computed in float32. The gradient
    itself is not differentiable.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        share: float,
        heads: int,
    ) -> Tensor:
        work = _Chunks(q, k, v, bias, keep, share, heads)
        out = work.empty(q)
        for part in work.parts():
            weights = work.weights(part)
            if keep is not None:
                weights.mul_(keep[part])
            torch.bmm(work.v[part].transpose(1, 2), weights.transpose(1, 2), out=out[part])
        return out.transpose(1, 2).to(q.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.share, ctx.heads = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, keep = ctx.saved_tensors
        work = _Chunks(q, k, v, bias, keep, ctx.share, ctx.heads)
        grad = grad.to(work.dtype)
        dq = work.empty(q)
        dk = work.empty(k)
        dv = work.empty(v)
        for part in work.parts():
            weights = work.weights(part)
            g = grad[part]
            d = torch.bmm(g, work.v[part].transpose(1, 2), out=work.buffer(1, part))
            kept = weights
            if keep is not None:
                d.mul_(keep[part])
                kept = torch.mul(weights, keep[part], out=work.buffer(2, part))
            torch.bmm(g.transpose(1, 2), kept, out=dv[part])
            d = softmax_backward(d, weights, -1)
            torch.bmm(work.k[part].transpose(1, 2), d.transpose(1, 2), out=dq[part])
            torch.bmm(work.q[part].transpose(1, 2), d, out=dk[part])
        dq.mul_(work.scale)
        dv.mul_(1 / ctx.share)
        grads = (d.transpose(1, 2).to(q.dtype) for d in (dq, dk, dv))
        return *grads, None, None, None, None


class _Chunks:
    """Queries (scaled), keys and values (divided by the kept share), and reusable buffers for
    scores.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        share: float,
        heads: int,
    ) -> None:
        if q.dtype == torch.float64:
            self.dtype = torch.float64
        else:
            self.dtype = torch.float32
        self.scale = 1 / math.sqrt(q.shape[-1])
        self.bias = bias
        self.q, self.k, self.v = (
            q.to(self.dtype) * self.scale,
            k.to(self.dtype),
            v.to(self.dtype) / share,
        )
        self.n = len(q)
        self.shape = (q.shape[1], k.shape[1])
        self.step = max(1, CHUNK // (heads * math.prod(self.shape))) * heads
        self.buffers: dict[int, Tensor] = {}

    def empty(self, like: Tensor) -> Tensor:
        """[N, E, T] for a result whose transpose has the shape of `like`."""
        return torch.empty(len(like), like.shape[2], like.shape[1], dtype=self.dtype)

    def parts(self) -> Iterator[slice]:
        return (slice(i, min(i + self.step, self.n)) for i in range(0, self.n, self.step))

    def buffer(self, index: int, part: slice) -> Tensor:
        if index not in self.buffers:
            self.buffers[index] = torch.empty(min(self.step, self.n), *self.shape, dtype=self.dtype)
        return self.buffers[index][: part.stop - part.start]

    def weights(self, part: slice) -> Tensor:
        """softmax of the scores [n, Q, K] of a part, in buffer 0."""
        scores = torch.bmm(self.q[part], self.k[part].transpose(1, 2), out=self.buffer(0, part))
        if self.bias is not None:
            scores.add_(self.bias[part])
        return torch.softmax(scores, -1, out=scores)
