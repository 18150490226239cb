"""Uni-Modal Ensemble: models of one modality each, trained apart, whose logits are averaged.

Paper
    UME (Du et al., ICML 2023, "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning"),
    Sec. 4.
Idea
    Where features of paired modalities add little, no joint training is better than any.
Equations
    L = sum_m loss(z_m, y),  z_m = W_m h_m + b;  prediction: sum_m w_m z_m with sum_m w_m = 1
Deviations
    * The paper trains M models one after the other and averages them afterwards; here they are
      trained side by side in one run, so that an epoch of it can be compared with an epoch of any
      method. No term of L has parameters of two modalities, so each model's gradient, and every
      step of it, is that of its own training. Therefore the fusion is `sum`, whose head is one
      block W_m per modality, and its bias b, which all have in common, stays as it was initialised.
      The gradient's norm is the one thing in common: with `optim.clip` a large gradient of one
      modality shortens the steps of all.
    * The paper averages; `weights` weigh the modalities, and may be searched
      (`method.weights.<modality>`).
Shapes
    Features [B, T, W_m] or [B, W_m], two modalities or more; logits [B, C]; state `weights` [M].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import Support, require_modalities
from tune_mm.core.types import Batch, Clock, DataSpec, Inputs, PathChoice, Tensors, Update
from tune_mm.methods import _late


class UMEConfig(Section):
    """weights: of the modalities in the prediction, relative to each other."""

    name: Literal["ume"] = "ume"
    weights: _late.Weights = Field(default_factory=dict)


class UME(Method):
    """Uni-Modal Ensemble: see the module docstring."""

    Config = UMEConfig
    config: UMEConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "it trains no fusion"
    support = Support(least=2, fusions=("sum",), cost="none")
    separable = True
    unimodal_path: PathChoice = "zero"

    def trains(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        return (*(f"encoders.{m}" for m in modalities), "fusion.head.weight")

    def spec(self, spec: DataSpec) -> DataSpec:
        """See `Method.spec`: not with weights of unknown modalities."""
        require_modalities("weights", self.value("weights"), spec)
        return spec

    def init(self, net: Net, start: Start) -> Tensors:
        like = net.params["fusion.head.weight"]
        return {"weights": _late.shares(self.value("weights"), net.modalities, like)}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        alone = net.unimodal(net.encode(batch.inputs), self.unimodal_path)
        logs: Tensors = {}
        for m, z in alone.items():
            logs[f"train/loss/{m}"] = net.loss(z, batch.target)
        return torch.stack(list(logs.values())).sum(), logs

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        weights = _late.shares(_late.given(hp), net.modalities, state["weights"])
        return Update(update.grads, update.loss, update.logs, {"weights": weights})

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        alone = net.unimodal(net.encode(inputs), self.unimodal_path)
        return {"joint": _late.weighted(alone, state["weights"]), **alone}


plugin = UME
