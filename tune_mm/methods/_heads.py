"""Unimodal losses through heads of their own, or through the fusion (`heads`).

Shape legend: B batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.types import DataSpec, Features, Inputs, Tensors
from tune_mm.models.heads import head


class WithHeads(Method):
    """`config.heads` is `own` (a head per modality on its features, `aux.<modality>`) or `fusion`."""

    def trains(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        trained = super().trains(modalities)
        if self.config.heads == "own":
            return *trained, "aux"
        return trained

    def aux(self, spec: DataSpec, widths: Mapping[str, int]) -> nn.ModuleDict | None:
        if self.config.heads == "fusion":
            return None
        return nn.ModuleDict({m: head(spec, m, widths[m]) for m in spec.modalities})

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        """As any method, and logits of own heads under `classifier/<modality>`."""
        features = net.encode(inputs)
        out = {"joint": net.fuse(features), **net.unimodal(features, self.unimodal_path)}
        if self.config.heads == "own":
            for m, z in self.alone(net, features).items():
                out[f"classifier/{m}"] = z
        return out

    def alone(self, net: Net, features: Features) -> Tensors:
        """Unimodal logits per modality of `features`."""
        if self.config.heads == "fusion":
            return net.unimodal(features, self.unimodal_path)
        out: Tensors = {}
        for m, feature in features.items():
            out[m] = net.apply(f"aux.{m}", lambda own, x: own(x), feature)
        return out
