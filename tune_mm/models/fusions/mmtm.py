"""MMTM: the modalities' maps, multiplied by gates that depend on all of them, at several stages of
the encoders.

Source: Joze et al., Multimodal Transfer Module, CVPR 2020, Eqs. 2-5; used in Greedy (ICML 2022) and
DGL (ICCV 2025).

    s_m = mean over frames and positions of the maps A_m          [B, C_m]
    E   = ReLU(W_s [s_1 .. s_M] + b_s)                            [B, int(2 (C_1 + .. + C_M) / ratio)]
    A_m <- scale * sigmoid(W_m E + b_m) * A_m
    hidden = the encoders' pooled features, side by side          [B, sum of W_m]

Any number of modalities takes part: W_s reads all squeezes and each modality has gates of its own.

Zeroing takes a modality away from where the encoders first meet: its squeeze is 0 at every
exchange, its later stages do not run, and its columns of hidden are 0. The modality that is left
still passes the gates, which then depend on it alone, and its own later stages; all of its encoder
gets gradient.

Deviations
    * The paper multiplies the gates by 2 (`scale: 2`), the public code of Greedy and DGL by 1
      (`scale: 1`).
    * `ratio` is 4 in the paper and in Greedy's code, 2 in DGL's.
    * DGL's code pushes the absent modality's zeros through its later stages and gives both branches
      the first one's late layers; here an absent modality takes no part, and every modality has
      layers of its own.
    * BatchNorm in the stages after the first exchange sees one pass of each modality alone besides
      the joint one, as in that code; its running statistics hold both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features, Padded
from tune_mm.models.base import Encoder, StagedEncoder, StagedFusion
from tune_mm.models.maps import average

FACTOR = 2

# What to use instead of a gate [B, C_m], given the stage's number and the modality: how a method
# looks at gates, or holds them.
GateHook = Callable[[int, str, Tensor], Tensor]


class MmtmConfig(Section):
    """`ratio` and `scale` default to the paper's; others are under Deviations."""

    name: Literal["mmtm"] = "mmtm"
    # Encoder stages (from 1) after which the modalities exchange, in rising order.
    stages: tuple[Annotated[int, Field(ge=1)], ...] = Field((2, 3, 4), min_length=1)
    # How much the squeeze is narrowed.
    ratio: float = Field(4.0, gt=0)
    # Factor on the gates.
    scale: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _stages_rise(self) -> MmtmConfig:
        if any(a >= b for a, b in pairwise(self.stages)):
            raise ValueError(f"stages must rise, got {list(self.stages)}")
        return self


class Exchange(nn.Module):
    """Gates on the maps [B, T, C_m, H, W] of all modalities at one stage. channels: C_m. width: of
    E.
    """

    def __init__(self, channels: Mapping[str, int], width: int, scale: float) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.scale = scale
        self.squeeze = nn.Linear(sum(channels.values()), width)
        self.gates = nn.ModuleDict({m: nn.Linear(width, c) for m, c in channels.items()})

    def forward(
        self, maps: Mapping[str, Padded], hook: Callable[[str, Tensor], Tensor] | None = None
    ) -> dict[str, Padded]:
        """`maps` gated; a modality without maps has a squeeze of 0. hook: see `GateHook`."""
        like = next(iter(maps.values())).value
        squeezed = []
        for m, channels in self.channels.items():
            if m in maps:
                squeezed.append(average(maps[m]))
            else:
                squeezed.append(like.new_zeros(like.shape[0], channels))
        excited = functional.relu(self.squeeze(torch.cat(squeezed, 1)))  # E
        out = {}
        for m, x in maps.items():
            gate = self.scale * self.gates[m](excited).sigmoid()
            if hook is not None:
                gate = hook(m, gate)
            out[m] = Padded(x.value * gate[:, None, :, None, None], x.mask)
        return out


class MmtmFusion(StagedFusion):
    """Maps [B, T, C_m, H_m, W_m] after stage `stages[0]` -> hidden [B, sum of the encoders'
    widths].
    """

    Config = MmtmConfig

    def __init__(
        self, config: MmtmConfig, encoders: Mapping[str, StagedEncoder], outputs: int
    ) -> None:
        super().__init__()
        self.widths = {m: e.width for m, e in encoders.items()}
        self.blocks = {}
        total = 0
        for m, width in self.widths.items():
            self.blocks[m] = slice(total, total + width)
            total += width
        self.first = config.stages[0]
        self.exchanges = nn.ModuleDict()
        for number in config.stages:
            channels = {m: e.channels[number - 1] for m, e in encoders.items()}
            narrow = _narrow(channels, config.ratio)
            self.exchanges[str(number)] = Exchange(channels, narrow, config.scale)
        self.head = nn.Linear(total, outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Encoder]) -> MmtmFusion:
        """See `StagedFusion.build`. Raises ValueError for encoders without such stages and for too
        high a ratio.
        """
        staged: dict[str, StagedEncoder] = {}
        for m, encoder in encoders.items():
            if not isinstance(encoder, StagedEncoder):
                raise ValueError(
                    "the mmtm fusion needs encoders in stages (cnn, resnet18), "
                    f"which that of '{m}' is not"
                )
            last = len(encoder.channels)
            if config.stages[-1] > last:
                raise ValueError(
                    f"stages: no stage {config.stages[-1]}; the encoder of '{m}' has stages 1 to {last}"
                )
            staged[m] = encoder
        fusion = cls(config, staged, spec.task.outputs)
        for encoder in staged.values():
            encoder.until = fusion.first
        return fusion

    def block(self, modality: str) -> slice:
        return self.blocks[modality]

    def hidden(
        self,
        encoders: Mapping[str, StagedEncoder],
        features: Features,
        absent: Collection[str] = (),
        hook: GateHook | None = None,
    ) -> Tensor:
        """See `StagedFusion.hidden`. hook: see `GateHook`."""
        maps = {m: features[m] for m in self.widths if m not in absent}
        last = max(len(encoders[m].channels) for m in self.widths)
        for number in range(self.first, last + 1):
            if number > self.first:
                maps = _after_stage(encoders, number, maps)
            if maps and str(number) in self.exchanges:
                gate = None if hook is None else partial(hook, number)
                maps = self.exchanges[str(number)](maps, gate)

        like = features[next(iter(self.widths))].value
        parts = []
        for m, width in self.widths.items():
            if m in maps:
                parts.append(encoders[m].pool(maps[m]).value)
            else:
                parts.append(like.new_zeros(like.shape[0], width))
        return torch.cat(parts, 1)


def _after_stage(encoders: Mapping[str, StagedEncoder], number: int, maps: Features) -> Features:
    """Maps after a stage; an encoder without it leaves them as they are."""
    out = dict(maps)
    for m, x in maps.items():
        if number <= len(encoders[m].channels):
            out[m] = encoders[m].stage(number, x)
    return out


def _narrow(channels: Mapping[str, int], ratio: float) -> int:
    """The width of E. Raises ValueError where it would be 0."""
    total = sum(channels.values())
    width = int(FACTOR * total / ratio)
    if width < 1:
        raise ValueError(
            f"ratio: must be at most {FACTOR * total} with {total} channels at a stage, got {ratio:g}"
        )
    return width


plugin = MmtmFusion
