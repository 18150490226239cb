"""Quality-aware Multimodal Fusion.

Paper
    Zhang et al., Provable Dynamic Fusion for Low-Quality Multimodal Data, ICML 2023 (QMF).
Idea
    Each modality's logits are weighted, sample by sample, by a confidence (the energy of the
    logits) that is trained to be low for the samples on which that modality has had a high loss.
Equations
    z_m = W_m h_m + b                                     logits of each modality alone
    c_m = logsumexp(z_m) / T                              confidence
    z = sum_m sg(c_m) z_m                                 the prediction
    k_m[i] <- k_m[i] + loss(z_m, y)_i                     history by training sample, scaled to [0, 1] over all of them
    R_m = mean over neighbours i, j in the batch of  max(0, sign(k_i - k_j) (c_i - c_j) + |k_i - k_j|)
    L = loss(z, y) + sum_m loss(z_m, y) + rank * sum_m R_m
Deviations
    * `margin: released`: public code adds the margin to the other sample's confidence before it
      turns the target's sign round, which makes it a tolerance: max(0, sign (c_i - c_j) - |k_i -
      k_j|). `required` is the ranking loss that it is taken from (Moon et al., ICML 2020).
    * `detach`: public code stops the gradient of the confidences in z for text and image and not
      for RGB-D.
    * Scaling divides by the range of the histories: 0/0 in public code while all are equal. Here
      they are then all 0, and a pair of equal ones costs nothing.
    * Public code weighs the ranking loss 1, MLA's port 0.1: `rank`.
    * Public code gives each modality a bias of its own; here the head's bias is shared (concat and
      sum fusion), and so is the head in the shared_head fusion. More than two modalities: the same
      sums.
Shapes
    Logits [M, B, C]; confidences [M, B]; state `history` [M, N], N training samples. Classification
    only (an energy is defined over classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import losses
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import Support
from tune_mm.core.types import Batch, Clock, Inputs, Tensors, Update

OWN = "own losses"  # what `loss` hands to `edit`: not a figure to log


class QMFConfig(Section):
    """How confidences weigh the modalities."""

    name: Literal["qmf"] = "qmf"
    # T, which divides the energies.
    temperature: float = Field(10.0, gt=0)
    # Weight of the ranking loss.
    rank: float = Field(1.0, ge=0)
    # Whether the fused prediction's weights pass no gradient.
    detach: bool = True
    # Whether the ranking loss asks for its margin, or tolerates as much.
    margin: Literal["required", "released"] = "required"


def confidence(logits: Tensor, temperature: Tensor) -> Tensor:
    """[M, B] of logits [M, B, C]."""
    return torch.logsumexp(logits, -1) / temperature


def fused(logits: Tensor, weights: Tensor) -> Tensor:
    """[B, C]: the sum of logits [M, B, C] with weights [M, B]."""
    return (weights[..., None] * logits).sum(0)


def scaled(history: Tensor) -> Tensor:
    """[M, N]: each row from 0 to 1; a row of equal values is 0."""
    low = history.amin(-1, keepdim=True)
    span = history.amax(-1, keepdim=True) - low
    divisor = torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(span > 0, (history - low) / divisor, 0.0)


def ranking(confidences: Tensor, history: Tensor, sign: float = 1.0) -> Tensor:
    """R_m [M] of confidences and scaled histories [M, B]: each sample against the next, the last
    against the first.

    sign: 1, the margin is required; -1, it is a tolerance.
    """
    gap = history - history.roll(-1, -1)
    rise = confidences - confidences.roll(-1, -1)
    short = gap.sign() * rise + sign * gap.abs()
    return short.clamp(min=0).mean(-1)


class QMF(Method):
    """Quality-aware Multimodal Fusion: see the module docstring."""

    Config = QMFConfig
    config: QMFConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "its prediction is a sum weighted by confidences"
    support = Support(least=2, tasks=("classification",), fusions=("concat", "sum", "shared_head"))
    linear: ClassVar[bool] = False

    def init(self, net: Net, start: Start) -> Tensors:
        like = next(iter(net.params.values()))
        rows = len(net.modalities)
        history = torch.zeros(rows, start.samples, dtype=like.dtype, device=like.device)
        return {"history": history}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        logits = self._logits(net, batch.inputs)
        trust = confidence(logits, hp["temperature"])
        weights = trust.detach() if self.config.detach else trust
        joint = net.loss(fused(logits, weights), batch.target)
        own = torch.stack([losses.per_sample(net.task, z, batch.target) for z in logits])
        history = scaled(self._history(state, batch, own.detach()))[:, batch.index]
        rank = ranking(trust, history, 1.0 if self.config.margin == "required" else -1.0)
        logs = {"train/loss_multi": joint, "train/loss_rank": rank.sum(), OWN: own}
        for i, m in enumerate(net.modalities):
            logs[f"train/loss/{m}"] = own[i].mean()
            logs[f"balance/{m}"] = trust[i].mean()
        return joint + own.mean(-1).sum() + hp["rank"] * rank.sum(), logs

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        logs = dict(update.logs)
        history = self._history(state, batch, logs.pop(OWN))
        return Update(update.grads, update.loss, logs, {"history": history})

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        """`joint` is the weighted sum, which the fusion's own head does not give."""
        logits = self._logits(net, inputs)
        temperature = torch.as_tensor(
            self.value("temperature"), dtype=logits.dtype, device=logits.device
        )
        joint = fused(logits, confidence(logits, temperature))
        return {"joint": joint, **dict(zip(net.modalities, logits, strict=True))}

    def _logits(self, net: Net, inputs: Inputs) -> Tensor:
        """[M, B, C]: each modality alone."""
        alone = net.unimodal(net.encode(inputs), self.unimodal_path)
        return torch.stack(list(alone.values()))

    def _history(self, state: Tensors, batch: Batch, own: Tensor) -> Tensor:
        """The histories with this batch's losses [M, B] added."""
        return state["history"].index_add(1, batch.index, own.to(state["history"].dtype))


plugin = QMF
