"""The MLP-Mixer fusion's formula, written out over whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from tune_mm.models.fusions.mixer import Mix, MixerFusion

AXES = (
    "blmd,hl->bhmd",
    "blmd,hm->blhd",
    "blmd,hd->blmh",
)  # a matrix on one axis, in the order of the MLPs


def normal(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5), over the channels."""
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (centred**2).sum(-1, keepdim=True) / x.shape[-1]
    return centred / (variance + 1e-5) ** 0.5 * gain + shift


def along(axis: int, bias: Tensor) -> Tensor:
    """`bias` in place to be added along an axis of [B, L, M, D]."""
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    return bias.view(shape)


def mixer(
    fusion: MixerFusion,
    rows: Mapping[str, Tensor],
    alone: str | None = None,
    path: str | None = None,
) -> Tensor:
    """Hidden of rows [B, L, W_m] per modality; `alone`: of one of them by `path`.

    `mask` keeps all slices and makes the absent ones 0 wherever a slice is read: by the MLPs along
    the modalities after their norm, and by the readout, whose mean over the modalities is then the
    present one's share alone.
    """
    kept = torch.tensor([alone in (None, m) for m in rows], dtype=torch.float64)[:, None]
    maps = {m: layer.get_parameter("weight") for m, layer in fusion.project.items()}
    slices = [v @ maps[m].T if m in maps else v for m, v in rows.items()]
    x = torch.stack(slices, 2) * kept
    kept = kept if path == "mask" else torch.ones_like(kept)
    for number, module in enumerate(fusion.mixes):
        axis, mix = number % 3, cast("Mix", module)
        seen = normal(x, mix.norm.weight, mix.norm.bias) * kept
        inner = torch.einsum(AXES[axis], seen, mix.up.weight) + along(axis + 1, mix.up.bias)
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        x = x + torch.einsum(AXES[axis], inner, mix.down.weight) + along(axis + 1, mix.down.bias)
    x = x * kept
    steps, count = x.shape[1], float(kept.sum())
    if fusion.readout == "mean":
        return torch.einsum("blmd->bd", x) / (steps * count)
    if fusion.readout == "concat":
        return torch.cat([x[:, :, m].sum(1) / steps for m in range(x.shape[2])], 1)
    return x.reshape(len(x), -1)
