"""Adaptive Gradient Modulation: each modality's share of the gradient follows its Shapley value.

Paper
    AGM, Li et al., ICCV 2023, Sec. 3.2-3.3; compared with in DGL (ICCV 2025) Tables 1-2 and CGGM
    (NeurIPS 2024).
Idea
    The fused logits are split into what each modality contributes; the gradient that enters a
    contribution is enlarged or reduced according to how the modality's lead compares with its
    running reference.
Equations
    phi_m   = sum over S without m of |S|! (M-|S|-1)! / M! (f(S + m) - f(S)),  f of no modality = 0;  sum_m phi_m = f
              f(S): logits with the inputs of all modalities outside S at 0
    s_m     = mean over the batch of -log softmax(phi_m)[y], each at most -log 1e-8
    r_m     = exp(M/(M-1) (mean_k s_k - s_m))                              large for the modality that is ahead
    tau_m   = the same of the running means of s over all steps, this one included
    kappa_m = exp(alpha min(tau_m - r_m, cap))
    gradient entering phi_m <- kappa_m * gradient entering phi_m
Deviations
    * r_m is the right way up, as in the authors' code; BalanceBenchmark's port has its reciprocal
      and therefore speeds up the modality that is ahead. That port also scales encoders' gradients
      instead of those of the contributions.
    * `cap` (null: 10 for two modalities, 7 for more, as in the code).
    * The code then clips all gradients to a norm of 1 (three modalities: 5) if any element of the
      head's weight gradient exceeds 1, which the paper does not mention: `head_clip`, off by
      default; `optim.clip` always clips.
    * Zero inputs pass the encoders, and all partial sets the fusion, in evaluation mode (no
      dropout, BatchNorm's running statistics); features of the present modalities are those of the
      training pass, not encoded again.
    * Any number of modalities by Shapley's formula (published: two and three).
    * Regression (not in the paper): s_m = mean |phi_m - y|, the loss of the contribution.
    * Segmentation (not in the paper): s_m is the loss of the contribution too, the mean over the
      batch of an image's weighted cross-entropy and Dice loss; no pixel's probability has a floor.
    * Side outputs of a decoder (`scales`) learn as in joint training: contributions are those of
      the final logits.
    * The window is `start` to `end` in fractions of the epochs (published: all); outside it kappa_m
      = 1, and the running means go on.
    * What is reported of a modality alone is the modality through the fusion (`unimodal_path`), not
      phi_m.
Shapes
    Inputs and features as for any method, two or more modalities; logits [B, C] or [B, C, H, W];
    state `average` [M], `count` [].
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import factorial, log
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import losses, scales
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, Features, Padded, PathChoice, Task, Tensors, Update

FLOOR = 1e-8  # of a probability
CAPS = (10.0, 7.0)  # two modalities, more
Coalition = frozenset[str]


class AGMConfig(Section):
    """Defaults: the paper's on CREMA-D."""

    name: Literal["agm"] = "agm"
    # Strength (published 1.5 on CREMA-D, 2.5 on AV-MNIST, 4 on UR-Funny).
    alpha: float = Field(1.5, ge=0)
    # The largest tau - r (null: 10 for two modalities, 7 for more, as in the code).
    cap: float | None = Field(None, gt=0)
    # Norm to which steep gradients are clipped (null: off).
    head_clip: float | None = Field(None, gt=0)
    # Where the modulation begins, as a fraction of the epochs.
    start: float = Field(0.0, ge=0, le=1)
    # Where it ends, as a fraction of the epochs; greater than `start`.
    end: float = Field(1.0, ge=0, le=1)
    # For the metrics of one modality only: what stands for the others.
    unimodal_path: PathChoice = "auto"

    @model_validator(mode="after")
    def _window(self) -> AGMConfig:
        if self.end <= self.start:
            raise ValueError(f"end must be greater than start ({self.start:g}), got {self.end:g}")
        return self


def coalitions(modalities: tuple[str, ...]) -> list[Coalition]:
    """All sets of modalities but the empty one, smallest first."""
    out: list[Coalition] = []
    for size in range(1, len(modalities) + 1):
        out += map(frozenset, combinations(modalities, size))
    return out


def shapley(values: Mapping[Coalition, Tensor], modalities: tuple[str, ...]) -> Tensors:
    """phi per modality from f of every set in `coalitions` (tensors of one shape); the empty set
    has 0.
    """
    count = len(modalities)
    out: Tensors = {}
    for m in modalities:
        terms = []
        for s, value in values.items():
            if m not in s:
                continue
            rest = s - {m}
            orders = factorial(len(rest)) * factorial(count - len(rest) - 1)
            weight = orders / factorial(count)
            gain = value - values[rest] if rest else value
            terms.append(weight * gain)
        out[m] = torch.stack(terms).sum(0)
    return out


def score(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """s (0-dim) of one modality's contribution, logits [B, C] or [B, C, H, W]: small where it
    predicts well.
    """
    loss = losses.per_sample(task, logits, target)
    if task.kind == "classification":
        loss = loss.clamp(max=-log(FLOOR))
    return loss.mean()


def lead(scores: Tensor) -> Tensor:
    """r [M] (or tau) of the scores [M], M >= 2: above 1 for a modality that is ahead."""
    count = len(scores)
    ahead = scores.mean() - scores
    return (count / (count - 1) * ahead).exp()


def modulation(scores: Tensor, average: Tensor, alpha: Tensor, cap: Tensor) -> Tensor:
    """kappa [M] of the batch's scores and their running means [M]; 0-dim alpha and cap."""
    gap = lead(average) - lead(scores)  # tau - r
    return (alpha * torch.minimum(gap, cap)).exp()


def with_gradient(value: Tensor, factor: Tensor) -> Tensor:
    """`value`, through which `factor` times the gradient passes back."""
    return value.detach() + factor * (value - value.detach())


class AGM(Method):
    """Adaptive Gradient Modulation: see the module docstring."""

    Config = AGMConfig
    config: AGMConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0}
    support = Support(
        least=2,
        tasks=TASKS,
        cost="2^M - 2 passes of the fusion, forward and back; with masked sequences a pass of each encoder",
    )

    def init(self, net: Net, start: Start) -> Tensors:
        like = next(iter(net.params.values()))
        zeros = torch.zeros(len(net.modalities), dtype=like.dtype, device=like.device)
        return {"average": zeros, "count": zeros.sum()}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        outputs = self._outputs(net, batch)
        parts = shapley(outputs, net.modalities)
        scores = torch.stack([score(net.task, z.detach(), batch.target) for z in parts.values()])
        kappa = modulation(scores, self._average(scores, state), hp["alpha"], self._cap(hp, scores))
        kappa = torch.where(clock.within(hp["start"], hp["end"]), kappa, torch.ones_like(kappa))
        steered = [with_gradient(z, kappa[i]) for i, z in enumerate(parts.values())]
        logits = torch.stack(steered).sum(0)
        logits = scales.beside(logits, scales.coarser(outputs[frozenset(net.modalities)]))
        logs: Tensors = {}
        for i, m in enumerate(net.modalities):
            logs[f"balance/{m}"] = kappa[i]
            logs[f"train/score/{m}"] = scores[i]
        return net.loss(logits, batch.target), logs

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        scores = torch.stack([update.logs[f"train/score/{m}"] for m in net.modalities])
        new = {"average": self._average(scores, state), "count": state["count"] + 1}
        gradients = update.grads
        if "head_clip" in hp:
            norm = torch.stack([g.norm() for g in gradients.values()]).norm()
            factor = (hp["head_clip"] / norm.clamp(min=FLOOR)).clamp(max=1.0)
            steep = gradients["fusion.head.weight"].abs().amax() > 1
            factor = torch.where(steep, factor, torch.ones_like(factor))
            gradients = {name: g * factor for name, g in gradients.items()}
        return Update(gradients, update.loss, update.logs, new)

    def _outputs(self, net: Net, batch: Batch) -> dict[Coalition, Tensor]:
        """f of every set of modalities [B, C]."""
        features = net.encode(batch.inputs)
        whole = net.fuse(features)
        with net.evaluating():
            absent = {}
            for m in net.modalities:
                absent[m] = _encoded_zeros(net, m, batch.inputs[m])
            partial = coalitions(net.modalities)[:-1]
            out = {}
            for s in partial:
                out[s] = net.fuse(_chosen(s, features, absent))
        out[frozenset(net.modalities)] = whole
        return out

    def _average(self, scores: Tensor, state: Tensors) -> Tensor:
        """The running means [M] with this step's scores."""
        count = state["count"]
        total = state["average"] * count + scores.to(state["average"].dtype)
        return total / (count + 1)

    def _cap(self, hp: Tensors, like: Tensor) -> Tensor:
        if "cap" in hp:
            return hp["cap"]
        return torch.full_like(like[0], CAPS[0] if len(like) == 2 else CAPS[1])


def _encoded_zeros(net: Net, modality: str, x: Padded) -> Padded:
    """Features of zeros in the shape of x, in evaluation mode: without a mask all samples have
    those of one.
    """
    if x.mask is not None:
        return net.encode_one(modality, x.zero())
    value, mask, levels = net.encode_one(modality, Padded(x.value[:1]).zero())
    size = len(x.value)
    return Padded(
        value.expand(size, *value.shape[1:]),
        None if mask is None else mask.expand(size, *mask.shape[1:]),
        tuple(level.expand(size, *level.shape[1:]) for level in levels),
    )


def _chosen(present: Coalition, features: Features, absent: Features) -> Features:
    found = {}
    for m, f in features.items():
        found[m] = f if m in present else absent[m]
    return found


plugin = AGM
