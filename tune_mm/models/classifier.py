"""CGGM's modality classifier: one or two self-attention layers and a linear layer on (detached)
features.

Source: CGGM (NeurIPS 2024), Sec. 3.3: "1-2 multi-head self-attention layers and a fully connected
layer". It reads position 0 of the modality, so its last layer computes that position alone. The
authors' code puts one linear layer twice, with a ReLU, before the output; the paper, and we, do
not.
"""

from __future__ import annotations

from torch import Tensor, nn

from tune_mm.core.types import DataSpec, Padded
from tune_mm.models._layers import Dropouts, Transformer, linear
from tune_mm.models.base import DenseHead, image_maps


class Classifier(nn.Module):
    """Padded [B, T, W] or [B, W] (a sequence of one step) -> logits [B, C] = head(hidden).

    Maps [B, T, W, H', W'] (features of encoders in stages) are averaged to [B, W] first.

    dropout: one probability for attention, ReLU, embedding and residual, or each its own.
    padding_mask: whether padded steps are kept out of the attention. Raises ValueError when `heads`
    does not divide `width`.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        layers: int = 2,
        heads: int = 5,
        dropout: float | Dropouts = 0.1,
        padding_mask: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(dropout, Dropouts):
            dropouts = dropout
        else:
            dropouts = Dropouts(*[dropout] * 4)
        self.padding_mask = padding_mask
        self.body = Transformer(width, heads, layers, dropouts)
        self.head = linear(width, outputs)

    def hidden(self, x: Padded) -> Tensor:
        """[B, W], what the head reads."""
        value, mask, _ = x
        if value.dim() == 5:
            value = value.mean((1, 3, 4))
            mask = None
        if value.dim() == 2:
            value = value[:, None]
            mask = None
        return self.body.first(value, mask if self.padding_mask else None)

    def forward(self, x: Padded) -> Tensor:
        """Logits [B, C]."""
        out: Tensor = self.head(self.hidden(x))
        return out


class Decoder(nn.Module):
    """The light decoder that stands for the classifier in segmentation: maps [B, W, h, w] -> logits
    [B, C, H, W].

    A 3 x 3 convolution, BatchNorm and ReLU, and a 1 x 1 convolution, whose output is interpolated
    to the images.
    """

    def __init__(self, width: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.body = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
        self.head = DenseHead(width, outputs, size)

    def hidden(self, x: Padded) -> Tensor:
        """[B, W, h, w], what the head reads."""
        out: Tensor = self.body(image_maps(x))
        return out

    def forward(self, x: Padded) -> Tensor:
        """Logits [B, C, H, W]."""
        out: Tensor = self.head(self.hidden(x))
        return out


def decoder(spec: DataSpec, modality: str, width: int) -> Decoder:
    """The light decoder of a modality's features of `width`."""
    height, across = spec.shapes[modality][-2:]
    return Decoder(width, spec.task.outputs, (height, across))
