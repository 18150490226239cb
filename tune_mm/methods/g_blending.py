"""G-Blending: the multimodal loss and each modality's own, blended by how well each generalises.

Paper
    Wang, Tran, Feiszli: What Makes Training Multi-Modal Classification Networks Hard?, CVPR 2020,
    Sec. 3, Algorithms 1 and 2; the form with one weight: DGL (ICCV 2025), Table 4.
Idea
    A loss whose training lowers the validation loss much while it overfits little gets a large
    weight.
Equations
    L = sum_k w_k L_k, k = each modality and `multi`, the fused prediction A copy of the model is
    trained on L_k alone for a super-epoch of n epochs. Before and after, with the mean losses over
    train and val,
    G_k = L_k^val(before) - L_k^val(after)                                                       (generalisation)
    O_k = (L_k^val - L_k^train)(after) - (L_k^val - L_k^train)(before)                           (overfitting)
    w_k = G_k / O_k^2, divided by their sum over k
    mode fixed:   L = L_multi + alpha sum_m L_m                                                  (DGL, Table 4)
    mode offline: w is estimated once; mode online: again every super-epoch
Deviations
    * The first estimate comes after a warm-up with equal weights (`start` of the epochs, at least
      one) instead of before the first step: a model that has not begun to learn has nothing to
      compare.
    * The super-epoch is a fraction of the epochs (`super_epoch`; a last one may be shorter).
    * G_k below 0 counts as 0 (the paper's weight would be negative, gradient ascent), |O_k| below
      `floor` as `floor` (the weight would be infinite), and a copy that diverged as G_k = 0; where
      all G_k are 0 the weights are equal. Public code (MultiBench) takes end values for the
      differences and raises negative O to 1e-4: weights explode.
    * `heads: own` (default) is the paper's separate linear head per modality, on pooled features;
      `fusion` passes the modality alone through the fusion and its head, as DGL's comparison does,
      the only way for MMTM.
    * The paper holds out a part of train for the estimates; here they use the validation split,
      never test.
    * A copy is trained by the run's optimizer with a fresh memory and the learning rate of that
      moment.
Shapes
    Features [B, T, W] or [B, W], any number of modalities M; logits [B, C]; state `weights` [M +
    1], multi last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.method import Start
from tune_mm.core.net import Net
from tune_mm.core.probe import Objective, Probe
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, EpochEnd, Tensors
from tune_mm.methods._heads import WithHeads
from tune_mm.models.base import StagedFusion


class GBlendingConfig(Section):
    """How and when the losses' weights are estimated."""

    name: Literal["g_blending"] = "g_blending"
    # Weights that are given (`alpha`), estimated once, or again every super-epoch.
    mode: Literal["fixed", "offline", "online"] = "online"
    # Weight of the unimodal losses in mode fixed (published 1 to 5).
    alpha: float = Field(1.0, ge=0)
    # Length of a super-epoch, as a fraction of the epochs.
    super_epoch: float = Field(0.34, gt=0, le=1)
    # When the weights are first estimated, as a fraction of the epochs.
    start: float = Field(0.0, ge=0, lt=1)
    # Smallest |O_k|, in the unit of the loss.
    floor: float = Field(0.01, gt=0)
    # Heads of the unimodal losses: of their own, or the fusion's.
    heads: Literal["own", "fusion"] = "own"


def blend(gain: Tensor, overfit: Tensor, floor: Tensor) -> Tensor:
    """Weights w [K] that sum to 1, from G [K] and O [K]; floor: 0-dim, smallest |O|. Always finite."""
    finite = gain.isfinite() & overfit.isfinite()
    gain = torch.where(finite, gain, torch.zeros_like(gain)).clamp(min=0)
    overfit = torch.maximum(overfit.nan_to_num().abs(), floor)
    ratio = gain / overfit.square()
    total = ratio.sum()
    divisor = torch.where(total > 0, total, torch.ones_like(total))
    equal = torch.full_like(ratio, 1 / len(ratio))
    return torch.where(total > 0, ratio / divisor, equal)


class GBlending(WithHeads):
    """Gradient blending: see the module docstring."""

    Config = GBlendingConfig
    config: GBlendingConfig
    separable = True
    neutral: ClassVar[Mapping[str, Any] | None] = {"mode": "fixed", "alpha": 0.0}
    support = Support(
        tasks=TASKS,
        cost="a head per modality; offline, online: per estimate a super-epoch of each of the M + 1 losses",
    )

    @classmethod
    def settings_for_tests(cls, modalities: Sequence[str], fusion: str) -> Mapping[str, Any]:
        if fusion in ("mmtm", "esanet"):  # they run the encoders' later stages
            return {"heads": "fusion"}
        return {}

    def check(self, net: Net) -> None:
        """Heads of their own need features that end at the encoders."""
        if self.config.heads == "own" and isinstance(
            net.model.get_submodule("fusion"), StagedFusion
        ):
            raise ValueError(
                "heads: must be fusion where the fusion runs the encoders' later stages, got 'own'"
            )

    def init(self, net: Net, start: Start) -> Tensors:
        if self.config.mode == "fixed":
            return {}
        like = next(iter(net.params.values()))
        count = len(net.modalities) + 1
        return {"weights": torch.full((count,), 1 / count, dtype=like.dtype, device=like.device)}

    def estimates(self, epochs: int) -> dict[int, int]:
        """After which epochs (from 1) the weights are estimated, and for how many epochs copies are
        trained.
        """
        if self.config.mode == "fixed":
            return {}
        first = max(1, round(self.value("start") * epochs))
        length = max(1, round(self.value("super_epoch") * epochs))
        begins = [first]
        if self.config.mode == "online":
            begins = list(range(first, epochs, length))
        found = {}
        for e in begins:
            if e < epochs:
                found[e] = min(length, epochs - e)
        return found

    def dips(self, epochs: int) -> tuple[tuple[int, int], ...]:
        """A fifth of a super-epoch after each estimate, at least one epoch: the loss is another one
        from there on.
        """
        return tuple((e + 1, e + max(1, round(n / 5))) for e, n in self.estimates(epochs).items())

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        features = net.encode(batch.inputs)
        losses = {}
        for m, z in self.alone(net, features).items():
            losses[m] = net.loss(z, batch.target)
        multi = net.loss(net.fuse(features), batch.target)
        logs = {
            "train/loss_multi": multi,
            **{f"train/loss/{m}": loss for m, loss in losses.items()},
        }
        if self.config.mode == "fixed":
            return multi + hp["alpha"] * torch.stack(list(losses.values())).sum(), logs
        weights = state["weights"]
        logs |= {
            "balance_multi": weights[-1],
            **{f"balance/{m}": w for m, w in zip(losses, weights, strict=False)},
        }
        return (weights * torch.stack([*losses.values(), multi])).sum(), logs

    def epoch_end(self, probe: Probe, hp: Tensors, state: Tensors, clock: Clock) -> EpochEnd:
        """Where it is due, train a copy on each loss and weigh the losses anew."""
        epochs = self.estimates(clock.epochs).get(clock.epoch + 1)
        if epochs is None:
            return EpochEnd(state)
        gains = []
        overfits = []
        objectives: dict[str | None, Objective] = {}
        for m in probe.net.modalities:
            objectives[m] = self._unimodal(m)
        objectives[None] = _multi
        for k, (modality, objective) in enumerate(objectives.items()):
            key = clock.epoch * len(objectives) + k
            trained = probe.train(objective, self._owners(probe.net, modality), epochs, key)
            train, val = (_change(probe, split, objective, trained) for split in ("train", "val"))
            gains.append(-val)
            overfits.append(val - train)
        like = state["weights"]
        weights = blend(torch.stack(gains), torch.stack(overfits), hp["floor"].double()).to(
            like.dtype
        )
        # Each loss is also measured over train before and after: passes without a step, counted as
        # any other.
        seen = probe.samples + 2 * len(objectives) * len(probe.splits["train"])
        logs = {f"overfitting/{m or 'multi'}": o for m, o in zip(objectives, overfits, strict=True)}
        return EpochEnd({"weights": weights}, logs, samples=seen)

    def _unimodal(self, modality: str) -> Objective:
        def objective(net: Net, batch: Batch) -> Tensor:
            if self.config.heads == "fusion":
                features = net.encode(batch.inputs)
            else:
                features = {modality: net.encode_one(modality, batch.inputs[modality])}
            logits = self.alone(net, features)[modality]
            return net.loss(logits, batch.target)

        return objective

    def _owners(self, net: Net, modality: str | None) -> tuple[str, ...]:
        """Prefixes of the parameters that a loss trains (None: the multimodal one)."""
        if modality is None:
            return super().trains(net.modalities)
        if self.config.heads == "own":
            head = f"aux.{modality}"
        else:
            head = "fusion"
        return (f"encoders.{modality}", head)


def _multi(net: Net, batch: Batch) -> Tensor:
    return net.loss(net.fuse(net.encode(batch.inputs)), batch.target)


def _change(probe: Probe, split: str, objective: Objective, trained: Net) -> Tensor:
    """How much a loss over a split has changed by training (0-dim, float64)."""
    return probe.loss(split, objective, trained) - probe.loss(split, objective)


plugin = GBlending
