"""Fusions of one vector per modality, in which modalities modulate each other or stand in for each
other.

Shape legend: B batch, W_m feature width of modality m, H what the head reads.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from tune_mm.core.features import pooled
from tune_mm.core.types import Features, Tensors, UnimodalPath
from tune_mm.models.base import LateFusion

Pool = Literal["mean", "first"]


class VectorFusion(LateFusion):
    """Features [B, T_m, W_m] or [B, W_m], pooled to one vector each -> hidden [B, H], all of which
    is shared.
    """

    def __init__(self, widths: Mapping[str, int], pool: Pool) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.pool = pool

    @abstractmethod
    def combine(self, vectors: Tensors) -> Tensor:
        """[B, H] of one vector [B, W_m] per modality."""

    def block(self, modality: str) -> slice:
        return slice(0, self.head.in_features)

    def hidden(self, features: Features) -> Tensor:
        return self.combine(self._vectors(features))

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See `LateFusion.unimodal`; `mask` is `zero`. Raises ValueError for `self` where widths
        differ.
        """
        vectors = self._vectors(features)
        found = {}
        for m in self.widths:
            found[m] = self.combine(self._alone(vectors, m, path))
        return found

    def _vectors(self, features: Features) -> Tensors:
        found = {}
        for m in self.widths:
            found[m] = pooled(features[m], self.pool)
        return found

    def _alone(self, vectors: Tensors, modality: str, path: UnimodalPath) -> Tensors:
        """`vectors` with zeros, or `modality` itself, in place of the others."""
        own = vectors[modality]
        if path != "self":
            return {m: own if m == modality else torch.zeros_like(v) for m, v in vectors.items()}
        for m, width in self.widths.items():
            if width != self.widths[modality]:
                raise ValueError(
                    f"unimodal_path: with self, '{modality}' takes the place of '{m}', "
                    f"which needs equal widths, got {self.widths[modality]} and {width}; use zero"
                )
        return dict.fromkeys(vectors, own)


class ModulatedFusion(VectorFusion):
    """Some modalities (targets), each changed by others (its sources), side by side: [B, sum over
    targets].

    sources: those of each target, in the order of the modalities. A modality that is alone in the
    model has none and passes as it is. sizes: columns of hidden per target.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        sources: Mapping[str, tuple[str, ...]],
        sizes: Mapping[str, int],
        outputs: int,
        pool: Pool,
    ) -> None:
        super().__init__(widths, pool)
        self.sources = dict(sources)
        self.blocks = {}
        total = 0
        for m in sources:
            self.blocks[m] = slice(total, total + sizes[m])
            total += sizes[m]
        self.head = nn.Linear(total, outputs)

    @abstractmethod
    def modulate(self, target: str, source: Tensor, value: Tensor) -> Tensor:
        """[B, size] of the target's vector, given its sources' vectors side by side."""

    def block(self, modality: str) -> slice:
        """Where the modality is the one modulated, if each one is (`symmetric`); else all columns."""
        if self.sources.keys() == self.widths.keys():
            return self.blocks[modality]
        return super().block(modality)

    def combine(self, vectors: Tensors) -> Tensor:
        parts = []
        for m, names in self.sources.items():
            parts.append(self._part(m, names, vectors))
        return torch.cat(parts, 1)

    def _part(self, target: str, names: tuple[str, ...], vectors: Tensors) -> Tensor:
        if not names:
            return vectors[target]
        source = torch.cat([vectors[m] for m in names], 1)
        return self.modulate(target, source, vectors[target])


def sources_of(
    widths: Mapping[str, int], field: str, chosen: str | None, symmetric: bool
) -> dict[str, tuple[str, ...]]:
    """The sources of each target: all others if `symmetric`, else `chosen` (None: the first
    modality) for all others.

    A modality that is alone has none. Raises ValueError, naming `field`, when `chosen` is no
    modality.
    """
    names = tuple(widths)
    if len(names) == 1:
        # One modality of a data set (the method `unimodal`): the chosen one may be another.
        return {names[0]: ()}
    if chosen is not None and chosen not in names:
        near = difflib.get_close_matches(chosen, names, n=1)
        hint = f"; nearest '{near[0]}'" if near else ""
        raise ValueError(f"{field}: no modality '{chosen}'{hint}; available: {', '.join(names)}")
    if symmetric:
        others = {}
        for m in names:
            others[m] = tuple(k for k in names if k != m)
        return others
    source = names[0] if chosen is None else chosen
    return {m: (source,) for m in names if m != source}
