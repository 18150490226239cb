"""Predictions at coarser scales that come with the one that counts: a decoder's side outputs, made
in training only.

They travel with the tensor that they were made beside: from the hidden that a fusion returns to the
logits of its head and into the loss (`Net.head`, `Net.loss`). A method that asks for the loss of
logits gets that of all their scales, for the multimodal prediction and for each modality alone, and
one that computes with logits does not meet them. What is computed from such a tensor has none of
its own: whoever computes it says whose they are (`beside`).

Shape legend: B batch, C outputs, h x w a coarser grid of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

NAME = "tune_mm_coarser"  # of the attribute, which lives as long as the tensor


def beside(finest: Tensor, coarser: Sequence[Tensor]) -> Tensor:
    """`finest`, the same object, with the logits `coarser` [B, C, h, w] beside it."""
    if coarser:
        setattr(finest, NAME, tuple(coarser))
    return finest


def coarser(of: Tensor) -> tuple[Tensor, ...]:
    """The logits [B, C, h, w] beside a hidden or beside logits; () where there are none."""
    found: tuple[Tensor, ...] = getattr(of, NAME, ())
    return found
