"""Enlarge images and their target alike by a random factor, cut out a window of the first size,
mirror it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_mm.core.types import Inputs, Padded


@dataclass(frozen=True)
class Zoom:
    """A `core.types.Transform`, in training only. scale: the factor is uniform between these two, 1
    or more; flip: horizontally, with probability 1/2; nearest: modalities that are not
    interpolated, as the target is not.
    """

    scale: tuple[float, float] = (1.0, 1.4)
    flip: bool = True
    nearest: frozenset[str] = frozenset()

    def __call__(
        self, inputs: Inputs, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Images [B, C, H, W] and target [B, H, W], of their shapes; each sample draws its own
        change, on the CPU.
        """
        if generator is None:
            return inputs, target
        # Always four draws a sample: one setting does not change what another draws.
        draws = torch.rand(len(target), 4, generator=generator, dtype=torch.float64).tolist()
        windows = [self._window(*target.shape[1:], *own) for own in draws]

        def changed(images: Tensor, nearest: bool) -> Tensor:
            return torch.stack(
                [_cut(x, window, nearest) for x, window in zip(images, windows, strict=True)]
            )

        out = {}
        for m, x in inputs.items():
            out[m] = Padded(changed(x.value, m in self.nearest), x.mask)
        return out, changed(target, True)

    def _window(
        self, height: int, width: int, scale: float, top: float, left: float, mirror: float
    ) -> tuple[int, int, int, int, bool]:
        """Size of the enlarged image, the window's upper left corner in it, whether it is mirrored."""
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * scale
        tall = round(factor * height)
        wide = round(factor * width)
        return (
            tall,
            wide,
            int(top * (tall - height + 1)),
            int(left * (wide - width + 1)),
            self.flip and mirror < 0.5,
        )


def _cut(image: Tensor, window: tuple[int, int, int, int, bool], nearest: bool) -> Tensor:
    """The window [..., H, W] of one enlarged image [..., H, W]."""
    tall, wide, top, left, mirror = window
    height, width = image.shape[-2:]
    if nearest:
        rows, columns = (
            (start + torch.arange(size, device=image.device)) * size // whole
            for start, size, whole in ((top, height, tall), (left, width, wide))
        )
        out = image[..., rows, :][..., columns]
    else:
        out = F.interpolate(image[None], (tall, wide), mode="bilinear")[
            0, :, top : top + height, left : left + width
        ]
    if mirror:
        return out.flip(-1)
    return out
