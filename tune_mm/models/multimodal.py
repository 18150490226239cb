"""An encoder per modality, a fusion, and what the method adds: `encoders.<modality>.*`, `fusion.*`, `aux.*`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tune_mm import plugins
from tune_mm.core.types import DataSpec, Inputs
from tune_mm.models.base import Encoder, Fusion

Aux = Callable[[DataSpec, Mapping[str, int]], nn.ModuleDict | None]


class MultimodalModel(nn.Module):
    """Encoders in the order of the modalities, the fusion, and `aux`: the method's extra modules, used in training."""

    def __init__(self, encoders: dict[str, Encoder], fusion: Fusion, aux: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        if aux is not None:
            self.aux = aux

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits [B, C]."""
        out: Tensor = self.fusion({m: encoder(inputs[m]) for m, encoder in self.encoders.items()})
        return out


def build(config: Any, spec: DataSpec, aux: Aux | None = None) -> MultimodalModel:
    """The model of a `model` section (`encoder` and `fusion` plug-in sections) for data of `spec`.

    aux: makes the method's extra modules from the spec and the feature width per modality (None: it has none).
    Raises ValueError, naming the section, for shapes or widths that an encoder or the fusion cannot take.
    """
    encoder, fusion = (plugins.load(k, s.name) for k, s in (("encoders", config.encoder), ("fusions", config.fusion)))
    encoders: dict[str, Encoder] = {}
    for modality, shape in spec.shapes.items():
        try:
            encoders[modality] = encoder.build(config.encoder, shape)
        except ValueError as error:
            raise ValueError(f"model.encoder: modality '{modality}': {error}") from error
    widths = {m: e.width for m, e in encoders.items()}
    try:
        fused = fusion.build(config.fusion, spec, widths)
    except ValueError as error:
        raise ValueError(f"model.fusion: {error}") from error
    return MultimodalModel(encoders, fused, None if aux is None else aux(spec, widths))


plugin = build
