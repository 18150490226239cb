"""Enlarge images and their target by a random factor, cut a window out of them, mirror it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tune_mm.core.types import Inputs, Padded


@dataclass(frozen=True)
class Zoom:
    """A `core.types.Transform`, in training only; the window has the images' own size."""

    # The factor is uniform between these two, 1 or more.
    scale: tuple[float, float] = (1.0, 1.4)
    # Mirror horizontally with probability 1/2.
    flip: bool = True
    # Modalities that are not interpolated, as the target is not.
    nearest: frozenset[str] = frozenset()

    def __call__(
        self,
        inputs: Inputs,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Inputs, Tensor]:
        """Images [B, C, H, W] and target [B, H, W], changed but of the same shapes.

        Each sample draws its own change, on the CPU.
        """
        if generator is None:
            return inputs, target
        height, width = target.shape[1:]
        # Always four draws a sample: one setting does not change what another draws.
        draws = torch.rand(len(target), 4, generator=generator, dtype=torch.float64)
        windows = []
        for own in draws.tolist():
            windows.append(self._window(height, width, own))
        changed = {}
        for modality, images in inputs.items():
            values = _cut_all(images.value, windows, modality in self.nearest)
            changed[modality] = Padded(values, images.mask)
        return changed, _cut_all(target, windows, nearest=True)

    def _window(self, height: int, width: int, draws: list[float]) -> _Window:
        """draws: of the factor, the window's top and left, and whether it is mirrored."""
        scale, top, left, mirror = draws
        low, high = self.scale
        factor = low + (high - low) * scale
        tall = round(factor * height)
        wide = round(factor * width)
        return _Window(
            tall=tall,
            wide=wide,
            top=int(top * (tall - height + 1)),
            left=int(left * (wide - width + 1)),
            mirrored=self.flip and mirror < 0.5,
        )


class _Window(NamedTuple):
    """Which part of an enlarged image is kept."""

    # Size of the enlarged image.
    tall: int
    wide: int
    # Upper left corner in it.
    top: int
    left: int
    mirrored: bool


def _cut_all(images: Tensor, windows: list[_Window], nearest: bool) -> Tensor:
    """The window of each image [B, ..., H, W]."""
    pairs = zip(images, windows, strict=True)
    return torch.stack([_cut(image, window, nearest) for image, window in pairs])


def _cut(image: Tensor, window: _Window, nearest: bool) -> Tensor:
    """The window [..., H, W] of one enlarged image [..., H, W]."""
    height, width = image.shape[-2:]
    if nearest:
        rows = _nearest(window.top, height, window.tall, image.device)
        columns = _nearest(window.left, width, window.wide, image.device)
        out = image[..., rows, :][..., columns]
    else:
        size = (window.tall, window.wide)
        enlarged = functional.interpolate(image[None], size, mode="bilinear")[0]
        rows_kept = slice(window.top, window.top + height)
        columns_kept = slice(window.left, window.left + width)
        out = enlarged[:, rows_kept, columns_kept]
    if window.mirrored:
        return out.flip(-1)
    return out


def _nearest(start: int, size: int, enlarged: int, device: torch.device) -> Tensor:
    """int64 [size]: where the pixels from `start` on of an enlarged axis come from."""
    places = start + torch.arange(size, device=device)
    return places * size // enlarged
