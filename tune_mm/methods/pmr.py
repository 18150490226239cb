"""Prototypical Modal Rebalance.

Paper
    Fan et al., PMR: Prototypical Modal Rebalance for Multimodal Learning, CVPR 2023, Eqs. 6-13,
    Algorithm 1; compared with in DGL (ICCV 2025, Tables 1 and 2).
Idea
    Distances to class means tell how well each modality separates the classes, whatever the fusion.
    The modality that lags is drawn to its prototypes; the one that leads is kept undecided for the
    first epochs.
Equations
    p_m = softmax over classes k of -|h_m - c_mk|                                                          (7)
    s_m = sum over the batch of p_m[y],  rho = s_0 / s_1                                                   (8)
    w_m = clip(max_k s_k / s_m - 1, 0, 1)                                                                  (11)
    c_m <- momentum c_m + (1 - momentum) (class means over a part of the training samples), every epoch    (12)
    L = loss(f(Omega(h)), y) + alpha sum_m w_m CE(p_m, y)                                                  (10)
      - entropy * max_m w_m * H(p_lead), in the first epochs only                                          (13)
Deviations
    * Public code has no entropy term and sets the weight of the lagging modality to 1: `weights:
      switch`, `entropy: 0`, and modulates in the first 100 of 150 epochs (`end: 0.67`). The paper
      says neither how long "the first few epochs" of the entropy term are (`entropy_end`, here 0.1
      of all) nor more of its weight than 1e-2 or 1e-3.
    * Prototypes are those of evaluation mode, as in public code, after each epoch; the paper takes
      untrained encoders' for the first one, which is joint training here.
    * Public code divides by the number of a class's samples, 0 where it is absent from the part:
      NaN. Here such a class keeps its prototype, or has none yet: it is then no candidate, and its
      samples have no prototype loss.
    * The part is the same evenly spread `fraction` of the samples in every epoch; public code draws
      anew.
    * More than two modalities (extension): w_m as above, against the leading one, which for two is
      Eq. 11; the leading modality's entropy has the largest of the others' weights, for two that of
      the other one.
    * Public code's distance loops over samples and classes; a distance of 0 has gradient NaN there,
      0 here.
Shapes
    Features pooled over steps to [B, W_m]; any fusion; M >= 2; state `prototypes/<m>` [C, W_m] and
    `known` [C]. Classification only: prototypes belong to classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.features import pooled
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.probe import Probe
from tune_mm.core.support import Support
from tune_mm.core.types import Batch, Clock, EpochEnd, Features, Tensors

FAR = -1e9  # the logit of a class without a prototype: finite, so that 0 times it is 0


class PMRConfig(Section):
    """Defaults: the paper's where it says so (see Deviations)."""

    name: Literal["pmr"] = "pmr"
    # Weight of the prototype loss.
    alpha: float = Field(1.0, ge=0)
    # Weight of the entropy term (the paper's mu: 1e-2 or 1e-3).
    entropy: float = Field(0.01, ge=0)
    # Eq. 11, or 1 for all modalities that lag, as in the public code.
    weights: Literal["clip", "switch"] = "clip"
    # What remains of the prototypes of the epoch before.
    momentum: float = Field(0.2, ge=0, lt=1)
    # Share of the training samples that make the prototypes.
    fraction: float = Field(0.1, gt=0, le=1)
    # Where rebalancing begins, as a fraction of the epochs.
    start: float = Field(0.0, ge=0, le=1)
    # Where it ends, as a fraction of the epochs.
    end: float = Field(1.0, ge=0, le=1)
    # Where the entropy term ends, as a fraction of the epochs.
    entropy_end: float = Field(0.1, ge=0, le=1)


def similarity(features: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Logits [B, C]: minus the distance of features [B, W] to prototypes [C, W]; FAR where not
    `known` (bool [C]).
    """
    distance = torch.linalg.vector_norm(features[:, None] - prototypes[None], dim=-1)
    return torch.where(known, -distance, FAR)


def lag(scores: Tensor, hard: bool = False) -> Tensor:
    """w [M] of scores s [M]: how far behind the best. hard: 1 for all that are behind at all."""
    best = scores.max()
    if hard:
        return (scores < best).to(scores.dtype)
    positive = scores.clamp(min=torch.finfo(scores.dtype).tiny)
    return ((best - scores) / positive).clamp(0, 1)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy (scalar, nats) of softmax over logits [B, C]."""
    logs = torch.log_softmax(logits, -1)
    return -(logs.exp() * logs).sum(-1).mean()


def means(features: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Class means [C, W] of features [N, W], 0 for a class without samples; and which have some
    (bool [C]).
    """
    chosen = functional.one_hot(target, classes).to(features.dtype)
    count = chosen.sum(0)
    total = chosen.transpose(0, 1) @ features
    return total / count.clamp(min=1)[:, None], count > 0


def moved(old: Tensor, known: Tensor, now: Tensor, present: Tensor, momentum: Tensor) -> Tensor:
    """Prototypes [C, W]: `now` for new classes, a running mean for known ones, `old` for those not
    present.
    """
    mixed = torch.where(known[:, None], momentum * old + (1 - momentum) * now, now)
    return torch.where(present[:, None], mixed, old)


class PMR(Method):
    """Prototypical Modal Rebalance: see the module docstring."""

    Config = PMRConfig
    config: PMRConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0, "entropy": 0.0}
    support = Support(
        least=2,
        tasks=("classification",),
        cost="a forward pass of a tenth (fraction) of the training split per epoch",
    )

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        features = net.encode(batch.inputs)
        joint = net.loss(net.fuse(features), batch.target)
        if not state:  # the first epoch
            return joint, {"train/loss_task": joint}
        extra, logs = self._rebalance(net, features, batch.target, hp, state, clock)
        return joint + extra, {"train/loss_task": joint, **logs}

    def epoch_end(self, probe: Probe, hp: Tensors, state: Tensors, clock: Clock) -> EpochEnd:
        """The prototypes of the next epoch."""
        features, target = probe.features("train", self.value("fraction"))
        out: Tensors = {}
        for m, found in features.items():
            now, present = means(found, target, probe.net.task.outputs)
            known = state.get("known", torch.zeros_like(present))
            old = state.get(_key(m), now)
            out[_key(m)] = moved(old, known, now, present, hp["momentum"].to(now.dtype))
            out["known"] = known | present
        return EpochEnd(out, samples=len(target))

    def _rebalance(
        self,
        net: Net,
        features: Features,
        target: Tensor,
        hp: Tensors,
        state: Tensors,
        clock: Clock,
    ) -> tuple[Tensor, Tensors]:
        """What is added to the loss, and logs."""
        known = state["known"]
        counted = known[target]
        count = counted.sum().clamp(min=1)
        sums = []  # s_m
        distances = []  # CE(p_m, y)
        entropies = []  # H(p_m)
        for m, feature in features.items():
            logits = similarity(pooled(feature), state[_key(m)], known)
            right = _right(logits, target, counted)
            sums.append((right.exp() * counted).sum())
            distances.append(-right.sum() / count)
            entropies.append(entropy(logits))
        scores = torch.stack(sums).detach()
        own = torch.stack(distances)
        weights = lag(scores, self.config.weights == "switch")  # w_m, Eq. 11

        lead = (scores == scores.max()).to(scores.dtype)
        undecided = (lead * torch.stack(entropies)).sum()  # H(p_lead)
        early = clock.within(torch.zeros_like(hp["entropy_end"]), hp["entropy_end"])
        held = undecided * weights.max() * early

        total = hp["alpha"] * (weights * own).sum() - hp["entropy"] * held
        logs = {"train/loss_entropy": held}
        for i, m in enumerate(net.modalities):
            logs[f"balance/{m}"] = weights[i]
            logs[f"train/loss/{m}"] = own[i]
        return total * clock.within(hp["start"], hp["end"]), logs


def _key(modality: str) -> str:
    return f"prototypes/{modality}"


def _right(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """log p[y] [B], 0 for samples that do not count."""
    log = torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)
    return torch.where(counted, log, 0.0)


plugin = PMR
