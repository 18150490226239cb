"""What every encoder and fusion provides. `build` makes one from its config section and the shapes
around it.

Parameters are owned by prefix: `encoders.<modality>.*`, `fusion.*` (its linear head is
`fusion.head`), `aux.*`. Shape legend: B batch, T time steps or frames, D channels of a sequence, C
channels of a map or outputs, W the encoder's feature width, H what the head reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from tune_mm.core.types import DataSpec, Features, Padded, UnimodalPath

__all__ = [
    "DenseEncoder",
    "DenseFusion",
    "DenseHead",
    "Encoder",
    "Fusion",
    "LateFusion",
    "StagedEncoder",
    "StagedFusion",
    "UnimodalPath",
    "image_maps",
]


def image_maps(x: Padded) -> Tensor:
    """Maps [B, C, h, w] of an image, which encoders in stages hold as one frame [B, 1, C, h, w]."""
    if x.value.ndim == 5:
        return x.value.flatten(0, 1)
    return x.value


class Encoder(nn.Module, ABC):
    """One modality's encoder. `width` is W.

    Sequences [B, T, D] -> [B, T, W], vectors [B, D] -> [B, W], images [B, C, H, W] or frames [B, T,
    C, H, W] -> [B, W].
    """

    Config: ClassVar[type]
    # Ranks of the samples that it takes: 1 vector, 2 sequence, 3 image, 4 frames.
    ranks: ClassVar[tuple[int, ...]]
    # Settings of a small one without randomness: what the conformance tests build.
    small: ClassVar[Mapping[str, Any]] = {}
    width: int

    @classmethod
    @abstractmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> Encoder:
        """An encoder for samples of `shape` (see DataSpec). Raises ValueError for a shape it cannot
        take.
        """

    @abstractmethod
    def forward(self, x: Padded) -> Padded: ...


class StagedEncoder(Encoder):
    """An encoder in stages 1..S, which a staged fusion can step through."""

    # C of the maps after each stage.
    channels: tuple[int, ...]
    # The stage whose maps [B, T, C, H, W] `forward` returns (images have T = 1); None: `forward`
    # runs to the end and returns pooled features [B, W].
    until: int | None = None
    # Whether to run the stages behind `until` too, whose maps are the features' `levels` then: for
    # a modality that sees no other one on its way, so that the passes of a fusion share them.
    through: bool = False

    @abstractmethod
    def stage(self, number: int, x: Padded) -> Padded:
        """Maps [B, T, C, H, W] after stage `number` (from 1) of the maps before it (of the input,
        for stage 1).
        """

    @abstractmethod
    def pool(self, x: Padded) -> Padded:
        """Features [B, W] of the last stage's maps."""

    def forward(self, x: Padded) -> Padded:
        if self.until is None:
            last = len(self.channels)
        else:
            last = self.until
        for number in range(1, last + 1):
            x = self.stage(number, x)
        if self.until is None:
            return self.pool(x)
        further = list[Padded]()
        for number in range(last + 1, len(self.channels) + 1 if self.through else 0):
            further.append(self.stage(number, further[-1] if further else x))
        return x._replace(levels=tuple(f.value for f in further))


class DenseEncoder(Encoder):
    """An encoder of images [B, C, H, W] whose features stay maps: `value` [B, W, h, w], `levels`
    [B, C_l, H_l, W_l].

    channels: C_l of each of the levels, the finest first.
    """

    channels: tuple[int, ...]


class DenseHead(nn.Conv2d):
    """A head of a 1x1 convolution [B, H, h, w] -> logits [B, C, *size], interpolated to the size of
    the images.
    """

    def __init__(self, width: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__(width, outputs, 1)
        self.size = size

    def forward(self, hidden: Tensor) -> Tensor:
        # The softmax over classes wants them apart; before the interpolation that is a smaller
        # copy.
        out = super().forward(hidden).contiguous()
        if out.shape[2:] == self.size:
            return out
        return functional.interpolate(out, self.size, mode="bilinear")


class Fusion(nn.Module, ABC):
    """Fuses features into what one linear head reads: logits = head(hidden)."""

    Config: ClassVar[type]
    # Whether it predicts every pixel.
    dense: ClassVar[bool] = False
    # The ways in which a modality alone passes, the default first.
    paths: ClassVar[tuple[UnimodalPath, ...]] = ("zero", "mask")
    # Why other ways that a user may ask for are none.
    refused: ClassVar[Mapping[UnimodalPath, str]] = {}
    # nn.Linear [C, H], or where `dense` a DenseHead [C, H, 1, 1].
    head: nn.Linear | DenseHead

    @abstractmethod
    def block(self, modality: str) -> slice:
        """Columns of `head.weight` that belong to `modality`: what the modality's own classifier
        compares with (CGGM).

        Its block for concat and sum, all columns for a shared representation.
        """


class LateFusion(Fusion):
    """Reads the encoders' features only."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> LateFusion:
        """A fusion of features of `widths` per modality. Raises ValueError where the widths do not
        fit.
        """

    @abstractmethod
    def hidden(self, features: Features) -> Tensor:
        """[B, H], what the head reads."""

    def without(self, features: Features, absent: Collection[str]) -> Tensor:
        """[B, H] with the features of the modalities in `absent` at 0."""
        return self.hidden({m: f.zero() if m in absent else f for m, f in features.items()})

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """Hidden [B, H] per modality, each alone through the fusion, by a `path` out of `paths`.

        `zero`: the other modalities' features are 0 (DGL, Sec. 3.2); `mask`: they are left out (not
        attended to, not averaged over; otherwise the same as zero); `self`: the modality takes the
        place of each other one.
        """
        found = {}
        for m in features:
            found[m] = self.without(features, features.keys() - {m})
        return found


class DenseFusion(LateFusion):
    """Reads the maps of dense encoders; `hidden` is [B, H, h, w]."""

    dense: ClassVar[bool] = True
    paths: ClassVar[tuple[UnimodalPath, ...]] = ("zero",)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Any]) -> DenseFusion:
        """A fusion of the maps of `encoders` (DenseEncoder). Raises ValueError where they do not
        fit.
        """


class StagedFusion(Fusion):
    """Exchanges information between encoders at some of their stages (MMTM): later stages see the
    other modalities.

    The encoders return their maps after the stage of the first exchange (`StagedEncoder.until`);
    the fusion runs the rest of them. Their parameters stay theirs, `encoders.<modality>.*`.
    """

    paths: ClassVar[tuple[UnimodalPath, ...]] = ("zero",)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Encoder]) -> StagedFusion:
        """A fusion of `encoders`, whose `until` it sets. Raises ValueError where they have no such
        stages.
        """

    @abstractmethod
    def hidden(
        self,
        encoders: Mapping[str, StagedEncoder],
        features: Features,
        absent: Collection[str] = (),
    ) -> Tensor:
        """[B, H]. absent: modalities whose maps are 0 wherever others would see them, and whose
        features are 0.
        """

    def unimodal(
        self, encoders: Mapping[str, StagedEncoder], features: Features, path: UnimodalPath
    ) -> dict[str, Tensor]:
        """Hidden [B, H] per modality with all others absent, whose encoders do not take part then."""
        found = {}
        for m in features:
            found[m] = self.hidden(encoders, features, features.keys() - {m})
        return found
