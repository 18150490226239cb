"""Images of several modalities and one target, changed alike: crops, flips and quarter turns of
whole batches.

Shape legend: B batch, C channels, H x W a stored image, S the side of a crop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tune_mm.core.types import Inputs, Padded


@dataclass(frozen=True)
class Geometry:
    """A `core.types.Transform`. crop: side of the square that is cut out (None: the whole image),
    anywhere in training and in the middle in evaluation; flip: horizontally, with probability 1/2;
    turn: by 0 to 3 quarters (square images).
    """

    crop: int | None = None
    flip: bool = False
    turn: bool = False

    def __call__(
        self, inputs: Inputs, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Images [B, C, H, W] and target [B, H, W]; each sample draws its own change, on the CPU."""
        height, width = target.shape[1:]
        changes = []
        for _ in range(len(target)):
            changes.append(self._drawn(height, width, generator))

        def changed(images: Tensor) -> Tensor:
            return torch.stack(
                [change(image) for change, image in zip(changes, images, strict=True)]
            )

        return {m: Padded(changed(x.value), x.mask) for m, x in inputs.items()}, changed(target)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """H x W after the change. Raises ValueError for images that are smaller than the crop, or
        cannot be turned.
        """
        if self.crop is not None:
            if self.crop > min(height, width):
                raise ValueError(
                    f"crop must be at most {min(height, width)}, the images' shorter side, got {self.crop}"
                )
            return self.crop, self.crop
        if self.turn and height != width:
            raise ValueError(
                f"turn must be false for images that are not square, got {height} x {width}; or set crop"
            )
        return height, width

    def _drawn(
        self, height: int, width: int, generator: torch.Generator | None
    ) -> Callable[[Tensor], Tensor]:
        """One sample's change, of anything [..., H, W]."""
        tall, wide = (height, width) if self.crop is None else (self.crop, self.crop)
        top = (height - tall) // 2
        left = (width - wide) // 2
        flip = False
        turns = 0
        if generator is not None:
            # Always four draws: one setting does not change what another draws.
            draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            top = int(draws[0] * (height - tall + 1))
            left = int(draws[1] * (width - wide + 1))
            flip = self.flip and draws[2] < 0.5
            turns = int(draws[3] * 4) if self.turn else 0

        def change(image: Tensor) -> Tensor:
            out = image[..., top : top + tall, left : left + wide]
            out = out.flip(-1) if flip else out
            if turns:
                return torch.rot90(out, turns, (-2, -1))
            return out

        return change
