"""Random changes of colour in the HSV space, of batches of images [B, 3, H, W] with values in 0..1.

Hue, saturation and value of a pixel (A. R. Smith, Color Gamut Transform Pairs, SIGGRAPH 1978), all
in 0..1, with

    v = max(r, g, b)    s = (v - min) / v    h = sixths of the circle from red over yellow to green, cyan, blue, magenta
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jitter:
    """hue, saturation: each image's are multiplied by a factor within 1 +- this; value: a number
    within +- this is added to it. All three are cut to 0..1.
    """

    hue: float
    saturation: float
    value: float

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` changed, each by its own draw. generator: on the CPU."""
        draws = 2 * torch.rand(len(images), 3, generator=generator) - 1
        hue, saturation, value = draws.to(images.device, images.dtype)[:, :, None, None].unbind(1)
        h, s, v = to_hsv(images).unbind(1)
        changed = (
            h * (1 + self.hue * hue),
            s * (1 + self.saturation * saturation),
            v + self.value * value,
        )
        return to_rgb(torch.stack([x.clamp(0, 1) for x in changed], 1))


def to_hsv(images: Tensor) -> Tensor:
    """[B, 3, H, W] of h, s, v from r, g, b. Grey has hue 0."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    span = images.amax(1) - images.amin(1)
    wide = torch.where(span > 0, span, 1)
    sixths = torch.where(
        value == red,
        ((green - blue) / wide) % 6,
        torch.where(value == green, (blue - red) / wide + 2, (red - green) / wide + 4),
    )
    return torch.stack([sixths / 6, span / torch.where(value > 0, value, 1), value], 1)


def to_rgb(images: Tensor) -> Tensor:
    """The inverse of `to_hsv`."""
    hue, saturation, value = images.unbind(1)
    out = []
    for start in (5, 3, 1):
        place = (start + 6 * hue) % 6
        out.append(value * (1 - saturation * torch.minimum(place, 4 - place).clamp(0, 1)))
    return torch.stack(out, 1)
