"""Crops, flips and quarter turns of whole batches: all modalities and the target change alike.

Shape legend: B batch, C channels, H x W a stored image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tune_mm.core.types import Inputs, Padded


@dataclass(frozen=True)
class Geometry:
    """A `core.types.Transform`; in evaluation it is the crop in the middle alone."""

    # Side of the square that is cut out, anywhere in training; None: the whole image.
    crop: int | None = None
    # Mirror horizontally with probability 1/2.
    flip: bool = False
    # Turn by 0 to 3 quarters; square images only.
    turn: bool = False

    def __call__(
        self,
        inputs: Inputs,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Inputs, Tensor]:
        """Images [B, C, H, W] and target [B, H, W]; each sample draws its own, on the CPU."""
        height, width = target.shape[1:]
        changes = []
        for _ in range(len(target)):
            changes.append(self._drawn(height, width, generator))
        changed = {}
        for modality, images in inputs.items():
            changed[modality] = Padded(_applied(changes, images.value), images.mask)
        return changed, _applied(changes, target)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """H x W after the change.

        Raises ValueError for images that are smaller than the crop, or cannot be turned.
        """
        if self.crop is not None:
            shorter = min(height, width)
            if self.crop > shorter:
                raise ValueError(
                    f"crop must be at most {shorter}, the images' shorter side, got {self.crop}"
                )
            return self.crop, self.crop
        if self.turn and height != width:
            raise ValueError(
                "turn must be false for images that are not square, "
                f"got {height} x {width}; or set crop"
            )
        return height, width

    def _drawn(self, height: int, width: int, generator: torch.Generator | None) -> _Change:
        """One sample's change."""
        tall = self.crop or height
        wide = self.crop or width
        if generator is None:
            return _Change(
                tall=tall,
                wide=wide,
                top=(height - tall) // 2,
                left=(width - wide) // 2,
                flipped=False,
                quarters=0,
            )
        # Always four draws: one setting does not change what another draws.
        draws = torch.rand(4, generator=generator, dtype=torch.float64)
        top, left, flip, turn = draws.tolist()
        return _Change(
            tall=tall,
            wide=wide,
            top=int(top * (height - tall + 1)),
            left=int(left * (width - wide + 1)),
            flipped=self.flip and flip < 0.5,
            quarters=int(turn * 4) if self.turn else 0,
        )


class _Change(NamedTuple):
    """What is done to one sample: cut out, then mirrored, then turned."""

    # Size and upper left corner of what is cut out.
    tall: int
    wide: int
    top: int
    left: int
    flipped: bool
    quarters: int

    def __call__(self, image: Tensor) -> Tensor:
        """image: anything [..., H, W]."""
        rows = slice(self.top, self.top + self.tall)
        columns = slice(self.left, self.left + self.wide)
        out = image[..., rows, columns]
        if self.flipped:
            out = out.flip(-1)
        if self.quarters:
            out = torch.rot90(out, self.quarters, (-2, -1))
        return out


def _applied(changes: list[_Change], images: Tensor) -> Tensor:
    """Each image [B, ..., H, W] by its own change."""
    pairs = zip(changes, images, strict=True)
    return torch.stack([change(image) for change, image in pairs])
