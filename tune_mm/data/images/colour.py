"""Random changes of colour in the HSV space, of batches of images [B, 3, H, W] with values in 0..1.

Hue, saturation and value of a pixel (A. R. Smith, Color Gamut Transform Pairs, SIGGRAPH 1978), all
in 0..1, with

    v = max(r, g, b)
    s = (v - min(r, g, b)) / v
    h = sixths of the circle from red over yellow to green, cyan, blue, magenta
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jitter:
    """How far each image's colours may change; the results are cut to 0..1."""

    # Hue is multiplied by a factor within 1 +- this.
    hue: float
    # Saturation is multiplied by a factor within 1 +- this.
    saturation: float
    # A number within +- this is added to value.
    value: float

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` changed, each by its own draw. generator: on the CPU."""
        draws = 2 * torch.rand(len(images), 3, generator=generator) - 1
        draws = draws.to(images.device, images.dtype)[:, :, None, None]
        hue_draw, saturation_draw, value_draw = draws.unbind(1)
        hue, saturation, value = to_hsv(images).unbind(1)
        changed = [
            hue * (1 + self.hue * hue_draw),
            saturation * (1 + self.saturation * saturation_draw),
            value + self.value * value_draw,
        ]
        return to_rgb(torch.stack(changed, 1).clamp(0, 1))


def to_hsv(images: Tensor) -> Tensor:
    """[B, 3, H, W] of h, s, v from r, g, b. Grey has hue 0."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    span = value - images.amin(1)
    # Where a division has no meaning, it is by 1.
    wide = torch.where(span > 0, span, 1)
    bright = torch.where(value > 0, value, 1)
    from_red = ((green - blue) / wide) % 6
    from_green = (blue - red) / wide + 2
    from_blue = (red - green) / wide + 4
    sixths = torch.where(value == green, from_green, from_blue)
    sixths = torch.where(value == red, from_red, sixths)
    return torch.stack([sixths / 6, span / bright, value], 1)


def to_rgb(images: Tensor) -> Tensor:
    """The inverse of `to_hsv`."""
    hue, saturation, value = images.unbind(1)
    channels = []
    for start in (5, 3, 1):
        sixths = (start + 6 * hue) % 6
        distance = torch.minimum(sixths, 4 - sixths).clamp(0, 1)
        channels.append(value * (1 - saturation * distance))
    return torch.stack(channels, 1)
