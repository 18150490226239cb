"""Heads of one modality's features: the classifiers that methods add to a model (`aux.<modality>`).

Shape legend: B batch, W feature width, C outputs, h x w maps, H x W images.
"""

from __future__ import annotations

from torch import Tensor, nn

from tune_mm.core.features import pooled
from tune_mm.core.types import DataSpec, Padded
from tune_mm.models.base import DenseHead, image_maps


class VectorHead(nn.Linear):
    """A linear layer on the pooled features: Padded -> [B, C]."""

    def forward(self, x: Padded) -> Tensor:  # type: ignore[override]
        return super().forward(pooled(x))


class MapHead(DenseHead):
    """A 1x1 convolution of a dense encoder's maps [B, W, h, w], interpolated to the images: Padded
    -> [B, C, H, W].
    """

    def forward(self, x: Padded) -> Tensor:  # type: ignore[override]
        return super().forward(image_maps(x))


def head(spec: DataSpec, modality: str, width: int) -> nn.Module:
    """The head for features of `width` of a modality: one prediction per sample, or per pixel for
    segmentation.
    """
    if spec.task.kind != "segmentation":
        return VectorHead(width, spec.task.outputs)
    height, across = spec.shapes[modality][-2:]
    return MapHead(width, spec.task.outputs, (height, across))
