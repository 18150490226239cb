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
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

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
    batch, steps, _ = x.shape
    apart = x.view(batch, steps, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return apart.reshape(parts, batch * heads, steps, -1).unbind(0)


def unfold(x: Tensor, heads: int) -> Tensor:
    """[N, T, E] -> [B, T, W]."""
    folded, steps, channels = x.shape
    batch = folded // heads
    apart = x.view(batch, heads, steps, channels).transpose(1, 2)
    return apart.reshape(batch, steps, heads * channels)


def bias_of(keys: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores, [N, 1, K]: 0 where `keys` [B, K] is True, -inf where it is False;
    None for None.
    """
    if keys is None:
        return None
    zero = torch.zeros((), dtype=dtype, device=keys.device)
    bias = torch.where(keys, zero, -math.inf)
    per_head = bias[:, None, :].expand(-1, heads, -1)
    return per_head.reshape(-1, 1, keys.shape[1])


def attention(
    qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, p: float, heads: int
) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v: q [N, Q, E], k and v [N, K, E] -> [N, Q, E].

    bias: from `bias_of`; every sample has a key that is not masked. p: the probability with which a
    weight is dropped (0 in evaluation).
    """
    q, k, v = qkv
    if bias is not None:
        bias = bias.to(q.dtype)
    if q.device.type != "cpu":
        return _torch_attention(qkv, bias, p, heads)

    queries = q.shape[1]
    keys = k.shape[1]
    if vmapped() or queries * keys < LONG:
        return plain_attention(q, k, v, bias, p)

    if p > 0:
        keep = keep_bytes((len(q), queries, keys), p)
    else:
        keep = None
    out: Tensor = ChunkedAttention.apply(q, k, v, bias, keep, kept_share(p), heads)
    return out


def _torch_attention(
    qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, p: float, heads: int
) -> Tensor:
    """torch's own, which wants the heads apart: [B, H, T, E]."""
    q, k, v = (part.view(-1, heads, *part.shape[1:]) for part in qkv)
    mask = None
    if bias is not None:
        mask = bias.view(-1, heads, 1, k.shape[2])
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    return out.flatten(0, 1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float) -> Tensor:
    """The formula as it is written."""
    scale = 1 / math.sqrt(q.shape[-1])
    scores = torch.bmm(q * scale, k.transpose(1, 2))
    if bias is not None:
        scores = scores + bias
    if k.shape[1] < NARROW:
        keys_first = scores.permute(2, 0, 1)
        weights = torch.softmax(keys_first, 0).permute(1, 2, 0)
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
            values = work.v[part].transpose(1, 2)
            torch.bmm(values, weights.transpose(1, 2), out=out[part])
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
        grad_q = work.empty(q)
        grad_k = work.empty(k)
        grad_v = work.empty(v)
        for part in work.parts():
            weights = work.weights(part)
            grad_out = grad[part]

            # out = (keep * weights) v
            values = work.v[part].transpose(1, 2)
            grad_weights = torch.bmm(grad_out, values, out=work.buffer(1, part))
            kept = weights
            if keep is not None:
                grad_weights.mul_(keep[part])
                kept = torch.mul(weights, keep[part], out=work.buffer(2, part))
            torch.bmm(grad_out.transpose(1, 2), kept, out=grad_v[part])

            # weights = softmax(q k^T)
            grad_scores = softmax_backward(grad_weights, weights, -1)
            keys = work.k[part].transpose(1, 2)
            queries = work.q[part].transpose(1, 2)
            torch.bmm(keys, grad_scores.transpose(1, 2), out=grad_q[part])
            torch.bmm(queries, grad_scores, out=grad_k[part])
        grad_q.mul_(work.scale)
        grad_v.mul_(1 / ctx.share)
        grads = (found.transpose(1, 2).to(q.dtype) for found in (grad_q, grad_k, grad_v))
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
        self.q = q.to(self.dtype) * self.scale
        self.k = k.to(self.dtype)
        self.v = v.to(self.dtype) / share
        self.n = len(q)
        self.shape = (q.shape[1], k.shape[1])
        scores = heads * math.prod(self.shape)  # of one sample
        self.step = max(1, CHUNK // scores) * heads
        self.buffers: dict[int, Tensor] = {}

    def empty(self, like: Tensor) -> Tensor:
        """[N, E, T] for a result whose transpose has the shape of `like`."""
        count, steps, channels = like.shape
        return torch.empty(count, channels, steps, dtype=self.dtype)

    def parts(self) -> Iterator[slice]:
        """The samples in chunks of `step`."""
        for start in range(0, self.n, self.step):
            end = min(start + self.step, self.n)
            yield slice(start, end)

    def buffer(self, index: int, part: slice) -> Tensor:
        """Memory [n, Q, K] for a part, the same for all parts."""
        if index not in self.buffers:
            largest = min(self.step, self.n)
            self.buffers[index] = torch.empty(largest, *self.shape, dtype=self.dtype)
        count = part.stop - part.start
        return self.buffers[index][:count]

    def weights(self, part: slice) -> Tensor:
        """softmax of the scores [n, Q, K] of a part, in buffer 0."""
        keys = self.k[part].transpose(1, 2)
        scores = torch.bmm(self.q[part], keys, out=self.buffer(0, part))
        if self.bias is not None:
            scores.add_(self.bias[part])
        return torch.softmax(scores, -1, out=scores)
