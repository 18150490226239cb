"""Disentangled Gradient Learning.

Paper
    DGL, ICCV 2025, Sec. 3.2, Eqs. 6-9; ablations in Tables 3 and 4.
Idea
    Encoders learn from their own unimodal losses, the fusion from the multimodal loss, and neither
    sees the other's.
Equations
    h_m = phi_m(x_m)
    L_d = loss(f(Omega(sg(h_1) .. sg(h_M))), y)             gradient truncated between fusion and encoders (MT)
    L_m = loss(sg_params(f o Omega)(0 .. h_m .. 0), y)      unimodal gradient truncated at the fusion (UT)
    L = L_d + alpha * sum_m L_m                             so d/d phi_m = alpha dL_m, d/d(Omega, f) = dL_d
Deviations
    * The paper (and its code) backpropagates twice and clears the fusion's gradient in between;
      here two stop-gradients make it one backward pass with the same gradients (for dense
      predictions one per loss, to hold less at a time).
    * Public code clips the gradient at norm 40, which the paper does not mention: `optim.clip`.
    * Public code takes unimodal logits of sum fusion without the other modalities' biases and feeds
      gated fusion with the feature itself; here, as the paper says, the others' features are 0
      (`unimodal_path: zero`). Zeroed tokens still take part in attention, hence `unimodal_path:
      mask`, which leaves them out; without attention they agree. In an outer product zeros leave no
      gradient at all: `self` (the modality with itself, as the code does) works.
    * Where a fusion steps through the encoders' stages (MMTM) "detach the features" says too
      little: there the encoders learn from L_m alone and the fusion's own parameters from L_d
      alone, by groups of parameters (equal elsewhere).
    * BatchNorm in a fusion, or in encoders that it steps through, keeps running statistics of the
      multimodal pass only, with which the multimodal prediction is made. The paper does not say.
    * Table 3's cells: `truncate_multimodal` (MT) and `truncate_unimodal` (UT). The paper's baseline
      cell has no unimodal loss at all, which is `alpha: 0` with both off (equal to the method
      `joint`).
Shapes
    Features [B, T, W] or [B, W] (or maps [B, T, C, H, W]) per modality, any number of modalities;
    logits [B, C].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import grads
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, Features, PathChoice, Tensors


class DGLConfig(Section):
    """Defaults: the paper's on CREMA-D."""

    name: Literal["dgl"] = "dgl"
    # Weight of the unimodal losses (published 1 to 5, best 4 on CREMA-D).
    alpha: float = Field(4.0, ge=0)
    # Whether the multimodal loss is kept from the encoders.
    truncate_multimodal: bool = True
    # Whether the unimodal losses are kept from the fusion.
    truncate_unimodal: bool = True
    # What stands for the other modalities (auto: the fusion's own default).
    unimodal_path: PathChoice = "zero"


class DGL(Method):
    """Disentangled Gradient Learning: see the module docstring."""

    Config = DGLConfig
    config: DGLConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {
        "alpha": 0.0,
        "truncate_multimodal": False,
        "truncate_unimodal": False,
    }
    support = Support(tasks=TASKS, cost="a pass of the fusion per modality, forward and back")
    separable = True

    @classmethod
    def settings_for_tests(cls, modalities: Sequence[str], fusion: str) -> Mapping[str, Any]:
        return {"unimodal_path": "auto"}  # not every fusion has the default one

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        features = net.encode(batch.inputs)
        if self.config.truncate_unimodal:
            learning = net.stop("fusion")
        else:
            learning = net
        alone = learning.unimodal(features, self.unimodal_path)
        losses = {}
        for m, z in alone.items():
            losses[m] = net.loss(z, batch.target)
        joint = net.loss(self._fused(net, features), batch.target)  # L_d
        return total(joint, losses, hp)

    def _fused(self, net: Net, features: Features) -> Tensor:
        """Logits of L_d."""
        if self.config.truncate_multimodal:
            return net.stop("encoders").fuse({m: f.detach() for m, f in features.items()})
        return net.fuse(features)

    def gradient(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensors, Tensor, Tensors]:
        """As of any method. Where pixels are predicted one loss after the other: every parameter
        learns from one of them, and the maps of one pass are then in memory at a time.
        """
        disentangled = self.config.truncate_multimodal and self.config.truncate_unimodal
        zeros = net.path(self.unimodal_path) == "zero"
        if net.functional or net.task.kind != "segmentation" or not disentangled or not zeros:
            return super().gradient(net, batch, hp, state, clock)

        features = net.encode(batch.inputs)
        stopped = net.stop("fusion").apart()
        found: Tensors = {}
        losses: Tensors = {}
        for m in net.modalities:
            others = features.keys() - {m}
            loss = net.loss(stopped.head(stopped.hidden(features, others)), batch.target)
            found |= grads.of(hp["alpha"] * loss, net.group(f"encoders.{m}"))
            features[m] = features[m].detach()
            losses[m] = loss.detach()
            del loss
        joint = net.loss(self._fused(net, features), batch.target)
        found |= grads.of(joint, net.group("fusion"))
        return found, *total(joint.detach(), losses, hp)


def total(joint: Tensor, alone: Tensors, hp: Tensors) -> tuple[Tensor, Tensors]:
    """L = L_d + alpha sum_m L_m (Eq. 9) of L_d and L_m by modality, and the logs."""
    logs = {"train/loss_multi": joint}
    for m, loss in alone.items():
        logs[f"train/loss/{m}"] = loss
    unimodal = torch.stack(list(alone.values())).sum()
    return joint + hp["alpha"] * unimodal, logs


plugin = DGL
