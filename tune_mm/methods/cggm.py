"""Classifier-Guided Gradient Modulation.

Paper
    CGGM, NeurIPS 2024, Sec. 3.3, Eqs. 5-13, Algorithm 1; ablations in Fig. 5 (rho, lambda) and
    Table 6.
Idea
    A small classifier per modality measures how fast that modality improves; encoders of fast ones
    are slowed (magnitude), and the fused head's gradient is drawn towards the classifiers'
    (direction).
Equations
    e_m = metric of classifier f_m on this batch, D_m = e_m - (e_m of the step before), e^0 = 0             (5, 6)
    B_m = rho * (sum_k D_k - D_m) / sum_k D_k                                                               (7)
    gradient of encoder m <- B_m * gradient of encoder m                                                    (8)
    L_gm = 1/M sum_m |B_m| - B_m cos(grad_F L, grad_{f_m} L_m)                                              (12)
    L = L_task + lambda * L_gm                                                                              (13)
Deviations
    * Direction. Public code takes the cosine of the *weights* of the fused head and of the
      classifiers, not of their gradients; a literal gradient (`.grad`) is a constant and would
      change nothing. `direction: gradient` (default) is Eq. 12 with the heads' weight gradients in
      closed form, delta^T h, differentiable at first order; classifiers are constants in it.
      `direction: weight` is what the code does, `off` leaves the term out.
    * Timing. Algorithm 1 adds the L_gm of the step before (whose graph is gone by then); here it is
      the current step's.
    * rho. Eq. 12 uses B_m with rho; public code leaves rho out of L_gm: `rho_in_direction: false`.
    * Magnitude reaches the whole encoder, projection included; public code skips the projections.
      `magnitude: false` leaves encoders' gradients as they are (Table 6).
    * B_m divides by sum_k D_k, which passes through 0: at |sum| < 1e-6 every B_m is rho (M-1)/M,
      its mean over m. The guards `clamp`, `ema`, `floor` are off in `variant: paper`; `variant:
      stable` turns them on at STABLE's values.
    * The metric: paper accuracy, MAE and Dice, public code accuracy for MOSI's regression too:
      `metric`.
    * Segmentation: classifiers are light decoders of the maps. Public code looks for encoders by
      names that its BraTS network does not have, so that magnitude never reaches them; here it
      reaches every one.
    * Where a fusion steps through the encoders' stages (ESANet, MMTM) the classifiers read the maps
      of the stage of the first exchange (ESANet: the stem's), not the last ones, which have seen
      the other modalities.
    * Public code never shuffles its training data; ours does, so batches differ between steps as
      the paper implies.
    * The cosine needs heads of one shape: a fusion whose head reads another width than the
      features' (MMTM, or a gated or bilinear one of another `width`) takes `direction: off`.
Shapes
    Features [B, T, W], [B, W] or maps [B, W, h, w], detached before the classifiers; logits [B, C]
    or [B, C, H, W]; state `metric` [M].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core import grads, losses, metrics
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, DataSpec, Features, Inputs, Padded, Tensors, Update
from tune_mm.models.classifier import Classifier, decoder

STABLE = {"clamp": 2.0, "ema": 0.9, "floor": 0.01}
PAPER = {"ema": 0.0, "floor": 0.0}
TINY = 1e-6


class CGGMConfig(Section):
    """A guard (`clamp`, `ema`, `floor`) left null takes the variant's value.

    Classifiers have an optimizer setting of their own, which the learning-rate schedule does not
    touch (as published).
    """

    name: Literal["cggm"] = "cggm"
    # Which values guards have that are left null.
    variant: Literal["paper", "stable"] = "paper"
    # Scale of the balancing term.
    rho: float = Field(1.3, ge=0)
    # Weight (lambda) of the direction loss.
    lam: float = Field(0.2, ge=0)
    # Whether the encoders' gradients are scaled by B_m.
    magnitude: bool = True
    # What the direction loss compares of the heads (off: there is none).
    direction: Literal["gradient", "weight", "off"] = "gradient"
    # Whether B_m enters the direction loss with rho (Eq. 12) or without (public code).
    rho_in_direction: bool = True
    # What the classifiers are measured by (auto: accuracy, mae or dice, by task).
    metric: Literal["auto", "accuracy", "mae", "loss", "dice"] = "auto"
    # B_m is kept in [0, clamp * rho].
    clamp: float | None = Field(None, gt=0)
    # Decay of a running mean of the metrics before they are compared.
    ema: float | None = Field(None, ge=0, lt=1)
    # Smallest |sum of changes|.
    floor: float | None = Field(None, ge=0)
    # The classifiers' learning rate.
    classifier_lr: float = Field(5e-4, gt=0)
    # The classifiers' weight decay.
    classifier_weight_decay: float = Field(0.0, ge=0)
    # Self-attention layers of a classifier.
    classifier_layers: int = Field(2, ge=1, le=2)
    # Attention heads of a classifier; they divide the features' width.
    classifier_heads: int = Field(5, ge=1)
    # Probability of dropout in a classifier.
    classifier_dropout: float = Field(0.1, ge=0, lt=1)


def balance(change: Tensor, rho: Tensor, floor: Tensor, ceiling: Tensor | None = None) -> Tensor:
    """B [M] of Eq. 7 from the metrics' changes [M]; 0-dim rho, floor and ceiling (None: not
    clamped).

    The sum's magnitude is at least `floor`; where it vanishes all are equal, rho (M-1)/M.
    """
    total = change.sum()
    sign = torch.where(total < 0, -torch.ones_like(total), torch.ones_like(total))
    total = sign * torch.maximum(total.abs(), floor)
    vanishes = total.abs() < TINY
    divisor = torch.where(vanishes, torch.ones_like(total), total)
    out = rho * (total - change) / divisor
    even = rho * (len(change) - 1) / len(change)
    out = torch.where(vanishes, even.expand_as(out), out)
    if ceiling is None:
        return out
    return torch.minimum(out.clamp(min=0), ceiling)


def direction_loss(coefficients: Tensor, cosines: Tensor) -> Tensor:
    """L_gm of Eq. 12 from B [M] and the cosines [M]."""
    return (coefficients.abs() - coefficients * cosines).mean()


class CGGM(Method):
    """Classifier-Guided Gradient Modulation: see the module docstring."""

    Config = CGGMConfig
    config: CGGMConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {"magnitude": False, "lam": 0.0}
    support = Support(tasks=TASKS, cost="a small classifier per modality")

    @classmethod
    def settings_for_tests(cls, modalities: Sequence[str], fusion: str) -> Mapping[str, Any]:
        settings: dict[str, Any] = {"classifier_heads": 2, "classifier_dropout": 0.0}
        if fusion in ("mmtm", "esanet"):  # their heads read another width than the features'
            settings["direction"] = "off"
        return settings

    def trains(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        return (*super().trains(modalities), "aux")

    def aux(self, spec: DataSpec, widths: Mapping[str, int]) -> nn.ModuleDict:
        if spec.task.kind == "segmentation":
            return nn.ModuleDict({m: decoder(spec, m, widths[m]) for m in spec.modalities})
        out = nn.ModuleDict()
        for m in spec.modalities:
            out[m] = Classifier(
                widths[m],
                spec.task.outputs,
                self.config.classifier_layers,
                self.config.classifier_heads,
                self.value("classifier_dropout"),
            )
        return out

    def check(self, net: Net) -> None:
        """Dice is of pixels; the direction term needs, per modality, as many columns of the fused
        head as its classifier's head has.
        """
        if self.config.metric == "dice" and net.task.kind != "segmentation":
            raise ValueError(
                f"metric: must be auto, accuracy, mae or loss for {net.task.kind}, got 'dice'"
            )
        for m in net.modalities if self.config.direction != "off" else ():
            columns = range(net.params["fusion.head.weight"].shape[1])
            own = len(columns[net.block(m)])
            theirs = net.params[f"aux.{m}.head.weight"].shape[1]
            if theirs != own:
                raise ValueError(
                    "direction: must be off with this fusion, "
                    f"got '{self.config.direction}': its head has {own} columns for '{m}', "
                    f"the classifier's head {theirs}, and they cannot be compared"
                )

    def init(self, net: Net, start: Start) -> Tensors:
        like = next(iter(net.params.values()))
        return {"metric": torch.zeros(len(net.modalities), dtype=like.dtype, device=like.device)}

    def optim(self, hp: Tensors, optim: Tensors) -> dict[str, Tensors]:
        return {"aux": {"lr": hp["classifier_lr"], "weight_decay": hp["classifier_weight_decay"]}}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        features = net.encode(batch.inputs)
        hidden = net.hidden(features)
        fused = net.head(hidden)
        task = net.loss(fused, batch.target)
        inside = {m: self._classifier_hidden(net, m, f.detach()) for m, f in features.items()}
        logits = {m: self._classifier_head(net, m, h) for m, h in inside.items()}
        own = {m: net.loss(z, batch.target) for m, z in logits.items()}
        measured = self._measure(net, logits, batch.target, hp, state)
        b = self._balance(measured - state["metric"], hp)
        logs = {"train/loss_task": task}
        for i, m in enumerate(net.modalities):
            logs[f"train/loss/{m}"] = own[m]
            logs[f"balance/{m}"] = b[i]
            logs[f"train/metric/{m}"] = measured[i]
            logs[f"balance_negative/{m}"] = (b[i] < 0).to(b.dtype)
        total = task + torch.stack(list(own.values())).sum()
        if self.config.direction != "off":
            cosines = self._cosines(net, fused, hidden, logits, inside, batch.target)
            logs |= {f"train/cos/{m}": cosines[i] for i, m in enumerate(net.modalities)}
            logs["train/loss_direction"] = direction_loss(self._weights(b, hp), cosines)
            total = total + hp["lam"] * logs["train/loss_direction"]
        return total, logs

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        measured = torch.stack([update.logs[f"train/metric/{m}"] for m in net.modalities])
        gradients = update.grads
        if self.config.magnitude:
            factors = {}
            for m in net.modalities:
                factors[f"encoders.{m}"] = update.logs[f"balance/{m}"]
            gradients = grads.scale(gradients, factors)
        new = {"metric": measured.to(state["metric"].dtype)}
        return Update(gradients, update.loss, update.logs, new)

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        """As any method, and the classifiers' logits under `classifier/<modality>` (Table 5)."""
        features = net.encode(inputs)
        out = {"joint": net.fuse(features), **net.unimodal(features, self.unimodal_path)}
        for m, feature in features.items():
            hidden = self._classifier_hidden(net, m, feature)
            out[f"classifier/{m}"] = self._classifier_head(net, m, hidden)
        return out

    def classifier_gradients(self, net: Net, features: Features, target: Tensor) -> Tensors:
        out: Tensors = {}
        for m, feature in features.items():
            hidden = self._classifier_hidden(net, m, feature)
            logits = self._classifier_head(net, m, hidden)
            out[m] = losses.head_gradient(net.task, logits, hidden, target)
        return out

    def _classifier_hidden(self, net: Net, modality: str, feature: Padded) -> Tensor:
        out: Tensor = net.apply(f"aux.{modality}", lambda classifier: classifier.hidden(feature))
        return out

    def _classifier_head(self, net: Net, modality: str, hidden: Tensor) -> Tensor:
        out: Tensor = net.apply(f"aux.{modality}.head", lambda head: head(hidden))
        return out

    def _guard(self, name: str, hp: Tensors, like: Tensor) -> Tensor | None:
        """A guard as a tensor: the trial's own value, else the variant's; None: off."""
        default = (STABLE if self.config.variant == "stable" else PAPER).get(name)
        if name in hp:
            return hp[name]
        if default is None:
            return None
        return torch.full_like(like, default)

    def _measure(
        self, net: Net, logits: Tensors, target: Tensor, hp: Tensors, state: Tensors
    ) -> Tensor:
        """Metrics [M] of the classifiers on this batch, or their running mean."""
        kind: str = self.config.metric
        if kind == "auto":
            kind = {"classification": "accuracy", "regression": "mae", "segmentation": "dice"}[
                net.task.kind
            ]
        now = torch.stack(
            [metrics.batch_metric(net.task, kind, z.detach(), target) for z in logits.values()]
        )
        now = now.to(state["metric"].dtype)
        decay = self._guard("ema", hp, now[0])
        assert decay is not None
        return decay * state["metric"] + (1 - decay) * now

    def _balance(self, change: Tensor, hp: Tensors) -> Tensor:
        clamp = self._guard("clamp", hp, change[0])
        floor = self._guard("floor", hp, change[0])
        assert floor is not None
        ceiling = None if clamp is None else clamp * hp["rho"]
        return balance(change, hp["rho"], floor, ceiling)

    def _weights(self, b: Tensor, hp: Tensors) -> Tensor:
        """B as it enters L_gm: with rho (Eq. 12) or without (public code)."""
        if self.config.rho_in_direction:
            return b
        return b / hp["rho"].clamp(min=TINY)

    def _cosines(
        self,
        net: Net,
        fused: Tensor,
        hidden: Tensor,
        logits: Tensors,
        inside: Tensors,
        target: Tensor,
    ) -> Tensor:
        """[M]: the fused head against each classifier's, by gradient or by weight, over the
        modality's block.
        """
        if self.config.direction == "weight":
            mine = net.params["fusion.head.weight"]
            theirs = {m: net.params[f"aux.{m}.head.weight"].detach() for m in net.modalities}
        else:
            mine = losses.head_gradient(net.task, fused, hidden, target)
            theirs = {}
            for m in net.modalities:
                z = logits[m].detach()
                theirs[m] = losses.head_gradient(net.task, z, inside[m].detach(), target)
        cosines = []
        for m in net.modalities:
            block = mine[:, net.block(m)].flatten()
            cosines.append(torch.cosine_similarity(block, theirs[m].flatten(), 0))
        return torch.stack(cosines)


plugin = CGGM
