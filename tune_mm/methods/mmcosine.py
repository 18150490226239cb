"""MMCosine: logits are sums of cosines, so that no modality wins by the length of its features.

Paper
    MMCosine, Xu et al., ICASSP 2023, Sec. 3, Eq. 5-6.
Idea
    Features and the head's weights are scaled to length 1 modality by modality; each modality can
    then add to a logit at most as much as any other.
Equations
    z_c = s sum_m cos(W_{c,m}, h_m)        W_{c,m}: the head's row of class c, columns of modality m; no bias
    L   = cross-entropy(z, y)
Deviations
    * The head must be made of blocks, one per modality: `concat`, `sum`, `mmtm`, and `film` and
      `gated` with `symmetric: true`, as the paper makes these two. Other fusions mix modalities in
      what the head reads, and are refused. There h_m is the head's input over the block, for the
      symmetric ones modality m as modulated by the others.
    * Optional contrastive loss of the public code: its published weight is 0, and it is left out.
    * A feature (or weight) of length 0 has cosine 0 and passes no gradient.
    * One modality alone: its features through the fusion by `unimodal_path`, into the same cosines;
      a block of zeros adds nothing.
    * z_c lies in [-sM, sM], and the largest probability among C classes is at most 1 / (1 + (C-1)
      exp(-2sM)): a small s keeps the loss up.
    * Gradient statistics look at the linear head, which does not predict here, and are left out
      (`Method.linear`).
Shapes
    Features [B, T, W] or [B, W] (or maps [B, T, C, H, W]) per modality, any number; hidden [B, H];
    logits [B, C]; state `scale` [].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.support import Support
from tune_mm.core.types import Batch, Clock, Inputs, PathChoice, Tensors, Update

TINY = 1e-24  # of a squared length


class MMCosineConfig(Section):
    """Defaults: published values."""

    name: Literal["mmcosine"] = "mmcosine"
    # s, the factor on the cosines (published 10).
    scale: float = Field(10.0, gt=0)
    # What stands for the other modalities (auto: the fusion's own default).
    unimodal_path: PathChoice = "auto"


def unit(x: Tensor) -> Tensor:
    """x [..., D] with rows of length 1; rows of length 0 stay, and pass no gradient."""
    square = x.square().sum(-1, keepdim=True)
    long = square > TINY
    divisor = torch.where(long, square, torch.ones_like(square))
    return torch.where(long, x * divisor.rsqrt(), torch.zeros_like(x))


def cosines(hidden: Tensor, weight: Tensor, blocks: Iterable[slice]) -> Tensor:
    """Sum over blocks of the cosines [B, C] of hidden [B, H] and weight [C, H] over the block's
    columns.
    """
    found = []
    for block in blocks:
        rows = unit(hidden[:, block])
        classes = unit(weight[:, block])
        found.append(rows @ classes.transpose(0, 1))
    return torch.stack(found).sum(0)


class MMCosine(Method):
    """MMCosine: see the module docstring."""

    Config = MMCosineConfig
    config: MMCosineConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "its logits are cosines"
    support = Support(tasks=("classification",), fusions=("concat", "sum", "film", "gated", "mmtm"))
    separable = True
    linear = False

    def check(self, net: Net) -> None:
        """Each modality must have columns of the head of its own."""
        columns = range(net.params["fusion.head.weight"].shape[1])
        owned = []
        for m in net.modalities:
            for i in columns[net.block(m)]:
                owned.append(i)
        if sorted(owned) != list(columns):
            raise ValueError(
                "name: mmcosine needs a head with columns of its own for each modality, and this fusion's are shared; "
                "set model.fusion.symmetric=true (film, gated) or take concat, sum or mmtm"
            )

    def trained(self, net: Net) -> tuple[str, ...]:
        """All but the head's bias."""
        parts = {".".join(name.split(".")[:2]) for name in net.group("fusion")} - {"fusion.head"}
        return (*(f"encoders.{m}" for m in net.modalities), *sorted(parts), "fusion.head.weight")

    def init(self, net: Net, start: Start) -> Tensors:
        """s, which prediction needs: what it was at the last step."""
        like = net.params["fusion.head.weight"][0, 0]
        return {"scale": torch.full_like(like, self.value("scale")).detach()}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        hidden = net.hidden(net.encode(batch.inputs))
        return net.loss(hp["scale"] * self._cosines(net, hidden), batch.target), {}

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        return Update(update.grads, update.loss, update.logs, {"scale": hp["scale"]})

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        features = net.encode(inputs)
        hidden = {
            "joint": net.hidden(features),
            **net.unimodal_hidden(features, self.unimodal_path),
        }
        found = {}
        for name, h in hidden.items():
            found[name] = state["scale"] * self._cosines(net, h)
        return found

    def _cosines(self, net: Net, hidden: Tensor) -> Tensor:
        blocks = [net.block(m) for m in net.modalities]
        return cosines(hidden, net.params["fusion.head.weight"], blocks)


plugin = MMCosine
