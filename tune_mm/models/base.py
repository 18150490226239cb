"""What every encoder and fusion provides. `build` makes one from its config section and the shapes around it.

Parameters are owned by prefix: `encoders.<modality>.*`, `fusion.*` (its linear head is `fusion.head`), `aux.*`.
Shape legend: B batch, T time steps, D channels, C outputs, W the encoder's feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tune_mm.core.types import DataSpec, Features, Padded, UnimodalPath

__all__ = ["Encoder", "Fusion", "UnimodalPath"]


class Encoder(nn.Module, ABC):
    """One modality's encoder: Padded [B, T, D] or [B, D] -> Padded [B, T, W] or [B, W]. `width` is W."""

    Config: ClassVar[type]
    width: int

    @classmethod
    @abstractmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> Encoder:
        """An encoder for inputs of `shape` ((T, D) or (D,)). Raises ValueError for a shape it cannot take."""

    @abstractmethod
    def forward(self, x: Padded) -> Padded: ...


class Fusion(nn.Module, ABC):
    """Fuses features into what one linear head reads: logits = head(hidden(features)).

    `head` is nn.Linear [C, H]. `block(m)` names the columns of the head's weight that modality m's own classifier
    compares with (CGGM's direction term): its block for concat and sum, all of them for a shared representation.
    """

    Config: ClassVar[type]
    head: nn.Linear

    @classmethod
    @abstractmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> Fusion:
        """A fusion of features of `widths` per modality. Raises ValueError where the widths do not fit."""

    @abstractmethod
    def hidden(self, features: Features) -> Tensor:
        """[B, H], what the head reads."""

    @abstractmethod
    def block(self, modality: str) -> slice:
        """Columns of `head.weight` that belong to `modality`."""

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """Hidden [B, H] per modality, each alone through the fusion.

        path `zero`: the other modalities' features are 0 (DGL, Sec. 3.2); `mask`: they are not attended to. For
        fusions without attention the two are the same.
        """
        return {m: self.hidden({k: f if k == m else f.zero() for k, f in features.items()}) for m in features}

    def forward(self, features: Features) -> Tensor:
        """Logits [B, C]."""
        out: Tensor = self.head(self.hidden(features))
        return out
