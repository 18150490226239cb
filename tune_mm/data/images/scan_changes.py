"""What training changes in batches of scans: crops, flips and turns of all modalities and the
labels alike, and the values of each modality.

Scans are z-scored over the brain, so that 0 is the mean of a scan's brain, and the background is
exactly 0: contrast and brightness act on the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tune_mm.core.types import Inputs, Padded
from tune_mm.data.images.geometry import Geometry


@dataclass(frozen=True)
class ScanChanges:
    """A `core.types.Transform`. In evaluation it is the crop in the middle alone.

    crop: side of the square cut out, at most the slice's shorter side (None: the whole slice);
    anywhere: in training not only in the middle; flip, turn: see `Geometry`. Of each sample and
    modality: contrast: a factor in 1 - contrast to 1 + contrast; brightness: what is added, in
    -brightness to brightness. Of each sample, for all modalities alike: noise: probability of
    Gaussian noise on every pixel, background too; deviation: its standard deviation is drawn from 0
    to this.
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
        return self._valued(inputs, generator), target

    def _side(self, height: int, width: int) -> int | None:
        if self.crop is None:
            return None
        return min(self.crop, height, width)

    def _valued(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        # As many draws whatever the settings, and a generator of its own for the noise, of which
        # more or less is drawn: one setting does not change what another draws, in this batch or a
        # later one.
        count = len(next(iter(inputs.values())).value)
        draws = torch.rand(
            2 + 2 * len(inputs), count, 1, 1, 1, generator=generator, dtype=torch.float64
        ).float()
        seed = int(torch.randint(2**62, (), generator=generator))
        spread = self.deviation * draws[0] * (draws[1] < self.noise)
        grain = torch.Generator().manual_seed(seed)
        out = {}
        for i, (m, x) in enumerate(inputs.items()):
            factor = 1 + self.contrast * (2 * draws[2 + 2 * i] - 1)
            offset = self.brightness * (2 * draws[3 + 2 * i] - 1)
            out[m] = Padded(_noisy(_jittered(x.value, factor, offset), spread, grain), x.mask)
        return out


def _jittered(images: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """factor, offset: [B, 1, 1, 1]."""
    return torch.where(
        images != 0, images * factor.to(images.device) + offset.to(images.device), images
    )


def _noisy(images: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    """spread: standard deviation of each sample's noise, [B, 1, 1, 1]; none is drawn where it is 0."""
    index = torch.nonzero(spread.flatten()).flatten()
    if not len(index):
        return images
    grain = spread[index] * torch.randn((len(index), *images.shape[1:]), generator=generator)
    return images.index_add(0, index.to(images.device), grain.to(images.device, images.dtype))
