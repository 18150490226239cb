"""Transformer fusion: the modalities' sequences one after the other, read at position 0.

Source: CGGM (NeurIPS 2024), Sec. 4.1 and its public code: positions of its own over the
concatenated sequence, pre-norm layers, position 0 through a residual two-layer block, a linear
head. Position 0 is the first step of the first modality, which is real in every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features, Padded, UnimodalPath
from tune_mm.models._dropout import relu_dropout
from tune_mm.models._layers import Dropouts, Transformer, linear, sinusoids
from tune_mm.models.base import LateFusion

# Modalities run as one batch up to this many times the steps that they have without padding.
MOST_PADDING = 1.5


class TransformerFusionConfig(Section):
    """Sizes of the transformer and its dropout probabilities."""

    name: Literal["transformer"] = "transformer"
    # Attention heads; they divide the features' width.
    heads: int = Field(5, ge=1)
    # Pre-norm layers over the concatenated sequence.
    layers: int = Field(2, ge=1)
    # Probability for attention weights.
    dropout_attention: float = Field(0.15, ge=0, lt=1)
    # Probability after the ReLU of a feed-forward block.
    dropout_relu: float = Field(0.15, ge=0, lt=1)
    # Probability for steps with their positions.
    dropout_embed: float = Field(0.2, ge=0, lt=1)
    # Probability for both residual branches of a layer.
    dropout_residual: float = Field(0.1, ge=0, lt=1)
    # Probability inside the residual block before the head.
    dropout_output: float = Field(0.1, ge=0, lt=1)
    # Whether padded steps are kept out of the attention.
    padding_mask: bool = True


class _Alone(NamedTuple):
    """One modality's steps in the concatenated sequence."""

    # [B, T, W]
    value: Tensor
    # Their position encodings [T, W].
    positions: Tensor
    # bool [B, T], True where a step may be attended to.
    keys: Tensor


class TransformerFusion(LateFusion):
    """Features [B, T_m, W] or [B, W] (one step), all of one width -> hidden [B, W]."""

    Config = TransformerFusionConfig

    def __init__(
        self, config: TransformerFusionConfig, modalities: tuple[str, ...], width: int, outputs: int
    ) -> None:
        super().__init__()
        dropouts = Dropouts(
            attention=config.dropout_attention,
            relu=config.dropout_relu,
            embed=config.dropout_embed,
            residual=config.dropout_residual,
        )
        self.modalities = modalities
        self.padding_mask = config.padding_mask
        self.dropout_output = config.dropout_output
        self.body = Transformer(width, config.heads, config.layers, dropouts)
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
        width = next(iter(widths.values()))
        return cls(config, tuple(widths), width, spec.task.outputs)

    def block(self, modality: str) -> slice:
        """All columns: the representation is shared."""
        return slice(0, self.head.in_features)

    def hidden(self, features: Features) -> Tensor:
        steps = [_steps(features[m]) for m in self.modalities]
        keys = None
        if self.padding_mask and any(f.mask is not None for f in steps):
            keys = torch.cat([_keys(f) for f in steps], 1)
        sequence = torch.cat([f.value for f in steps], 1)
        return self._residual(self.body.first(sequence, keys))

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See `LateFusion.unimodal`. All modalities run as one batch where that does not mean much
        padding.
        """
        if path == "zero":
            return self._zeroed(features)
        parts = self._alone(features)
        lengths = [len(part.positions) for part in parts]
        padded = max(lengths) * len(parts)
        together = padded <= MOST_PADDING * sum(lengths)
        if together:
            found = self._as_one_batch(parts)
        else:
            found = self._one_by_one(parts)
        return dict(zip(self.modalities, found, strict=True))

    def _one_by_one(self, parts: Sequence[_Alone]) -> Sequence[Tensor]:
        """Hidden [B, W] of each part."""
        out = []
        for part in parts:
            embedded = self.body.embed(part.value, part.positions)
            out.append(self._read(embedded, part.keys))
        return out

    def _as_one_batch(self, parts: Sequence[_Alone]) -> Sequence[Tensor]:
        """Hidden [B, W] of each part, padded to the longest and stacked along the batch."""
        longest = max(len(part.positions) for part in parts)
        values: list[Tensor] = []
        positions: list[Tensor] = []
        keys: list[Tensor] = []
        for part in parts:
            missing = longest - len(part.positions)
            values.append(functional.pad(part.value, (0, 0, 0, missing)))
            positions.append(functional.pad(part.positions, (0, 0, 0, missing)))
            keys.append(functional.pad(part.keys, (0, missing)))
        tables = torch.stack(positions)[:, None]
        embedded = self.body.embed(torch.stack(values), tables)
        hidden = self._read(embedded.flatten(0, 1), torch.cat(keys))
        return hidden.chunk(len(parts))

    def _read(self, embedded: Tensor, keys: Tensor) -> Tensor:
        return self._residual(self.body.first_of_embedded(embedded, keys))

    def _zeroed(self, features: Features) -> dict[str, Tensor]:
        """Every modality with zeros in place of the others, stacked along the batch."""
        count = len(features)
        stacked = {}
        for m, f in features.items():
            zero = torch.zeros_like(f.value)
            value = torch.cat([f.value if m == kept else zero for kept in self.modalities])
            if f.mask is None:
                mask = None
            else:
                mask = torch.cat([f.mask] * count)
            stacked[m] = Padded(value, mask)
        hidden = self.hidden(stacked).chunk(count)
        return dict(zip(self.modalities, hidden, strict=True))

    def _alone(self, features: Features) -> list[_Alone]:
        """Each modality's part of the sequence, without the other modalities' steps.

        Position 0, which is read, belongs to the first modality. For the others it is a query with
        a zero feature and no key; the positions are those of the full sequence.
        """
        steps = [_steps(features[m]) for m in self.modalities]
        total = sum(f.value.shape[1] for f in steps)
        table = sinusoids(total, self.body.width, steps[0].value)
        parts = []
        start = 0
        for f in steps:
            value = f.value
            keys = _keys(f if self.padding_mask else Padded(value))
            end = start + value.shape[1]
            positions = table[start:end]
            if start:
                value = functional.pad(value, (0, 0, 1, 0))
                keys = functional.pad(keys, (1, 0))
                positions = torch.cat([table[:1], positions])
            parts.append(_Alone(value, positions, keys))
            start = end
        return parts

    def _residual(self, x: Tensor) -> Tensor:
        """x + a two-layer block of it."""
        inner = relu_dropout(self.inner(x), self.dropout_output if self.training else 0.0)
        out: Tensor = x + self.outer(inner)
        return out


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
