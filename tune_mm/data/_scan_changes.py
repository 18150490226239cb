"""What training changes in batches of scans: crops, flips and turns of all modalities and the labels alike, and the
values of each modality.

Scans are z-scored over the brain, so that 0 is the mean of a scan's brain, and the background is exactly 0: contrast
and brightness act on the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tune_mm.core.types import Inputs, Padded
from tune_mm.data._images import Geometry


@dataclass(frozen=True)
class ScanChanges:
    """A `core.types.Transform`. In evaluation it is the crop in the middle alone.

    crop: side of the square cut out, at most the slice's shorter side (None: the whole slice); anywhere: in training
    not only in the middle; flip, turn: see `Geometry`. Of each sample and modality: contrast: a factor in 1 - contrast
    to 1 + contrast; brightness: what is added, in -brightness to brightness; noise: probability of Gaussian noise on
    every pixel, whose standard deviation is drawn from 0 to `deviation`.
    """

    crop: int | None = None
    anywhere: bool = True
    flip: bool = False
    turn: bool = False
    contrast: float = 0.0
    brightness: float = 0.0
    noise: float = 0.0
    deviation: float = 0.0

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """H x W after the change. Raises ValueError where slices cannot be turned."""
        return Geometry(self._side(height, width), turn=self.turn).shape(height, width)

    def __call__(
        self, inputs: Inputs, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Images [B, 1, H, W] and target [B, H, W]."""
        cut = Geometry(self._side(*target.shape[1:]))
        if generator is None:
            return cut(inputs, target)
        if not self.anywhere:
            inputs, target = cut(inputs, target)
        inputs, target = Geometry(cut.crop, self.flip, self.turn)(inputs, target, generator)
        return {m: Padded(self._values(x.value, generator), x.mask) for m, x in inputs.items()}, target

    def _side(self, height: int, width: int) -> int | None:
        return None if self.crop is None else min(self.crop, height, width)

    def _values(self, images: Tensor, generator: torch.Generator) -> Tensor:
        # Always four draws for each image: one setting does not change what another draws.
        draws = torch.rand(4, len(images), 1, 1, 1, generator=generator, dtype=torch.float64).float()
        factor = (1 + self.contrast * (2 * draws[0] - 1)).to(images.device)
        offset = (self.brightness * (2 * draws[1] - 1)).to(images.device)
        out = torch.where(images != 0, images * factor + offset, images)
        noisy = torch.nonzero(draws[2].flatten() < self.noise).flatten()
        if len(noisy) and self.deviation > 0:
            shape = (len(noisy), *images.shape[1:])
            grain = self.deviation * draws[3][noisy] * torch.randn(shape, generator=generator)
            out = out.index_add(0, noisy.to(out.device), grain.to(out.device, out.dtype))
        return out
