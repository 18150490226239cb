"""Modality-specific learning rates.

Paper
    Yao & Mihalcea, Modality-Specific Learning Rates for Effective Multimodal Additive Late-Fusion,
    Findings of ACL 2022 (MSLR); compared with in CGGM (NeurIPS 2024, Table 4).
Idea
    Encoders differ in the learning rate at which they train best alone; in joint training each
    keeps one of its own.
Equations
    lr_m = lr * r_m^(1 - smooth) * d_m         for encoder m; the fusion has lr
    d_m = 1                                    (`strategy: keep`)
    d_m(t) = a_m(t) / mean(a_m(t-K) .. a_m(t-1))   a_m: validation accuracy of m alone after epoch t (`dynamic`)
Deviations
    * The paper's strategies keep the rate that is best for the modality alone (`smooth: 0`), take
      one for all (`smooth: 1`, joint training), or something between. Only its abstract was at
      hand: the geometric mean between the two (`0 < smooth < 1`) is ours.
    * `ratios` are relative to `optim.lr`, so that the schedule applies to all; a modality left out
      has 1. Uniform on a log scale between 0.1 and 10 is a log-ratio between -1 and 1.
    * `dynamic` follows the public code of AGM: the ratio holds for one epoch and begins after K =
      `memory` epochs. Another port multiplies the rate by it for good. For regression a_m is the
      reciprocal of the mean absolute error. A ratio with a zero denominator is 1.
    * Public code multiplies gradients, which Adam cancels; here the optimizer steps at the rate.
      Its factors for CREMA-D are 0.9 (audio) and 1.1 (visual).
Shapes
    As joint training. State of `dynamic`: `history` [K, M], `rate` [M]; any number of modalities,
    any task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import metrics
from tune_mm.core.method import Start
from tune_mm.core.net import Net
from tune_mm.core.probe import Probe
from tune_mm.core.support import TASKS, Support, require_modalities
from tune_mm.core.types import Batch, Clock, DataSpec, EpochEnd, Tensors, Update
from tune_mm.methods.joint import Joint


class MSLRConfig(Section):
    """Settings of the encoders' learning rates."""

    name: Literal["mslr"] = "mslr"
    # Whether the ratios stay, or follow validation scores.
    strategy: Literal["keep", "dynamic"] = "keep"
    # An encoder's learning rate over `optim.lr` (a search names `method.ratios.<modality>`).
    ratios: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    # 0 keeps the ratios, 1 is one rate for all.
    smooth: float = Field(0.0, ge=0, le=1)
    # Epochs that `dynamic` compares with.
    memory: int = Field(5, ge=1)


def smoothed(ratio: Tensor, smooth: Tensor) -> Tensor:
    """The geometric mean of `ratio` and 1, with weight `smooth` (0-dim, 0 to 1) on 1."""
    return ratio ** (1 - smooth)


def progress(now: Tensor, before: Tensor) -> Tensor:
    """[M]: scores `now` [M] over the mean of those `before` [K, M]; 1 where that is not positive."""
    mean = before.mean(0)
    one = torch.ones_like(mean)
    positive = mean > 0
    ratio = now / torch.where(positive, mean, one)
    return torch.where(positive, ratio, one)


class MSLR(Joint):
    """Modality-specific learning rates: see the module docstring."""

    Config = MSLRConfig
    config: MSLRConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {}
    support = Support(
        tasks=TASKS, cost="none; dynamic: one forward pass of the validation split per epoch"
    )

    def spec(self, spec: DataSpec) -> DataSpec:
        require_modalities("ratios", self.value("ratios"), spec)
        return spec

    def init(self, net: Net, start: Start) -> Tensors:
        if self.config.strategy == "keep":
            return {}
        like = next(iter(net.params.values()))
        count = len(net.modalities)
        return {"history": like.new_zeros(self.config.memory, count), "rate": like.new_ones(count)}

    def optim(self, hp: Tensors, optim: Tensors) -> dict[str, Tensors]:
        out: dict[str, Tensors] = {}
        for m in self.value("ratios"):
            ratio = smoothed(hp[f"ratios.{m}"], hp["smooth"])
            out[f"encoders.{m}"] = {"lr": optim["lr"] * ratio}
        return out

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        if self.config.strategy == "keep":
            return update
        rates: Tensors = {}
        logs = dict(update.logs)
        for i, m in enumerate(net.modalities):
            rates[f"encoders.{m}"] = state["rate"][i]
            logs[f"balance/{m}"] = state["rate"][i]
        return Update(update.grads, update.loss, logs, state, rates)

    def epoch_end(self, probe: Probe, hp: Tensors, state: Tensors, clock: Clock) -> EpochEnd:
        """The next epoch's rates from validation scores."""
        if self.config.strategy == "keep":
            return EpochEnd(state)
        errors = probe.loss("val", self._errors).to(state["rate"])
        if probe.net.task.kind == "regression":
            now = 1 / errors.clamp(min=torch.finfo(errors.dtype).tiny)
        else:
            now = 1 - errors
        history = torch.cat([state["history"][1:], now[None]])
        known = clock.epoch >= self.config.memory
        if known:
            rate = progress(now, state["history"])
        else:
            rate = torch.ones_like(now)
        return EpochEnd({"history": history, "rate": rate})

    def _errors(self, net: Net, batch: Batch) -> Tensor:
        """[M]: each modality's error alone, the share of wrong classes or the mean absolute error."""
        logits = net.unimodal(net.encode(batch.inputs), self.unimodal_path)
        errors = []
        for z in logits.values():
            if net.task.kind == "regression":
                error = metrics.batch_metric(net.task, "mae", z, batch.target)
            else:
                error = 1 - metrics.batch_metric(net.task, "accuracy", z, batch.target)
            errors.append(error)
        return torch.stack(errors)


plugin = MSLR
