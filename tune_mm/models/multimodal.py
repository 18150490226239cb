"""An encoder per modality, a fusion, and what the method adds: `encoders.<modality>.*`, `fusion.*`,
`aux.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from torch import Tensor, nn

from tune_mm import plugins
from tune_mm.core.types import DataSpec, Features, Inputs, UnimodalPath
from tune_mm.models.base import (
    DenseEncoder,
    DenseFusion,
    Encoder,
    Fusion,
    LateFusion,
    StagedEncoder,
    StagedFusion,
)

Aux = Callable[[DataSpec, Mapping[str, int]], nn.ModuleDict | None]


class MultimodalModel(nn.Module):
    """Encoders in the order of the modalities, the fusion, and `aux`: the method's extra modules,
    used in training.

    It answers what a fusion answers (`hidden`, `without`, `unimodal`), whether or not the fusion
    needs the encoders.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], fusion: Fusion, aux: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        if aux is not None:
            self.aux = aux

    @property
    def _staged(self) -> Mapping[str, StagedEncoder]:
        return cast("Mapping[str, StagedEncoder]", self.encoders)

    def hidden(self, features: Features) -> Tensor:
        """[B, H], what the head reads."""
        return self.without(features, ())

    def without(self, features: Features, absent: Collection[str]) -> Tensor:
        """[B, H] with the modalities in `absent` zeroed."""
        if isinstance(self.fusion, StagedFusion):
            return self.fusion.hidden(self._staged, features, absent)
        late = cast("LateFusion", self.fusion)
        if absent:
            return late.without(features, absent)
        return late.hidden(features)

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """Hidden [B, H] per modality, each alone through the fusion."""
        if isinstance(self.fusion, StagedFusion):
            return self.fusion.unimodal(self._staged, features, path)
        return cast("LateFusion", self.fusion).unimodal(features, path)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits [B, C]."""
        out: Tensor = self.fusion.head(
            self.hidden({m: encoder(inputs[m]) for m, encoder in self.encoders.items()})
        )
        return out


def build(config: Any, spec: DataSpec, aux: Aux | None = None) -> MultimodalModel:
    """The model of a `model` section (`encoder` and `fusion` plug-in sections) for data of `spec`.

    aux: makes the method's extra modules from the spec and the feature width per modality (None: it
    has none). Raises ValueError, naming the section, for shapes or widths that an encoder or the
    fusion cannot take.
    """
    encoder, fusion = (
        plugins.load(k, s.name)
        for k, s in (("encoders", config.encoder), ("fusions", config.fusion))
    )
    encoders: dict[str, Encoder] = {}
    for modality, shape in spec.shapes.items():
        try:
            encoders[modality] = encoder.build(config.encoder, shape)
        except ValueError as error:
            raise ValueError(f"model.encoder: modality '{modality}': {error}") from error
    _require_dense(config.fusion.name, spec, fusion, encoders)
    given: Mapping[str, Any] = _widths(encoders)
    if issubclass(fusion, StagedFusion | DenseFusion):
        # These take the encoders themselves, stage by stage.
        given = encoders
    try:
        fused = fusion.build(config.fusion, spec, given)
    except ValueError as error:
        raise ValueError(f"model.fusion: {error}") from error
    return MultimodalModel(encoders, fused, None if aux is None else aux(spec, _widths(encoders)))


def _require_dense(
    name: str, spec: DataSpec, fusion: type[Fusion], encoders: Mapping[str, Encoder]
) -> None:
    """Raises ValueError unless pixels are predicted where they are the task, from maps, and nowhere
    else.
    """
    wanted = spec.task.kind == "segmentation"
    if fusion.dense != wanted:
        known = (
            n for n in plugins.available("fusions") if plugins.load("fusions", n).dense == wanted
        )
        if fusion.dense:
            what = "predicts pixels"
        else:
            what = "has one prediction per sample"
        raise ValueError(
            f"model.fusion: must be one of {', '.join(known)} for {spec.task.kind}, "
            f"got '{name}', which {what}"
        )
    for m, encoder in encoders.items():
        if issubclass(fusion, DenseFusion) != isinstance(encoder, DenseEncoder):
            if issubclass(fusion, DenseFusion):
                takes = "maps of several scales at once"
            else:
                takes = "no such maps"
            raise ValueError(
                f"model.encoder: modality '{m}': its features do not fit the {name} fusion, "
                f"which takes {takes}"
            )


def _widths(encoders: Mapping[str, Encoder]) -> dict[str, int]:
    """Channels of the features that each encoder returns: of its maps where a staged fusion takes
    over.
    """
    out = {}
    for modality, encoder in encoders.items():
        maps = isinstance(encoder, StagedEncoder) and encoder.until is not None
        out[modality] = (
            cast("Any", encoder).channels[cast("Any", encoder).until - 1] if maps else encoder.width
        )
    return out


plugin = build
