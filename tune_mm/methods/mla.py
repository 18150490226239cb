"""Multimodal Learning with Alternating Unimodal Adaptation.

Paper
    MLA (Zhang et al., CVPR 2024), Sec. 3; DGL (ICCV 2025) Table 1.
Idea
    Modalities take turns within a batch and share one head, whose gradient is kept away from what
    it has learned of the features so far; predictions are weighted by how certain each modality is.
Equations
    For each modality m in turn, one optimizer step of encoder m and the head on
    L_m = loss(W h_m + b, y)
    r = mean over the batch of h_m,  k = P r,  a = decay^(1 + step / steps in the epoch)
    P <- P - k k^T / (a + r^T k),  P <- P / ||P||_F,  gradient of W <- gradient of W P^T        (P = I at first)
    Prediction: sum_m w_m (W h_m + b), with w fixed or w_m = exp(max_j H_j - H_m) / sum, H_m the entropy of m's softmax
Deviations
    * Public code looks for a head called `module.weight`, which does not exist, so that its
      projection is never executed: `project: off` is what it does. Where it would run it divides
      element by element by the matrix a + k r^T, which has zeros: `project: elementwise`. The
      default, `scalar`, is recursive least squares.
    * As in the code P is updated before it is applied, the very first step goes without, and the
      bias is left as it is.
    * P / ||P||_F makes the head's steps shorter, by the root of its width: `normalize: false`
      leaves P as it is.
    * Public code takes the softmax of its entropy over the batch, so that a prediction depends on
      what else is in the batch; here it is over the classes. `inference: fixed` takes `weights`
      (published: .55 and .45; .35, .25, .4).
    * The other encoders are left untouched in a modality's step; in the code momentum and weight
      decay move them.
    * Regression: the shared head as it is, and fixed weights (`inference: auto`), since a score has
      no entropy.
Shapes
    Features [B, T, W] or [B, W], all of one width, two modalities or more; logits [B, C]; state
    `projection` [W, W], `weights` [M].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core import grads as gradients
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import Support, require_modalities
from tune_mm.core.types import Batch, Clock, DataSpec, Inputs, Tensors, Update
from tune_mm.methods import _late

HEAD = "fusion.head.weight"


class MLAConfig(Section):
    """How the head's gradient is projected, and how predictions are combined."""

    name: Literal["mla"] = "mla"
    # How the projection advances, see `advance` (off: no projection).
    project: Literal["scalar", "elementwise", "off"] = "scalar"
    # Whether the projection is divided by its norm after each step.
    normalize: bool = True
    # Base of a: the smaller, the closer to an orthogonal projection.
    decay: float = Field(0.1, gt=0, le=1)
    # Weights of the modalities' predictions (auto: by entropy where there are classes).
    inference: Literal["auto", "fixed", "entropy"] = "auto"
    # Relative weights of `fixed`, by modality.
    weights: _late.Weights = Field(default_factory=dict)


def advance(projection: Tensor, mean: Tensor, damping: Tensor, elementwise: bool = False) -> Tensor:
    """P [W, W] after the mean feature r [W]: P - k k^T / (a + r^T k) with k = P r; elementwise: /
    (a + k r^T).
    """
    k = projection @ mean
    along = torch.outer(k, mean) if elementwise else mean @ k
    return projection - torch.outer(k, k) / (damping + along)


def certainty(logits: Tensor) -> Tensor:
    """[M, B] weights with a sum of 1 over M: softmax of the negative entropy of each modality's
    logits [M, B, C].
    """
    log = torch.log_softmax(logits, -1)
    negative_entropy = (log.exp() * log).sum(-1)
    return torch.softmax(negative_entropy, 0)


class MLA(Method):
    """Multimodal Learning with Alternating Unimodal Adaptation: see the module docstring."""

    Config = MLAConfig
    config: MLAConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "its modalities take turns"
    support = Support(
        least=2, fusions=("shared_head",), cost="an optimizer step per modality and batch"
    )

    def spec(self, spec: DataSpec) -> DataSpec:
        """See `Method.spec`: not with weights of unknown modalities, nor by entropy where there are
        no classes.
        """
        require_modalities("weights", self.value("weights"), spec)
        if self.config.inference == "entropy" and spec.task.kind != "classification":
            raise ValueError(
                f"method.inference: must be auto or fixed for {spec.task.kind}, got 'entropy': "
                "it needs classes"
            )
        return spec

    def init(self, net: Net, start: Start) -> Tensors:
        head = net.params[HEAD]
        eye = torch.eye(head.shape[1], dtype=head.dtype, device=head.device)
        weights = _late.shares(self.value("weights"), net.modalities, head)
        return {"projection": eye, "weights": weights}

    def substeps(self, modalities: tuple[str, ...]) -> int:
        return len(modalities)

    def grads(self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock) -> Update:
        modality = net.modalities[clock.substep]

        def objective(bound: Net) -> tuple[Tensor, Tensors]:
            vector = _late.own_vector(bound, modality, batch.inputs[modality])
            return bound.loss(bound.head(vector), batch.target), {"mean": vector.mean(0)}

        found, loss, seen = gradients.gradient(objective, net, (f"encoders.{modality}", "fusion"))
        logs = {f"train/loss/{modality}": loss}
        projection = state["projection"]
        if self.config.project != "off" and (clock.epoch, clock.step, clock.substep) != (0, 0, 0):
            mean = seen["mean"].to(projection.dtype)
            projection = self._advance(projection, mean, hp["decay"], clock)
            own = found[HEAD]
            found[HEAD] = own @ projection.transpose(0, 1).to(own.dtype)
            whole = own.norm().clamp(min=torch.finfo(own.dtype).tiny)
            logs[f"train/projection/{modality}"] = found[HEAD].norm() / whole
        weights = _late.shares(_late.given(hp), net.modalities, state["weights"])
        return Update(found, loss, logs, {"projection": projection, "weights": weights})

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        alone = net.unimodal(net.encode(inputs), self.unimodal_path)
        weights = state["weights"]
        kind = self.config.inference
        if kind == "entropy" or (kind == "auto" and net.task.kind == "classification"):
            weights = certainty(torch.stack(list(alone.values())))
        return {"joint": _late.weighted(alone, weights), **alone}

    def _advance(self, projection: Tensor, mean: Tensor, decay: Tensor, clock: Clock) -> Tensor:
        damping = decay.to(mean.dtype) ** (1 + clock.step / clock.steps)
        out = advance(projection, mean, damping, self.config.project == "elementwise")
        if self.config.normalize:
            out = out / out.norm()
        return out


plugin = MLA
