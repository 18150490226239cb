"""Uni-Modal Teacher: joint training whose encoders are kept near fixed models of one modality each.

Paper
    UMT (Du et al., ICML 2023, "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning"),
    Sec. 4.
Idea
    Joint training leaves features of one modality unlearned; teachers that were trained alone hand
    them over.
Equations
    L = loss(f(Omega(h_1 .. h_M)), y) + lambda * sum_m D_m
    features:  D_m = mean squared difference of h_m and the teacher's h_m over samples, real steps and width
    logits:    D_m = T^2 KL(softmax(teacher's z_m / T) || softmax(z_m / T)), averaged over the batch
Deviations
    * Teachers are encoders of the run's own kind with one linear layer on the pooled features
      (segmentation: with the run's own fusion, of one modality), trained alone on the same data
      under `teacher`, the best validation epoch taken. What a search tunes is not among their
      settings, so that its trials share them; `model.encoder` is (features must be of one shape),
      and for segmentation `model.fusion`: searching these trains teachers anew.
    * Published lambda: 50 in the paper as far as known, 10 in a later toolkit: `lam`.
    * The paper distils features; `distill: logits` compares z_m, the modality alone through the
      fusion, with the teacher's (Hinton et al., 2015); regression: the squared difference of the
      scores.
    * Teachers see the student's own batch (same crops and flips), without dropout and with their
      running statistics.
    * With a fusion that steps through the encoders' stages (MMTM, ESANet) the features are the maps
      that it takes over, after the first stage for ESANet, and there is no `distill: logits`. Later
      maps are left out: a teacher's later stages read its own fusion's gated maps, which are not in
      the state.
Shapes
    Features [B, T, W] or [B, W] (or maps [B, T, C, H, W]), any number of modalities; logits [B, C];
    state: the teachers' encoders under their own names, `head.<modality>.weight` [C, W]
    (segmentation: [C, H, 1, 1]), `.bias` [C].
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
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net, owned
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, Features, Padded, Tensors
from tune_mm.methods._teacher import Teacher
from tune_mm.models.base import LateFusion, StagedFusion


class UMTConfig(Section):
    """What is distilled, how strongly, and how the teachers are trained."""

    name: Literal["umt"] = "umt"
    # Weight (lambda) of the distillation.
    lam: float = Field(10.0, ge=0)
    # What a student takes over from its teacher.
    distill: Literal["features", "logits"] = "features"
    # T of `distill: logits`.
    temperature: float = Field(1.0, gt=0)
    # The teachers' training.
    teacher: Teacher = Teacher()


def feature_distance(student: Padded, teacher: Padded) -> Tensor:
    """Mean over the batch (scalar) of each sample's mean squared difference; masked sequences: over
    real steps; maps: the mean over the levels of what each differs by.
    """
    if student.levels:
        mine = (*student.levels, student.value)
        given = (*teacher.levels, teacher.value)
        squares = []
        for own, theirs in zip(mine, given, strict=True):
            squares.append((own - theirs).square().mean())
        return torch.stack(squares).mean()
    square = (student.value - teacher.value).square()
    if student.mask is None or square.ndim != 3:
        return square.mean()
    real = student.mask.to(square.dtype)
    per_sample = (square.mean(-1) * real).sum(1) / real.sum(1)
    return per_sample.mean()


def logit_distance(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """T^2 KL(teacher || student) of softened softmaxes, averaged over the batch (scalar). Logits
    [B, C].
    """
    own = torch.log_softmax(student / temperature, -1)
    theirs = torch.log_softmax(teacher / temperature, -1)
    divergence = functional.kl_div(own, theirs, reduction="batchmean", log_target=True)
    return temperature.square() * divergence


class UMT(Method):
    """Uni-Modal Teacher: see the module docstring."""

    Config = UMTConfig
    config: UMTConfig
    separable = True
    neutral: ClassVar[Mapping[str, Any] | None] = {"lam": 0.0}
    support = Support(
        tasks=TASKS,
        cost="a training per modality beforehand, shared by trials; a forward pass of teachers per step",
    )

    def check(self, net: Net) -> None:
        """Logits need encoders that end in features of a sample, which teachers have a linear layer
        on.
        """
        fusion: Any = net.model.get_submodule("fusion")
        if self.config.distill == "logits" and (fusion.dense or not isinstance(fusion, LateFusion)):
            raise ValueError(
                "distill: must be features with this fusion, got 'logits': teachers have a "
                "linear layer on what the encoders end in, one vector per sample"
            )

    def init(self, net: Net, start: Start) -> Tensors:
        state: Tensors = {}
        for m, teacher in start.unimodal(self.config.teacher.changes(net.task)).items():
            tensors = {**teacher.params, **teacher.buffers}
            for name, tensor in tensors.items():
                if owned(name, f"encoders.{m}"):
                    state[name] = tensor.detach().clone()
            for kind in ("weight", "bias"):
                state[f"head.{m}.{kind}"] = tensors[f"fusion.head.{kind}"].detach().clone()
        return state

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        features = net.encode(batch.inputs)
        task = net.loss(net.fuse(features), batch.target)
        distances = self._distances(net, features, batch, hp, state)
        logs = {"train/loss_task": task}
        for m, distance in distances.items():
            logs[f"train/distance/{m}"] = distance
        distilled = torch.stack(list(distances.values())).sum()
        return task + hp["lam"] * distilled, logs

    def _distances(
        self, net: Net, features: Features, batch: Batch, hp: Tensors, state: Tensors
    ) -> Tensors:
        """D_m of each modality."""
        encoders = {}
        for name, t in state.items():
            if owned(name, "encoders"):
                encoders[name] = t
        with torch.no_grad(), net.evaluating():
            theirs = Net(net.model, net.task, encoders, {}).encode(batch.inputs)
        if self.config.distill == "features":
            if isinstance(net.model.get_submodule("fusion"), StagedFusion):
                features = {m: f._replace(levels=()) for m, f in features.items()}
            return {m: feature_distance(f, theirs[m]) for m, f in features.items()}

        out: Tensors = {}
        for m, z in net.unimodal(features, self.unimodal_path).items():
            weight = state[f"head.{m}.weight"]
            scores = functional.linear(pooled(theirs[m]), weight, state[f"head.{m}.bias"])
            if net.task.kind == "regression":
                out[m] = (z - scores).square().mean()
            else:
                out[m] = logit_distance(z, scores, hp["temperature"])
        return out


plugin = UMT
