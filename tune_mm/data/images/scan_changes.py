"""What training changes in batches of scans: their geometry and the values of each modality.

Crops, flips and turns are those of all modalities and the labels alike. Scans are z-scored over the
brain, so that 0 is the mean of a scan's brain, and the background is exactly 0: contrast and
brightness act on the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tune_mm.core.types import Inputs, Padded
from tune_mm.data.images.geometry import Geometry


@dataclass(frozen=True)
class ScanChanges:
    """A `core.types.Transform`. In evaluation it is the crop in the middle alone."""

    # Side of the square that is cut out, at most the slice's shorter side; None: the whole slice.
    crop: int | None = None
    # In training, crop anywhere, not only in the middle.
    anywhere: bool = True
    # Mirror and turn in training: see `Geometry`.
    flip: bool = False
    turn: bool = False
    # Each sample and modality is multiplied by a factor in 1 - contrast to 1 + contrast.
    contrast: float = 0.0
    # To each sample and modality, a number in -brightness to brightness is added.
    brightness: float = 0.0
    # Probability that a sample gets Gaussian noise on every pixel, the background's too.
    noise: float = 0.0
    # The standard deviation of that noise is drawn from 0 to this, for all modalities alike.
    deviation: float = 0.0

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """H x W after the change. Raises ValueError where slices cannot be turned."""
        side = self._side(height, width)
        return Geometry(side, turn=self.turn).shape(height, width)

    def __call__(
        self,
        inputs: Inputs,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Inputs, Tensor]:
        """Images [B, 1, H, W] and target [B, H, W]."""
        height, width = target.shape[1:]
        side = self._side(height, width)
        middle = Geometry(side)
        if generator is None:
            return middle(inputs, target)
        if not self.anywhere:
            inputs, target = middle(inputs, target)
        drawn = Geometry(side, self.flip, self.turn)
        inputs, target = drawn(inputs, target, generator)
        return self._valued(inputs, generator), target

    def _side(self, height: int, width: int) -> int | None:
        if self.crop is None:
            return None
        return min(self.crop, height, width)

    def _valued(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """The modalities with other values."""
        # As many draws whatever the settings, and a generator of its own for the noise, of which
        # more or less is drawn: one setting does not change what another draws, in this batch or a
        # later one.
        images = next(iter(inputs.values()))
        shape = (2 + 2 * len(inputs), len(images.value), 1, 1, 1)
        draws = torch.rand(shape, generator=generator, dtype=torch.float64).float()
        seed = int(torch.randint(2**62, (), generator=generator))
        noise_generator = torch.Generator().manual_seed(seed)
        amount, chance, *changes = draws
        deviation = self.deviation * amount * (chance < self.noise)
        valued = {}
        for number, (modality, images) in enumerate(inputs.items()):
            factor = 1 + self.contrast * (2 * changes[2 * number] - 1)
            offset = self.brightness * (2 * changes[2 * number + 1] - 1)
            values = _jittered(images.value, factor, offset)
            values = _noisy(values, deviation, noise_generator)
            valued[modality] = Padded(values, images.mask)
        return valued


def _jittered(images: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """The brain's values times `factor` plus `offset`, both [B, 1, 1, 1]."""
    changed = images * factor.to(images.device) + offset.to(images.device)
    return torch.where(images != 0, changed, images)


def _noisy(images: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """deviation: of each sample's noise, [B, 1, 1, 1]; where it is 0 none is drawn."""
    noisy = torch.nonzero(deviation.flatten()).flatten()
    if not len(noisy):
        return images
    shape = (len(noisy), *images.shape[1:])
    noise = deviation[noisy] * torch.randn(shape, generator=generator)
    noise = noise.to(images.device, images.dtype)
    return images.index_add(0, noisy.to(images.device), noise)
