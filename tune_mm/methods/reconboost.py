"""ReconBoost: modalities are boosted in turns, each against what the others get wrong.

Paper
    ReconBoost (Hua et al., ICML 2024), Sec. 3 and 4; CGGM (NeurIPS 2024) Tables 2-4.
Idea
    An ensemble of one learner per modality (its encoder and a head that all share). In each stage
    one learner is trained with more weight where the others fail, then the whole ensemble is
    rectified.
Equations
    z_m = W h_m + b;  ensemble s = rate * sum_m z_m over the modalities that had a turn; stage t trains m = t mod M
    Phase 1, encoder m and the head, the others fixed (s_o: the ensemble without m, p: softmax, C outputs):
    L = 1/C mean_i (w1 - w2 p(s_o,i)[y_i]) * (-log p(z_m,i)[y_i]) + alpha * mean (p(z_m) - p(z_prev))^2
    with z_prev the learner of the stage before.  Phase 2, all encoders that had a turn, head, rate:  L = loss(s, y)
Deviations
    * The agreement (alpha) is detached on both sides in public code, so that it is a number without
      a gradient: `agreement: detached`. The default, `gradient`, detaches the learner of the stage
      before only.
    * The others predict in phase 1 with the head as it was when the stage began, without dropout
      and with running statistics: boosting fixes them. In public code the head that they share
      changes under them.
    * Stages: public code has 4 + 4 epochs each, for 1001 stages (authors: 100 for MOSI). Here
      `stages` is their number in a run, whatever its epochs, with half of a stage for each phase;
      there are never more than epochs / 2. The first phase of each stage is declared as a dip. The
      optimizer's memory starts anew with each phase, as published.
    * Before the first stage the ensemble is empty, s_o = 0 (public code: p = 1). `start: unimodal`
      begins with encoders trained alone under `teacher` (all modalities count from the start), as
      the published runs do.
    * The head is one linear layer (published: two with ReLU).
    * Regression is an extension: with the loss |z - y| for -log p, hence exp(-|s_o - y|) for
      p(s_o)[y], scores for p in the agreement, and the mean in place of the sum in s, else scores
      would grow with M.
Shapes
    Features [B, T, W] or [B, W], all of one width, two modalities or more; logits [B, C]; state
    `members` [M] (1: had a turn), `head.weight` [C, W] and `head.bias` [C] as the stage began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core import grads as gradients
from tune_mm.core import losses
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net, owned
from tune_mm.core.probe import Probe
from tune_mm.core.support import Support
from tune_mm.core.types import Batch, Clock, DataSpec, EpochEnd, Inputs, Task, Tensors, Update
from tune_mm.methods import _late
from tune_mm.methods._teacher import Teacher


class ReconBoostConfig(Section):
    """Weights of the losses, and the stages of a run."""

    name: Literal["reconboost"] = "reconboost"
    # Weight of the learner's own loss (published 5 on CREMA-D, 4 on AVE).
    w1: float = Field(5.0, gt=0)
    # Weight of what the others do well.
    w2: float = Field(1.0, ge=0)
    # Weight of the agreement with the learner before.
    alpha: float = Field(0.5, ge=0)
    # Stages in a run.
    stages: int = Field(12, ge=1)
    # Whether the agreement passes a gradient.
    agreement: Literal["gradient", "detached"] = "gradient"
    # What encoders begin with.
    start: Literal["scratch", "unimodal"] = "scratch"
    # Training of the encoders to begin with (`start: unimodal`).
    teacher: Teacher = Teacher()


class Stage(NamedTuple):
    """A stage; epochs count from 0."""

    # From 0.
    number: int
    # The first epoch of phase 1, which trains one learner.
    first: int
    # The first epoch of phase 2, which trains the ensemble.
    rectify: int
    # The epoch after its last.
    end: int


def stages_of(stages: int, epochs: int) -> list[Stage]:
    """The stages of a run: up to `stages`, as equal as whole epochs allow, of two epochs or more
    where there are so.
    """
    count = max(1, min(stages, epochs // 2))
    out = []
    for number in range(count):
        first = number * epochs // count
        end = (number + 1) * epochs // count
        half = (end - first + 1) // 2
        out.append(Stage(number, first, first + half, end))
    return out


def boosting(
    task: Task, own: Tensor, others: Tensor, target: Tensor, w1: Tensor, w2: Tensor
) -> Tensor:
    """The learner's loss (scalar): its own logits [B, C], weighted by how well the others' [B, C]
    (constants) do.
    """
    trust = torch.exp(-losses.per_sample(task, others.detach(), target))
    weights = w1 - w2 * trust
    return (weights * losses.per_sample(task, own, target)).mean() / task.outputs


def agreement(task: Task, own: Tensor, previous: Tensor) -> Tensor:
    """Mean squared difference (scalar) of two learners' probabilities, or scores; logits [B, C]."""
    if task.kind == "classification":
        own = torch.softmax(own, -1)
        previous = torch.softmax(previous, -1)
    return (own - previous).square().mean()


class Rate(nn.Module):
    """The ensemble's rate: a learned factor on the sum of logits, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))


class ReconBoost(Method):
    """ReconBoost: see the module docstring."""

    Config = ReconBoostConfig
    config: ReconBoostConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "its modalities take turns"
    support = Support(
        least=2,
        fusions=("shared_head",),
        cost="no backward pass of the others in half of the epochs (less than joint)",
    )

    def trains(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        return (*super().trains(modalities), "aux")

    def aux(self, spec: DataSpec, widths: Mapping[str, int]) -> nn.ModuleDict:
        return nn.ModuleDict({"rate": Rate()})

    def dips(self, epochs: int) -> tuple[tuple[int, int], ...]:
        return tuple((s.first + 1, s.rectify) for s in stages_of(self.config.stages, epochs))

    @torch.no_grad()
    def init(self, net: Net, start: Start) -> Tensors:
        """See `Method.init`. With `start: unimodal` the net's encoders become those that were
        trained alone.
        """
        if self.config.start == "unimodal":
            for m, alone in start.unimodal(self.config.teacher.changes(net.task)).items():
                for mine, theirs in ((net.params, alone.params), (net.buffers, alone.buffers)):
                    for name in (n for n in mine if owned(n, f"encoders.{m}")):
                        mine[name].copy_(theirs[name])
        like = net.params["fusion.head.weight"]
        members = []
        for k in range(len(net.modalities)):
            members.append(float(self._joined(0, k)))
        return {
            "members": torch.tensor(members, dtype=like.dtype, device=like.device),
            **_head(net),
        }

    def grads(self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock) -> Update:
        stage = self._stage(clock)
        joined = []
        for k in range(len(net.modalities)):
            joined.append(self._joined(stage.number, k))
        if (clock.epoch, clock.step) == (stage.first, 0):
            state = {**state, **_head(net), "members": torch.tensor(joined).to(state["members"])}
        members = [m for m, joins in zip(net.modalities, joined, strict=True) if joins]
        if clock.epoch < stage.rectify:
            modality = net.modalities[stage.number % len(net.modalities)]
            fixed = self._fixed(net, batch, state, [m for m in members if m != modality])
            if stage.number:
                before = net.modalities[(stage.number - 1) % len(net.modalities)]
            else:
                before = None

            def objective(bound: Net) -> tuple[Tensor, Tensors]:
                return self._boost(bound, batch, hp, modality, fixed, before)

            prefixes: tuple[str, ...] = (f"encoders.{modality}", "fusion")
        else:

            def objective(bound: Net) -> tuple[Tensor, Tensors]:
                logits: Tensors = {}
                for m in members:
                    logits[m] = bound.head(_late.own_vector(bound, m, batch.inputs[m]))
                joint = _ensemble(bound, logits, bound.params["aux.rate.value"])
                return bound.loss(joint, batch.target), {}

            prefixes = (*(f"encoders.{m}" for m in members), "fusion", "aux")
        found, loss, logs = gradients.gradient(objective, net, prefixes)
        return Update(found, loss, logs, state)

    def epoch_end(self, probe: Probe, hp: Tensors, state: Tensors, clock: Clock) -> EpochEnd:
        """Where a phase begins next, parameters are set to what they are: their optimizer memory
        starts anew.
        """
        coming = clock.epoch + 1
        stages = stages_of(self.config.stages, clock.epochs)
        if any(coming in (s.first, s.rectify) for s in stages):
            return EpochEnd(state, params={n: p.detach() for n, p in probe.net.params.items()})
        return EpochEnd(state)

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        alone = net.unimodal(net.encode(inputs), self.unimodal_path)
        members = state["members"]
        if net.task.kind != "classification":
            members = members / members.sum()
        joint = net.params["aux.rate.value"] * _late.weighted(alone, members)
        return {"joint": joint, **alone}

    def _stage(self, clock: Clock) -> Stage:
        return next(s for s in stages_of(self.config.stages, clock.epochs) if clock.epoch < s.end)

    def _joined(self, stage: int, place: int) -> bool:
        """Whether the modality at `place` is in the ensemble in a stage."""
        return self.config.start == "unimodal" or place <= stage

    @torch.no_grad()
    def _fixed(self, net: Net, batch: Batch, state: Tensors, others: list[str]) -> Tensors:
        """Logits [B, C] of the learners that a stage leaves as they are."""
        out: Tensors = {}
        with net.evaluating():
            for m in others:
                vector = _late.own_vector(net, m, batch.inputs[m])
                out[m] = functional.linear(vector, state["head.weight"], state["head.bias"])
        return out

    def _boost(
        self, net: Net, batch: Batch, hp: Tensors, modality: str, fixed: Tensors, before: str | None
    ) -> tuple[Tensor, Tensors]:
        own = net.head(_late.own_vector(net, modality, batch.inputs[modality]))
        rate = net.params["aux.rate.value"].detach()
        if fixed:
            others = _ensemble(net, fixed, rate)
        else:
            others = torch.zeros_like(own)
        loss = boosting(net.task, own, others, batch.target, hp["w1"], hp["w2"])
        logs = {"train/loss_boosting": loss}
        if before is not None:
            if self.config.agreement == "gradient":
                mine = own
            else:
                mine = own.detach()
            logs["train/agreement"] = agreement(net.task, mine, fixed[before])
            loss = loss + hp["alpha"] * logs["train/agreement"]
        return loss, logs


def _head(net: Net) -> Tensors:
    found = {}
    for k in ("weight", "bias"):
        found[f"head.{k}"] = net.params[f"fusion.head.{k}"].detach().clone()
    return found


def _ensemble(net: Net, logits: Tensors, rate: Tensor) -> Tensor:
    stacked = torch.stack(list(logits.values()))
    return rate * (stacked.sum(0) if net.task.kind == "classification" else stacked.mean(0))


plugin = ReconBoost
