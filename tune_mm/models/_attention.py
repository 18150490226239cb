"""Multi-head attention for every device, with a chunked form for the CPU.

On the CPU `scaled_dot_product_attention` leaves its fast path as soon as dropout is on (and is a slow loop under vmap).
The chunked form computes the scores of a few samples at a time, keeps nothing but a byte per score for the dropout, and
computes the scores again in the backward pass. It writes channels before time steps (`v^T P^T` instead of `P v`): the
product of a large and a very thin matrix is three times faster that way round. At 64x5x350x350 on two cores, forward
and backward take 0.13 s with dropout (torch: 0.62 s) and 0.07 s without (0.10 s), hence its use for long sequences too.

Shape legend: B batch, H heads, Q queries, K keys, E channels of a head; N = B * H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd.function import once_differentiable

# Scores computed at once: 4 MiB of float32 stay in the cache, and the threads still have enough to share.
CHUNK = 1 << 20
LEVELS = 1 << 16
# Scores per head from which the chunked form is the faster one even without dropout.
LONG = 128 * 128


def vmapped() -> bool:
    """Whether this code runs under `torch.func.vmap` (at any depth)."""
    stack = functorch.get_interpreter_stack()
    return stack is not None and any(level.key() == functorch.TransformType.Vmap for level in stack)


def kept_share(p: float) -> float:
    """The probability with which `keep_bytes` keeps an element: 1 - p to the nearest 2^-16."""
    return 1.0 - round(p * LEVELS) / LEVELS


def keep_bytes(shape: tuple[int, ...], p: float) -> Tensor:
    """A uint8 mask of `shape` on the CPU, 0 with probability p and else 1, from torch's global generator.

    Sixteen random bits decide on an element (`bernoulli_` takes 3 to 8 times as long), so p is rounded to a multiple of
    2^-16: divide by `kept_share(p)` to keep the mean exact.
    """
    size = math.prod(shape)
    mask = torch.empty(size, dtype=torch.bool)
    threshold = round(p * LEVELS) - LEVELS // 2
    for start in range(0, size, CHUNK):
        part = mask[start : start + CHUNK]
        words = torch.empty((len(part) + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        torch.ge(words.view(torch.int16)[: len(part)], threshold, out=part)
    return mask.view(torch.uint8).view(shape)


def attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(E)) v: q [B, H, Q, E], k and v [B, H, K, E] -> [B, H, Q, E].

    keys: bool [B, K], True where a key may be attended to (at least one per sample); None: all may. p: the probability
    with which a weight is dropped (0 in evaluation).
    """
    cpu, shape = q.device.type == "cpu", (*q.shape[:3], k.shape[2])
    if cpu and vmapped():
        return plain_attention(q, k, v, keys, p)
    if cpu and (p > 0 or math.prod(shape[2:]) >= LONG):
        keep = keep_bytes(shape, p) if p > 0 else None
        out: Tensor = ChunkedAttention.apply(q, k, v, bias_of(keys, q), keep, kept_share(p))
        return out
    mask = None if keys is None else keys[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


def bias_of(keys: Tensor | None, like: Tensor) -> Tensor | None:
    """What to add to the scores: [B, 1, 1, K] with 0 where `keys` is True and -inf where it is False."""
    if keys is None:
        return None
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(keys, zero, -math.inf)[:, None, None, :]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, p: float) -> Tensor:
    """The formula as it is written; what works under vmap."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    bias = bias_of(keys, scores)
    weights = torch.softmax(scores if bias is None else scores + bias, -1)
    return F.dropout(weights, p) @ v if p > 0 else weights @ v


class ChunkedAttention(torch.autograd.Function):
    """Attention with given dropout bytes [B, H, Q, K] (None: no dropout), a few samples at a time.

    bias: [B, 1, 1, K] added to the scores, or None. share: the expected share of ones in `keep`. Half precision is
    computed in float32. The gradient itself is not differentiable.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None, share: float) -> Tensor:
        work = _Chunks(q, k, v, bias, keep, share)
        out = work.empty(q)
        for part in work.parts():
            weights = work.weights(part)
            if work.keep is not None:
                weights.mul_(work.keep[part])
            torch.bmm(work.v[part].transpose(1, 2), weights.transpose(1, 2), out=out[part])
        return _unfold(out, q)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.share = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, keep = ctx.saved_tensors
        work = _Chunks(q, k, v, bias, keep, ctx.share)
        grad = work.fold(grad)
        dq, dk, dv = work.empty(q), work.empty(k), work.empty(v)
        for part in work.parts():
            weights, g = work.weights(part), grad[part]
            d = torch.bmm(g, work.v[part].transpose(1, 2), out=work.buffer(1, part))
            kept = weights
            if work.keep is not None:
                d.mul_(work.keep[part])
                kept = torch.mul(weights, work.keep[part], out=work.buffer(2, part))
            torch.bmm(g.transpose(1, 2), kept, out=dv[part])
            d = torch._softmax_backward_data(d, weights, -1, d.dtype)
            torch.bmm(work.k[part].transpose(1, 2), d.transpose(1, 2), out=dq[part])
            torch.bmm(work.q[part].transpose(1, 2), d, out=dk[part])
        dq.mul_(work.scale)
        dv.mul_(1 / work.share)
        return _unfold(dq, q), _unfold(dk, k), _unfold(dv, v), None, None, None


class _Chunks:
    """Queries (scaled), keys and values (divided by the kept share) as [N, T, E], and reusable buffers for scores."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None, share: float) -> None:
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.scale, self.share = 1 / math.sqrt(q.shape[-1]), share
        self.q, self.k, self.v = self.fold(q) * self.scale, self.fold(k), self.fold(v) / share
        self.n, heads = len(self.q), q.shape[1]
        self.shape = (q.shape[2], k.shape[2])
        self.bias = None if bias is None else bias.to(self.dtype).expand(-1, heads, 1, -1).reshape(self.n, 1, -1)
        self.keep = None if keep is None else keep.view(self.n, *self.shape)
        self.step = max(1, CHUNK // (heads * math.prod(self.shape))) * heads
        self.buffers: dict[int, Tensor] = {}

    def fold(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).reshape(-1, *x.shape[2:])

    def empty(self, like: Tensor) -> Tensor:
        """[N, E, T] for what `_unfold` turns into the shape of `like`."""
        return torch.empty(self.n, like.shape[3], like.shape[2], dtype=self.dtype)

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


def _unfold(x: Tensor, like: Tensor) -> Tensor:
    """[N, E, T] -> [B, H, T, E], in the dtype of `like`."""
    return x.view(*like.shape[:2], like.shape[3], like.shape[2]).transpose(2, 3).to(like.dtype)
