"""Pre-norm transformer layers, shared by encoders, fusion and classifiers.

What is read from a transformer here is either the whole sequence or position 0 alone. In the second
case the last layer computes one query, one residual branch and one feed-forward row per sample:
exact, because no other position of the last layer is ever read.

Shape legend: B batch, T time steps, W width.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.core.torch_internals import transformed
from tune_mm.models._attention import attention, bias_of, fold, unfold
from tune_mm.models._dropout import add_dropped, dropout, relu_dropout


class Dropouts(NamedTuple):
    """Dropout probabilities of a transformer, each in [0, 1)."""

    # Of attention weights.
    attention: float = 0.0
    # After the ReLU of the feed-forward block.
    relu: float = 0.0
    # Of embeddings with their positions.
    embed: float = 0.0
    # Of both residual branches of a layer.
    residual: float = 0.0


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """[length, width] position encodings: sines in the first half of the channels, cosines in the
    second.

    Frequencies fall geometrically from 1 to 1e-4, as in Attention Is All You Need in fairseq's
    arrangement.
    """
    if transformed():
        return _sinusoids(length, width, like.dtype, like.device)
    return _cached(length, width, like.dtype, like.device)


def _sinusoids(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    half = (width + 1) // 2
    decay = -math.log(1e4) / max(half - 1, 1)
    rates = torch.exp(torch.arange(half, device=device) * decay)
    angles = torch.arange(length, device=device)[:, None] * rates
    table = torch.cat([angles.sin(), angles.cos()], 1)
    return table[:, :width].to(dtype)


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


class Layer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)): [B, T, W] -> [B, T, W], or [B, 1, W] with
    `first`.
    """

    def __init__(self, width: int, heads: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.heads = heads
        self.dropouts = dropouts
        self.norm_attention = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width)

    def forward(self, x: Tensor, bias: Tensor | None, first: bool = False) -> Tensor:
        """bias: what to add to the scores (`bias_of`). first: only position 0 is computed."""
        p = self.dropouts if self.training else Dropouts()
        qkv = self._project(self.norm_attention(x), first)
        mixed = attention(qkv, bias, p.attention, self.heads)
        branch = self.out(unfold(mixed, self.heads))
        if first:
            x = x[:, :1]
        x = add_dropped(x, branch, p.residual)

        inner = relu_dropout(self.up(self.norm_ffn(x)), p.relu)
        return add_dropped(x, self.down(inner), p.residual)

    def _project(self, x: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B * heads, T, W / heads] each (one query with `first`)."""
        if not first:
            q, k, v = fold(self.qkv(x), 3, self.heads)
            return q, k, v
        width = x.shape[-1]
        weight = self.qkv.weight
        bias = self.qkv.bias
        query = functional.linear(x[:, :1], weight[:width], bias[:width])
        keys_values = functional.linear(x, weight[width:], bias[width:])
        (q,) = fold(query, 1, self.heads)
        k, v = fold(keys_values, 2, self.heads)
        return q, k, v


class Transformer(nn.Module):
    """Embedding scale, positions and dropout, `layers` layers and a final LayerNorm.

    Raises ValueError when `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, layers: int, dropouts: Dropouts) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width, but got heads={heads}, width={width}")
        self.width = width
        self.heads = heads
        self.dropouts = dropouts
        self.layers = nn.ModuleList(Layer(width, heads, dropouts) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, T, W] -> [B, T, W]. keys: bool [B, T], True where a step may be attended to; None:
        everywhere.
        """
        bias = bias_of(keys, self.heads, x.dtype)
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, bias)
        return self._norm(x)

    def first(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, T, W] -> [B, W], equal to `forward(x, keys)[:, 0]`."""
        return self.first_of_embedded(self.embed(x), keys)

    def first_of_embedded(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """`first` of steps that have their positions already."""
        bias = bias_of(keys, self.heads, x.dtype)
        *body, last = self.layers
        for layer in body:
            x = layer(x, bias)
        return self._norm(last(x, bias, first=True))[:, 0]

    def embed(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """sqrt(W) x + positions [.., T, W] (by default those of 0 .. T-1), with dropout."""
        if positions is None:
            positions = sinusoids(x.shape[1], self.width, x)
        embedded = torch.add(positions, x, alpha=math.sqrt(self.width))
        return dropout(embedded, self.dropouts.embed if self.training else 0.0)

    def _norm(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out
