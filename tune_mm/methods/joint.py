"""Joint training, the baseline that every balancing method is compared with.

Paper
    DGL (ICCV 2025) Table 1 "Concat"; CGGM (NeurIPS 2024) Table 2 "Baseline".
Idea
    One loss on the fused prediction.
Equations
    L = loss(f(Omega(h_1 .. h_M)), y)
Deviations
    None.
Shapes
    Features [B, T, W] or [B, W] per modality; logits [B, C].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.support import TASKS, Support
from tune_mm.core.types import Batch, Clock, Tensors


class JointConfig(Section):
    """No settings of its own."""

    name: Literal["joint"] = "joint"


class Joint(Method):
    """Joint training: see the module docstring."""

    Config: ClassVar[type[Section]] = JointConfig
    neutral: ClassVar[Mapping[str, Any] | None] = {}
    support = Support(tasks=TASKS)
    separable = True

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        return net.loss(net.fuse(net.encode(batch.inputs)), batch.target), {}


plugin = Joint
