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
TIME, MODALITY, CHANNEL = 1, 2, 3


class MixerConfig(Section):
    """blocks: of three MLPs each. factor: hidden units of an MLP per unit of its axis; hidden:
    their numbers along time, modalities and channels, instead (null: by `factor`).

    length: L (null: that of the shortest sequence, 1 where all are vectors). width: D (null: the
    features' width; the widest where they differ); features of another width pass a linear map
    without bias. dropout: after each MLP. readout: the mean over steps and modalities, the mean
    over steps with modalities side by side, or all of the tensor.
    """

    name: Literal["mixer"] = "mixer"
    blocks: int = Field(2, ge=1)
    factor: float = Field(1.0, gt=0)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=3, max_length=3)
    length: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
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
        self.axis, self.dropout = axis, dropout
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor, only: slice = slice(None)) -> Tensor:
        """only: the places along the axis that x has, out of all that the layers know."""
        inner = functional.gelu(
            functional.linear(
                self.norm(x).movedim(self.axis, -1), self.up.weight[:, only], self.up.bias
            )
        )
        mixed = functional.linear(inner, self.down.weight[only], self.down.bias[only]).movedim(
            -1, self.axis
        )
        return add_dropped(x, mixed, self.dropout if self.training else 0.0)


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
        width = max(widths.values()) if config.width is None else config.width
        self.modalities, self.length, self.readout = tuple(widths), length, config.readout
        self.project = nn.ModuleDict(
            {m: nn.Linear(w, width, bias=False) for m, w in widths.items() if w != width}
        )
        sizes = (length, len(widths), width)
        hidden = config.hidden or tuple(max(1, round(config.factor * size)) for size in sizes)
        axes = tuple(zip((TIME, MODALITY, CHANNEL), sizes, hidden, strict=True))
        self.mixes = nn.ModuleList(
            Mix(*axis, width, config.dropout) for _ in range(config.blocks) for axis in axes
        )
        columns = {
            "mean": width,
            "concat": len(widths) * width,
            "flatten": length * len(widths) * width,
        }
        self.head = nn.Linear(columns[config.readout], outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> MixerFusion:
        """See `LateFusion.build`; any widths fit."""
        steps = [shape[0] for shape in spec.shapes.values() if len(shape) == 2]
        length = min(steps, default=1) if config.length is None else config.length
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
            return {
                m: self._read(self._mixed(x[:, :, k : k + 1], k), k)
                for k, m in enumerate(self.modalities)
            }
        own = torch.eye(len(self.modalities), dtype=torch.bool, device=x.device)[
            :, None, None, :, None
        ]
        alone = torch.where(own, x, torch.zeros_like(x)).flatten(0, 1)
        return dict(
            zip(
                self.modalities,
                self._read(self._mixed(alone)).chunk(len(self.modalities)),
                strict=True,
            )
        )

    def _tensor(self, features: Features) -> Tensor:
        """[B, L, M, D]."""
        slices = []
        for m in self.modalities:
            x = binned(features[m], self.length)
            slices.append(self.project[m](x) if m in self.project else x)
        return torch.stack(slices, MODALITY)

    def _mixed(self, x: Tensor, only: int | None = None) -> Tensor:
        """All blocks. only: the modality whose slice alone x has."""
        kept = slice(None) if only is None else slice(only, only + 1)
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
    value = x.value if x.mask is None else x.value.masked_fill(~x.mask[..., None], 0.0)
    if steps == length:
        return value
    member = _bins(steps, length, value.device).to(value.dtype)
    real = member.sum(1) if x.mask is None else x.mask.to(value.dtype) @ member.transpose(0, 1)
    return (member @ value) / real.clamp(min=1)[..., None]


def _bins(steps: int, length: int, device: torch.device) -> Tensor:
    """bool [length, steps]: whether a step lies in a bin."""
    bins, step = torch.arange(length, device=device)[:, None], torch.arange(steps, device=device)
    return (step >= bins * steps // length) & (step < -(-(bins + 1) * steps // length))


plugin = MixerFusion
