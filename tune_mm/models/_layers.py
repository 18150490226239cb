"""Pre-norm transformer layers, shared by encoders, fusion and classifiers.

What is read from a transformer here is either the whole sequence or position 0 alone. In the second case the last
layer computes one query, one residual branch and one feed-forward row per sample: exact, because no other position of
the last layer is ever read.

Shape legend: B batch, T time steps, W width.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.autograd.function import once_differentiable

from tune_mm.models._attention import attention, keep_bytes, kept_share, vmapped


class Dropouts(NamedTuple):
    """Dropout probabilities: attention weights, after the feed-forward ReLU, embeddings, both residual branches."""

    attention: float = 0.0
    relu: float = 0.0
    embed: float = 0.0
    residual: float = 0.0


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """[length, width] position encodings: sines in the first half of the channels, cosines in the second.

    Frequencies fall geometrically from 1 to 1e-4, as in Attention Is All You Need in fairseq's arrangement.
    """
    if functorch.peek_interpreter_stack() is not None:
        return _sinusoids(length, width, like.dtype, like.device)
    return _cached(length, width, like.dtype, like.device)


def _sinusoids(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(1e4) / max(half - 1, 1)))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :width].to(dtype)


@lru_cache(maxsize=64)
def _cached(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # An inference tensor in the cache could not take part in a later training step.
    with torch.inference_mode(False):
        return _sinusoids(length, width, dtype, device)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _bytes_fit(x: Tensor) -> bool:
    """Whether dropout with a byte per element serves `x`: on the CPU it is several times as fast as torch's."""
    return x.device.type == "cpu" and not vmapped()


def add_dropped(x: Tensor, branch: Tensor, p: float) -> Tensor:
    """x + dropout(branch); p = 0 in evaluation."""
    if p == 0:
        return x + branch
    if not _bytes_fit(x):
        return x + F.dropout(branch, p)
    keep = keep_bytes(tuple(branch.shape), p).to(branch.dtype)
    return torch.addcmul(x, branch, keep, value=1 / kept_share(p))


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with probability p (0 in evaluation)."""
    if p == 0:
        return x
    if not _bytes_fit(x):
        return F.dropout(x, p)
    return x * keep_bytes(tuple(x.shape), p).to(x.dtype).div_(kept_share(p))


def relu_dropout(x: Tensor, p: float) -> Tensor:
    """dropout(relu(x)); p = 0 in evaluation."""
    if p == 0 or not _bytes_fit(x):
        return F.dropout(F.relu(x), p) if p > 0 else F.relu(x)
    out: Tensor = _ReluDropout.apply(x, p)
    return out


class _ReluDropout(torch.autograd.Function):
    """ReLU and dropout in one: the output is positive exactly where both let a value pass, so no mask is stored."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, p: float) -> Tensor:
        out = x.clamp(min=0)
        return out.mul_(keep_bytes(tuple(x.shape), p)).mul_(1 / kept_share(p))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.share = kept_share(inputs[1])
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(1 / ctx.share), None


class Layer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)): [B, T, W] -> [B, T, W], or [B, 1, W] with `first`."""

    def __init__(self, width: int, heads: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.heads, self.dropouts = heads, dropouts
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: Tensor, keys: Tensor | None, first: bool = False) -> Tensor:
        """keys: bool [B, T], True where a step may be attended to. first: only position 0 is computed."""
        p = self.dropouts if self.training else Dropouts()
        mixed = self._attend(self.norm_attention(x), keys, first, p.attention)
        x = add_dropped(x[:, :1] if first else x, self.out(mixed), p.residual)
        inner = relu_dropout(self.up(self.norm_ffn(x)), p.relu)
        return add_dropped(x, self.down(inner), p.residual)

    def _attend(self, x: Tensor, keys: Tensor | None, first: bool, p: float) -> Tensor:
        """Concatenated heads [B, T, W] (T = 1 with `first`)."""
        if first:
            width = x.shape[-1]
            q = F.linear(x[:, :1], self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, -1)
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        return attention(q, k, v, keys, p).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """Embedding scale, positions and dropout, `layers` layers and a final LayerNorm.

    Raises ValueError when `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, layers: int, dropouts: Dropouts) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width, but got heads={heads}, width={width}")
        self.width, self.dropouts = width, dropouts
        self.layers = nn.ModuleList(Layer(width, heads, dropouts) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, T, W] -> [B, T, W]. keys: bool [B, T], True where a step may be attended to; None: everywhere."""
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, keys)
        return self._norm(x)

    def first(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, T, W] -> [B, W], equal to `forward(x, keys)[:, 0]`."""
        return self.first_of_embedded(self.embed(x), keys)

    def first_of_embedded(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """`first` of steps that have their positions already."""
        *body, last = self.layers
        for layer in body:
            x = layer(x, keys)
        return self._norm(last(x, keys, first=True))[:, 0]

    def embed(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """sqrt(W) x + positions [T, W] (by default those of 0 .. T-1), with dropout."""
        table = sinusoids(x.shape[1], self.width, x) if positions is None else positions
        return dropout(torch.add(table, x, alpha=math.sqrt(self.width)), self.dropouts.embed if self.training else 0.0)

    def _norm(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out
