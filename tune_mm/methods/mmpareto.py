"""MMPareto: unimodal losses that assist the multimodal one without conflict.

Paper
    MMPareto, Wei & Hu, ICML 2024, Sec. 3.2-3.3, Algorithm 1; compared with in DGL (ICCV 2025)
    Tables 1-2.
Idea
    Each encoder has two objectives, the multimodal loss and its own. Where their gradients
    conflict, the common descent direction of smallest norm is taken, and given back the length
    (times gamma) that SGD's noise needs.
Equations
    g, u = gradient of the multimodal loss L, of the unimodal loss L_m, for encoder m
    a    = 1/2 where g . u >= 0, else argmin over a in [0, 1] of |a g + (1-a) u|,
           which is (u - g) . u / |u - g|^2 kept in [0, 1]                              (two objectives: closed form)
    d    = 2 a g + 2 (1-a) u
    gradient of encoder m <- gamma d max(1, |g + u| / |d|)
    gradient of the fusion and the heads <- that of L + sum_m L_m
Deviations
    * The formula reads as one norm per encoder (`rescale: encoder`); public code rescales parameter
      tensor by parameter tensor (`rescale: tensor`). The weights a are the encoder's in both.
    * `heads: own` gives each modality a linear head for L_m, as published. `heads: fusion` takes
      the modality alone through the fusion (`unimodal_path`; zeros: as DGL compares it on dense
      fusions), whose parameters then learn from L_m too. With a fusion that runs the encoders'
      later stages (MMTM) only `fusion` reaches all of an encoder.
    * Public code backpropagates once per loss and once more for their sum. Modalities' losses do
      not share encoders, so that two backward passes give the same gradients.
    * Where d is 0 but for rounding (|d| < 1e-6 |g + u|: no direction serves both) it is not
      rescaled.
    * The length matters for SGD; Adam divides a steady gamma out again.
Shapes
    Features [B, T, W] or [B, W] (or maps [B, T, C, H, W]) per modality, two or more; logits [B, C].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import grads
from tune_mm.core.net import Net, owned
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, PathChoice, Tensors, Update
from tune_mm.methods._heads import WithHeads

STATIONARY = 1e-6


class MMParetoConfig(Section):
    """Settings of the method."""

    name: Literal["mmpareto"] = "mmpareto"
    # Factor on the length of the encoders' gradients (published 1.5).
    gamma: float = Field(1.5, gt=0)
    # Whether an encoder's gradient is lengthened as a whole, or each tensor's by itself.
    rescale: Literal["encoder", "tensor"] = "encoder"
    # Heads of the unimodal losses: of their own, or the fusion's.
    heads: Literal["own", "fusion"] = "own"
    # What stands for the other modalities (auto: the fusion's own default).
    unimodal_path: PathChoice = "auto"


def min_norm(g: Tensor, u: Tensor) -> Tensor:
    """a (0-dim) of the shortest a g + (1-a) u with a in [0, 1]; 1/2 where g and u [P] do not
    conflict.
    """
    difference = u - g
    apart = difference.square().sum()
    tiny = torch.finfo(apart.dtype).tiny
    a = ((difference @ u) / apart.clamp(min=tiny)).clamp(0, 1)
    return torch.where(g @ u >= 0, torch.full_like(a, 0.5), a)


def rescaled(d: Tensor, plain: Tensor, gamma: Tensor) -> Tensor:
    """gamma d, lengthened to gamma |plain| where it is shorter (and not 0 but for rounding). d,
    plain of one shape.
    """
    length = d.norm()
    least = plain.norm()
    grown = least / length.clamp(min=torch.finfo(d.dtype).tiny)
    short = (length < least) & (length >= STATIONARY * least)
    factor = torch.where(short, grown, torch.ones_like(grown))
    return gamma.to(d.dtype) * factor * d


class MMPareto(WithHeads):
    """MMPareto: see the module docstring."""

    Config = MMParetoConfig
    config: MMParetoConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "its encoders always learn from their unimodal losses too"
    support = Support(least=2, tasks=TASKS, cost="a second backward pass")

    def grads(self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock) -> Update:
        def objectives(bound: Net) -> tuple[Tensor, Tensors]:
            features = bound.encode(batch.inputs)
            own = {m: bound.loss(z, batch.target) for m, z in self.alone(bound, features).items()}
            joint = bound.loss(bound.fuse(features), batch.target)
            logs = {"train/loss_multi": joint}
            for m, loss in own.items():
                logs[f"train/loss/{m}"] = loss
            alone = torch.stack(list(own.values())).sum()
            return torch.stack([joint, alone]), logs

        (multi, uni), losses, logs = grads.gradients(objectives, net, self.trained(net))
        found = {name: g + uni[name] for name, g in multi.items()}
        for m in net.modalities:
            names = [n for n in multi if owned(n, f"encoders.{m}")]
            own_multi = {n: multi[n] for n in names}
            own_uni = {n: uni[n] for n in names}
            new, weight = self._encoder(own_multi, own_uni, hp["gamma"])
            found.update(new)
            logs[f"balance/{m}"] = weight
        return Update(found, losses.sum(), logs, state)

    def _encoder(self, multi: Tensors, uni: Tensors, gamma: Tensor) -> tuple[Tensors, Tensor]:
        """An encoder's new gradients, and the multimodal loss's weight a."""
        g = grads.flat(multi, multi)
        u = grads.flat(uni, multi)
        a = min_norm(g, u)

        def combined(from_multi: Tensor, from_uni: Tensor) -> Tensor:
            mixed = 2 * a * from_multi + 2 * (1 - a) * from_uni
            return rescaled(mixed, from_multi + from_uni, gamma)

        if self.config.rescale == "encoder":
            return grads.unflat(combined(g, u), multi, multi), a
        return {n: combined(multi[n], uni[n]) for n in multi}, a


plugin = MMPareto
