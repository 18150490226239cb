"""Transformer fusion: the modalities' sequences one after the other, read at position 0.

Source: CGGM (NeurIPS 2024), Sec. 4.1 and its public code: positions of its own over the
concatenated sequence, pre-norm layers, position 0 through a residual two-layer block, a linear
head. Position 0 is the first step of the first modality, which is real in every sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features, Padded, UnimodalPath
from tune_mm.models._dropout import relu_dropout
from tune_mm.models._layers import Dropouts, Transformer, linear, sinusoids
from tune_mm.models.base import LateFusion


class TransformerFusionConfig(Section):
    """dropout_output: inside the residual block. padding_mask: keep padded steps out of the
    attention.
    """

    name: Literal["transformer"] = "transformer"
    heads: int = Field(5, ge=1)
    layers: int = Field(2, ge=1)
    dropout_attention: float = Field(0.15, ge=0, lt=1)
    dropout_relu: float = Field(0.15, ge=0, lt=1)
    dropout_embed: float = Field(0.2, ge=0, lt=1)
    dropout_residual: float = Field(0.1, ge=0, lt=1)
    dropout_output: float = Field(0.1, ge=0, lt=1)
    padding_mask: bool = True


class TransformerFusion(LateFusion):
    """Features [B, T_m, W] or [B, W] (one step), all of one width -> hidden [B, W]."""

    Config = TransformerFusionConfig

    def __init__(
        self, config: TransformerFusionConfig, modalities: tuple[str, ...], width: int, outputs: int
    ) -> None:
        super().__init__()
        self.modalities = modalities
        c = config
        dropouts = Dropouts(
            c.dropout_attention, c.dropout_relu, c.dropout_embed, c.dropout_residual
        )
        self.padding_mask = c.padding_mask
        self.dropout_output = c.dropout_output
        self.body = Transformer(width, c.heads, c.layers, dropouts)
        self.inner = linear(width, width)
        self.outer = linear(width, width)
        self.head = linear(width, outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> TransformerFusion:
        """See `LateFusion.build`. Raises ValueError unless all widths are equal and `heads` divides
        them.
        """
        if len(set(widths.values())) != 1:
            raise ValueError(
                f"the transformer fusion takes features of one width, but got widths={dict(widths)}"
            )
        return cls(config, tuple(widths), next(iter(widths.values())), spec.task.outputs)

    def block(self, modality: str) -> slice:
        """All columns: the representation is shared."""
        return slice(0, self.head.in_features)

    def hidden(self, features: Features) -> Tensor:
        steps = [_steps(features[m]) for m in self.modalities]
        if self._masked(steps):
            keys = torch.cat([_keys(f) for f in steps], 1)
        else:
            keys = None
        return self._residual(self.body.first(torch.cat([f.value for f in steps], 1), keys))

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See `LateFusion.unimodal`. All modalities run as one batch where that does not mean much
        padding.
        """
        if path == "zero":
            return self._zeroed(features)
        parts = self._alone(features)
        longest = max(len(positions) for _, positions, _ in parts)
        if longest * len(parts) > 1.5 * sum(len(positions) for _, positions, _ in parts):
            found = []
            for part in parts:
                found.append(self._embedded(self.body.embed(*part[:2]), part[2]))
            return dict(zip(self.modalities, found, strict=True))
        short = [longest - len(positions) for _, positions, _ in parts]
        value, positions, keys = zip(*parts, strict=True)
        stacked = torch.stack([F.pad(v, (0, 0, 0, n)) for v, n in zip(value, short, strict=True)])
        tables = torch.stack(
            [F.pad(p, (0, 0, 0, n)) for p, n in zip(positions, short, strict=True)]
        )
        masks = torch.cat([F.pad(k, (0, n)) for k, n in zip(keys, short, strict=True)])
        out = self._embedded(self.body.embed(stacked, tables[:, None]).flatten(0, 1), masks)
        return dict(zip(self.modalities, out.chunk(len(parts)), strict=True))

    def _embedded(self, x: Tensor, keys: Tensor) -> Tensor:
        return self._residual(self.body.first_of_embedded(x, keys))

    def _zeroed(self, features: Features) -> dict[str, Tensor]:
        """Every modality with zeros in place of the others, stacked along the batch."""
        stacked = {}
        for m, f in features.items():
            zero = torch.zeros_like(f.value)
            value = torch.cat([f.value if m == kept else zero for kept in self.modalities])
            stacked[m] = Padded(
                value, None if f.mask is None else torch.cat([f.mask] * len(features))
            )
        return dict(zip(self.modalities, self.hidden(stacked).chunk(len(features)), strict=True))

    def _alone(self, features: Features) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Steps [B, T, W], their positions [T, W] and keys [B, T] per modality, without the other
        modalities' steps.

        Position 0, which is read, belongs to the first modality. For the others it is a query with
        a zero feature and no key; the positions are those of the full sequence.
        """
        steps = [_steps(features[m]) for m in self.modalities]
        table = sinusoids(sum(f.value.shape[1] for f in steps), self.body.width, steps[0].value)
        parts = []
        start = 0
        for f in steps:
            value, keys = f.value, _keys(f if self.padding_mask else Padded(f.value))
            positions = table[start : start + value.shape[1]]
            if start:
                value = F.pad(value, (0, 0, 1, 0))
                keys = F.pad(keys, (1, 0))
                positions = torch.cat([table[:1], positions])
            parts.append((value, positions, keys))
            start += f.value.shape[1]
        return parts

    def _residual(self, x: Tensor) -> Tensor:
        """x + a two-layer block of it."""
        inner = relu_dropout(self.inner(x), self.dropout_output if self.training else 0.0)
        out: Tensor = x + self.outer(inner)
        return out

    def _masked(self, steps: list[Padded]) -> bool:
        return self.padding_mask and any(f.mask is not None for f in steps)


def _steps(x: Padded) -> Padded:
    """A vector as a sequence of one step."""
    if x.value.dim() == 2:
        return Padded(x.value[:, None], None)
    return x


def _keys(x: Padded) -> Tensor:
    """The mask [B, T], all True where there is none."""
    if x.mask is not None:
        return x.mask
    return torch.ones(x.value.shape[:2], dtype=torch.bool, device=x.value.device)


plugin = TransformerFusion
