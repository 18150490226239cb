"""On-the-fly Gradient Modulation, with or without Generalisation Enhancement (OGM-GE, OGM).

Paper
    OGM-GE, Peng et al., CVPR 2022, Sec. 3.2-3.3; compared with in DGL (ICCV 2025) Tables 1-2 and
    CGGM (NeurIPS 2024).
Idea
    The encoder of the modality that is ahead gets a smaller gradient; noise as large as the
    gradient's spread makes up for the generalisation that SGD's noise loses by it.
Equations
    s_m   = sum over the batch of softmax(z_m)[y]              z_m: logits of modality m alone
    rho_m = s_m / s_k                                          two modalities m, k
    k_m   = 1 - tanh(alpha rho_m) where rho_m > 1, else 1
    gradient of encoder m <- k_m * gradient of encoder m + N(0, variance of the gradient's elements)     (GE: the noise)
Deviations
    * `noise`: true is OGM-GE, false is OGM. The noise is drawn per parameter tensor, with the
      standard deviation of the unscaled gradient, and also for the modality with k = 1, as in the
      public code.
    * Public code touches weights of convolutions only (4-D tensors); the paper whole encoders:
      `conv_only`.
    * Unimodal logits. Public code gives a modality its half of the head and, for concatenation,
      half of the bias; here it passes the fusion alone with the whole bias (`unimodal_path`; zeros:
      as DGL compares OGM on dense fusions). Where that needs later stages of an encoder (MMTM,
      ESANet), BatchNorm uses its running statistics.
    * More than two modalities (not in the paper): rho_m is the mean over k of s_m / s_k, as the
      authors suggest.
    * Regression (not in the paper): s_m = sum exp(-loss of the sample), which for cross-entropy is
      softmax(z_m)[y].
    * Segmentation (not in the paper): of a sample the mean of softmax(z_m)[y] over its known
      pixels, without the classes' weights; 0 where none is known.
    * The window is `start` to `end` in fractions of the epochs; published: all of it, or the first
      half.
    * The theory is SGD's; Adam divides most of a steady k_m out again.
Shapes
    Features [B, T, W] or [B, W] (or maps [B, T, C, H, W]) per modality, two or more; logits [B, C]
    or [B, C, H, W]; scores [M].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import losses
from tune_mm.core.method import Method
from tune_mm.core.net import Net, owned
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, Features, PathChoice, Task, Tensors, Update

TINY = 1e-8
SETTLING = 0.05  # of the epochs, after an edge of the window


class OGMConfig(Section):
    """Defaults: within what is published."""

    name: Literal["ogm"] = "ogm"
    # Strength (published 0.1 to 0.8; 2.6 with AdamW).
    alpha: float = Field(0.8, ge=0)
    # Generalisation enhancement: true is OGM-GE, false is OGM.
    noise: bool = True
    # Whether weights of convolutions alone are modulated, as in the public code.
    conv_only: bool = False
    # Where the modulation begins, as a fraction of the epochs.
    start: float = Field(0.0, ge=0, le=1)
    # Where it ends, as a fraction of the epochs; greater than `start`.
    end: float = Field(0.5, ge=0, le=1)
    # What stands for the other modalities (auto: the fusion's own default).
    unimodal_path: PathChoice = "auto"

    @model_validator(mode="after")
    def _window(self) -> OGMConfig:
        if self.end <= self.start:
            raise ValueError(f"end must be greater than start ({self.start:g}), got {self.end:g}")
        return self


def score(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """How well each sample is predicted [B], in [0, 1], from logits [B, C] or [B, C, H, W]: the
    terms of s_m.
    """
    if task.kind != "segmentation":
        return (-losses.per_sample(task, logits, target)).exp()
    known = target < task.outputs
    label = torch.where(known, target, 0)[:, None]
    probabilities = torch.softmax(losses.precise(logits), 1)
    right = probabilities.gather(1, label)[:, 0]
    pixels = known.sum((1, 2)).clamp(min=1)
    return (right * known).sum((1, 2)) / pixels


def ratios(scores: Tensor) -> Tensor:
    """rho [M]: each score over each other one, averaged over the others. scores [M], positive, M >=
    2.
    """
    count = len(scores)
    pairs = scores[:, None] / scores[None, :].clamp(min=TINY)
    return (pairs.sum(1) - pairs.diagonal()) / (count - 1)


def coefficients(ratio: Tensor, alpha: Tensor) -> Tensor:
    """k [M] of rho [M]; 0-dim alpha."""
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), torch.ones_like(ratio))


def spread(gradient: Tensor) -> Tensor:
    """Standard deviation of a gradient's elements (0-dim; 0 for one element)."""
    return gradient.std(correction=1 if gradient.numel() > 1 else 0)


class OGM(Method):
    """On-the-fly Gradient Modulation: see the module docstring."""

    Config = OGMConfig
    config: OGMConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0, "noise": False}
    deterministic: ClassVar[Mapping[str, Any]] = {"noise": False}
    support = Support(least=2, tasks=TASKS, cost="a forward pass of the fusion per modality")

    def check(self, net: Net) -> None:
        """`conv_only` needs encoders with convolutions: those without would be left out of the
        balance.
        """
        for m in net.modalities if self.config.conv_only else ():
            if not any(p.ndim == 4 for p in net.group(f"encoders.{m}").values()):
                raise ValueError(
                    f"conv_only: must be false, got true: the encoder of '{m}' has no convolutions"
                )

    def dips(self, epochs: int) -> tuple[tuple[int, int], ...]:
        """Just after the modulation sets in or ends within the run: the encoders' steps change in
        size at once.
        """
        length = max(1, round(SETTLING * epochs))
        edges = []
        for edge in (self.value("start"), self.value("end")):
            edges.append(round(edge * epochs))
        return tuple((edge + 1, min(edge + length, epochs)) for edge in edges if 0 < edge < epochs)

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        features = net.encode(batch.inputs)
        joint = net.loss(net.fuse(features), batch.target)
        alone = self._alone(net, features)
        scores = torch.stack([score(net.task, z, batch.target).sum() for z in alone.values()])
        k = coefficients(ratios(scores), hp["alpha"])
        k = torch.where(clock.within(hp["start"], hp["end"]), k, torch.ones_like(k))
        logs: Tensors = {}
        for i, (m, z) in enumerate(alone.items()):
            logs[f"train/loss/{m}"] = losses.task_loss(net.task, z, batch.target)
            logs[f"balance/{m}"] = k[i]
        return joint, logs

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        inside = clock.within(hp["start"], hp["end"])
        out = dict(update.grads)
        for m in net.modalities:
            for name, g in update.grads.items():
                touched = g.ndim == 4 or not self.config.conv_only
                if not owned(name, f"encoders.{m}") or not touched:
                    continue
                out[name] = g * update.logs[f"balance/{m}"].to(g.dtype)
                if self.config.noise:
                    deviation = torch.where(inside, spread(g), 0.0)
                    out[name] = out[name] + deviation * torch.randn_like(g)
        return Update(out, update.loss, update.logs, state)

    def _alone(self, net: Net, features: Features) -> Tensors:
        """Each modality's logits, alone through the fusion, without gradient."""
        fixed = net.stop("fusion").stop("encoders")
        detached = {m: f.detach() for m, f in features.items()}
        with net.evaluating():
            return fixed.unimodal(detached, self.unimodal_path)


plugin = OGM
