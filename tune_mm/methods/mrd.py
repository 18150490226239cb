"""Modality random dropout.

Paper
    Compared with in CGGM (NeurIPS 2024, Table 4), and as Modality-drop in PMR (CVPR 2023, Table 2);
    no equations, values or code in either.
Idea
    Now and then a modality is missing in training, so that the others learn to do without it.
Equations
    drop_m = u_m < p_m,  u_m uniform in [0, 1)
    where all are dropped, the one of largest u_m / p_m stays (each is as likely to), so that
    P(m is dropped) = p_m - (p_1 ... p_M) / M
    h_m <- 0 where dropped (or x_m <- 0);  L = loss(f(Omega(h_1 .. h_M)), y)
Deviations
    * `per`: sample (each draws its own) or batch (one draw for all). `level`: the feature or the
      encoder's input is 0; with zero inputs BatchNorm's running statistics hold both kinds, and an
      encoder sees what it will not see later.
    * Zeroed steps of a sequence still take part in attention and in positions. `tokens: mask`
      leaves them out, where the fusion heeds masks.
    * `rescale`: features that stay are multiplied by M / (how many stay): a sum over modalities
      keeps its scale.
    * With ESANet at feature level a dropped modality lacks its own maps; the first one's later
      stages still run on what the others' maps add up to, whereas for an absent first modality
      (`unimodal`) they do not run.
    * Evaluation drops nothing.
Shapes
    Features [B, T, W], [B, W] or maps [B, T, C, H, W] per modality, M >= 2, any task and fusion; u
    [B, M] or [1, M].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.support import TASKS, Support, require_modalities
from tune_mm.core.types import Batch, Clock, DataSpec, Padded, Tensors

Probability = Annotated[float, Field(ge=0, lt=1)]


class MRDConfig(Section):
    """No values are published; the defaults are ours."""

    name: Literal["mrd"] = "mrd"
    # Probability with which a modality is dropped.
    p: Probability = 0.3
    # The same by modality, in place of `p` (a search names `method.p_of.<modality>`).
    p_of: dict[str, Probability] = Field(default_factory=dict)
    # Whether each sample draws its own, or a batch draws once.
    per: Literal["sample", "batch"] = "sample"
    # What is 0: an encoder's features or its input.
    level: Literal["feature", "input"] = "feature"
    # Whether dropped steps of a sequence are zeros, or left out where the fusion heeds masks.
    tokens: Literal["zero", "mask"] = "zero"
    # Whether what stays is multiplied by M / (how many stay).
    rescale: bool = False

    @model_validator(mode="after")
    def _scales_features(self) -> MRDConfig:
        if self.rescale and self.level == "input":
            raise ValueError(
                "rescale must be false with level: input, "
                "where a dropped modality still has features"
            )
        return self


def kept(draws: Tensor, p: Tensor) -> Tensor:
    """bool [R, M]: which modalities stay, at least one per row. draws: uniform in [0, 1) [R, M]; p
    [M].
    """
    dropped = draws < p
    order = draws / p.clamp(min=torch.finfo(p.dtype).tiny)  # u_m / p_m
    saved = order == order.max(-1, keepdim=True).values
    none_left = dropped.all(-1, keepdim=True)
    return ~dropped | (none_left & saved)


def drop(x: Padded, stays: Tensor, mask: bool) -> Padded:
    """`x` at 0 where `stays` (bool [R], R = B or 1) is False. mask: a sequence's steps there are no
    longer real.
    """

    def dropped(part: Tensor) -> Tensor:
        return torch.where(_per_sample(stays, part), part, torch.zeros_like(part))

    value = dropped(x.value)
    levels = tuple(dropped(level) for level in x.levels)
    steps = x.mask
    if mask and value.ndim == 3:
        if steps is None:
            steps = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        steps = steps & stays[:, None]
    return Padded(value, steps, levels)


def _per_sample(x: Tensor, like: Tensor) -> Tensor:
    """x [R] with as many axes as `like` [R, ..]."""
    return x.view(-1, *[1] * (like.ndim - 1))


class MRD(Method):
    """Modality random dropout: see the module docstring."""

    Config = MRDConfig
    config: MRDConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {"p": 0.0}
    deterministic: ClassVar[Mapping[str, Any]] = {"p": 0.0}
    support = Support(least=2, tasks=TASKS)

    def __init__(self, config: MRDConfig) -> None:
        super().__init__(config)
        self.separable = config.per == "sample"

    def spec(self, spec: DataSpec) -> DataSpec:
        require_modalities("p_of", self.value("p_of"), spec)
        return spec

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        p = torch.stack([hp.get(f"p_of.{m}", hp["p"]) for m in net.modalities])
        if self.config.per == "sample":
            rows = len(batch.target)
        else:
            rows = 1
        stays = kept(torch.rand(rows, len(p), dtype=p.dtype, device=p.device), p)
        inputs = batch.inputs
        sets = {m: stays[:, i] for i, m in enumerate(net.modalities)}
        if self.config.level == "input":
            inputs = {m: drop(inputs[m], own, False) for m, own in sets.items()}
        features = net.encode(inputs)
        masks = self.config.tokens == "mask"
        if self.config.level == "feature":
            features = {m: drop(f, sets[m], masks) for m, f in features.items()}
        elif masks:
            # The zeros are in the inputs already: only the masks are taken.
            for m, f in features.items():
                features[m] = Padded(f.value, drop(f, sets[m], True).mask)
        if self.config.rescale:
            factor = len(p) / stays.sum(-1)
            features = {m: _scaled(f, factor) for m, f in features.items()}
        logs = {f"train/dropped/{m}": 1 - own.to(p.dtype).mean() for m, own in sets.items()}
        return net.loss(net.fuse(features), batch.target), logs


def _scaled(x: Padded, factor: Tensor) -> Padded:
    """The values of each sample times `factor` [R]."""

    def grown(part: Tensor) -> Tensor:
        return part * _per_sample(factor, part).to(part.dtype)

    return Padded(grown(x.value), x.mask, tuple(grown(level) for level in x.levels))


plugin = MRD
