"""MLP-Mixer fusion (CubeMLP): the features as one tensor, mixed along time, modalities and channels
in turn.

    X [B, L, M, D], X[:, :, m] = modality m's features, brought to L steps and D channels
    a block, for each axis in turn (L, M, D):  X <- X + dropout(W_2 gelu(W_1 norm(X) + b_1) + b_2)  along that axis
    hidden = what `readout` makes of X, for one linear head

Source: Sun et al., CubeMLP (ACM MM 2022), the MLP-Mixer of DGL (ICCV 2025), Table 2 (CMU-MOSI,
three modalities).

Steps. A sequence of T steps is averaged into L bins as by adaptive average pooling: bin l covers
the steps from floor(l T / L) to ceil((l + 1) T / L), and its mean is over the real ones among them
(0 where there is none). T = L is therefore the plain alignment, step by step, with zeros for
padding, and a vector (T = 1) stands in every bin.

Zeroing. `zero`: the other modalities' slices of X are 0 (DGL, Sec. 3.2). The blocks fill these with
the biases and what the modality sends there, so nothing degenerates. `mask`: X has the modality's
slice only; the MLPs along M read it by its column of W_1, write it by its row of W_2, and the
readout does not see the others.

Under DGL `zero` can diverge (CMU-MOSI, alpha 1, lr 1e-3, seed 0: the training loss goes from 2.3 to
23 in 8 epochs; with `mask` from 2.2 to 1.0). A likely reason: the encoders fit s_m + b to the data,
the fusion sum_m s_m + b, where s_m is an offset that modality m adds to the logits and b the
fusion's own; descent on both has a saddle there for M > 1. With `mask` and the readout `mean` the
fusion fits mean_m s_m + b, and both agree.

Deviations
    * CubeMLP normalises along the axis that is mixed next. Over two modalities that leaves signs,
      over a single step or modality 0. Here it is over the channels, as in MLP-Mixer, and before
      the MLP, as CubeMLP was run.
    * CubeMLP narrows the axes from block to block, with linear maps on the residuals (50 x 3 x 128
      to 10 x 3 x 32 on MOSI); here a block keeps the tensor's shape.
    * DGL publishes neither code nor sizes. The defaults are those of CubeMLP's public command on
      MOSI where they carry over: two blocks, hidden sizes equal to the axes, GELU, dropout 0.1; its
      readout is `concat`.

Shape legend: B batch, T_m steps of modality m, L steps of all, M modalities, W_m feature width, D
channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features, Padded, UnimodalPath
from tune_mm.models._dropout import add_dropped
from tune_mm.models.base import LateFusion

Readout = Literal["mean", "concat", "flatten"]
TIME = 1
MODALITY = 2
CHANNEL = 3


class MixerConfig(Section):
    """Defaults: CubeMLP's on MOSI, where they carry over (see Deviations)."""

    name: Literal["mixer"] = "mixer"
    # Blocks of three MLPs each.
    blocks: int = Field(2, ge=1)
    # Hidden units of an MLP per unit of its axis.
    factor: float = Field(1.0, gt=0)
    # Hidden units along time, modalities and channels instead (null: by `factor`).
    hidden: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=3, max_length=3)
    # L (null: that of the shortest sequence, 1 where all are vectors).
    length: int | None = Field(None, ge=1)
    # D (null: the widest features' width); other widths pass a linear map without bias.
    width: int | None = Field(None, ge=1)
    # Probability after each MLP.
    dropout: float = Field(0.1, ge=0, lt=1)
    # Mean over steps and modalities, over steps only (`concat`), or all of it (`flatten`).
    readout: Readout = "mean"

    @model_validator(mode="after")
    def _sizes_are_said_once(self) -> MixerConfig:
        if self.hidden is not None and self.factor != 1:
            raise ValueError("factor has no meaning with hidden: leave one of them out")
        return self


class Mix(nn.Module):
    """x + dropout(MLP(norm(x))) along one axis of [B, L, M, D]."""

    def __init__(self, axis: int, size: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.axis = axis
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(size, hidden)
        self.down = nn.Linear(hidden, size)

    def forward(self, x: Tensor, only: slice = slice(None)) -> Tensor:
        """only: the places along the axis that x has, out of all that the layers know."""
        along = self.norm(x).movedim(self.axis, -1)
        inner = functional.linear(along, self.up.weight[:, only], self.up.bias)
        mixed = functional.linear(
            functional.gelu(inner), self.down.weight[only], self.down.bias[only]
        )
        branch = mixed.movedim(-1, self.axis)
        return add_dropped(x, branch, self.dropout if self.training else 0.0)


class MixerFusion(LateFusion):
    """Features [B, T_m, W_m] or [B, W_m] -> hidden [B, D], [B, M D] (`concat`) or [B, L M D]
    (`flatten`).
    """

    Config = MixerConfig
    head: nn.Linear

    def __init__(
        self, config: MixerConfig, widths: Mapping[str, int], length: int, outputs: int
    ) -> None:
        super().__init__()
        if config.width is None:
            width = max(widths.values())
        else:
            width = config.width
        self.modalities = tuple(widths)
        self.length = length
        self.readout = config.readout
        self.project = nn.ModuleDict()
        for m, own in widths.items():
            if own != width:
                self.project[m] = nn.Linear(own, width, bias=False)
        sizes = (length, len(widths), width)
        hidden = config.hidden or tuple(max(1, round(config.factor * size)) for size in sizes)
        self.mixes = nn.ModuleList()
        for _ in range(config.blocks):
            for axis, size, units in zip((TIME, MODALITY, CHANNEL), sizes, hidden, strict=True):
                self.mixes.append(Mix(axis, size, units, width, config.dropout))
        columns = {
            "mean": width,
            "concat": len(widths) * width,
            "flatten": length * len(widths) * width,
        }
        self.head = nn.Linear(columns[config.readout], outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> MixerFusion:
        """See `LateFusion.build`; any widths fit."""
        steps = []
        for shape in spec.shapes.values():
            if len(shape) == 2:
                steps.append(shape[0])
        if config.length is None:
            length = min(steps, default=1)
        else:
            length = config.length
        return cls(config, widths, length, spec.task.outputs)

    def block(self, modality: str) -> slice:
        """All columns: every slice of the mixed tensor has seen all modalities."""
        return slice(0, self.head.in_features)

    def hidden(self, features: Features) -> Tensor:
        return self._read(self._mixed(self._tensor(features)))

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See the module docstring. With `zero` all modalities run as one batch."""
        x = self._tensor(features)
        if path == "mask":
            out = {}
            for place, m in enumerate(self.modalities):
                mixed = self._mixed(x[:, :, place : place + 1], place)
                out[m] = self._read(mixed, place)
            return out

        count = len(self.modalities)
        own = torch.eye(count, dtype=torch.bool, device=x.device)[:, None, None, :, None]
        alone = torch.where(own, x, torch.zeros_like(x)).flatten(0, 1)
        hidden = self._read(self._mixed(alone)).chunk(count)
        return dict(zip(self.modalities, hidden, strict=True))

    def _tensor(self, features: Features) -> Tensor:
        """[B, L, M, D]."""
        slices = []
        for m in self.modalities:
            x = binned(features[m], self.length)
            slices.append(self.project[m](x) if m in self.project else x)
        return torch.stack(slices, MODALITY)

    def _mixed(self, x: Tensor, only: int | None = None) -> Tensor:
        """All blocks. only: the modality whose slice alone x has."""
        if only is None:
            kept = slice(None)
        else:
            kept = slice(only, only + 1)
        for mix in self.mixes:
            x = mix(x, kept) if mix.axis == MODALITY else mix(x)
        return x

    def _read(self, x: Tensor, only: int | None = None) -> Tensor:
        """[B, H] of the mixed tensor, with zeros for what it has not."""
        if self.readout == "mean":
            return x.mean((TIME, MODALITY))
        if only is not None:
            x = functional.pad(x, (0, 0, only, len(self.modalities) - only - 1))
        return (x.mean(TIME) if self.readout == "concat" else x).flatten(1)


def binned(x: Padded, length: int) -> Tensor:
    """[B, length, W] of a sequence [B, T, W], averaged over the real steps of each bin, or of a
    vector [B, W].

    What lies behind the mask is not read, whatever it is (NaN included).
    """
    if x.value.dim() == 2:
        return x.value[:, None].expand(-1, length, -1)
    steps = x.value.shape[1]
    if x.mask is None:
        value = x.value
    else:
        value = x.value.masked_fill(~x.mask[..., None], 0.0)
    if steps == length:
        return value
    member = _bins(steps, length, value.device).to(value.dtype)
    if x.mask is None:
        real = member.sum(1)
    else:
        real = x.mask.to(value.dtype) @ member.transpose(0, 1)
    return (member @ value) / real.clamp(min=1)[..., None]


def _bins(steps: int, length: int, device: torch.device) -> Tensor:
    """bool [length, steps]: whether a step lies in a bin."""
    bins = torch.arange(length, device=device)[:, None]
    step = torch.arange(steps, device=device)
    first = bins * steps // length
    end = -(-(bins + 1) * steps // length)  # rounded up
    return (step >= first) & (step < end)


plugin = MixerFusion
