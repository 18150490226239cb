"""ESANet: two encoders whose maps are added stage by stage, gated, into the first one's stream, and
a decoder.

Source: Seichter et al., Efficient RGB-D Semantic Segmentation for Indoor Scene Analysis, ICRA 2021;
used in DGL (ICCV 2025), Table 5.

    F_s = sum_m SE_{s,m}(A_{m,s})            A_{m,s} the maps of modality m after stage s, SE squeeze and excitation
    A_{1,s+1} = stage_{s+1} of encoder 1 (F_s)         A_{m,s+1} = stage_{s+1} of encoder m (A_{m,s}) for m > 1
    D_0 = pyramid pooling (F_S)
    D_k = up(module_k(D_{k-1})) + 1x1(F_{S-k})         k = 1, 2, 3: 3x3 convolution, blocks, learned upsampling
    logits = 1x1(D_3), interpolated; in training 1x1(module_k(D_{k-1})) beside them at 1/32, 1/16, 1/8 of the image,
    whose losses on the target's nearest pixels are added (`core.scales`)

Any number of modalities takes part; the first has the stream that consumes the fused maps.

Zeroing takes a modality away from where the encoders first meet: SE of zeros is zeros, so that F_s
is the sum over the others. An absent first modality has no stream at all: F_s is then what the
others add up to at each stage.

DGL's groups: the encoders' parameters stay theirs, everything here learns from the multimodal loss.

Deviations
    * The head is one 1 x 1 convolution whose output is interpolated bilinearly to the image (paper:
      a 3 x 3 convolution to the classes and two learned upsamplings of their maps, which start as
      bilinear interpolation), so that the gradients of linear heads can be compared.
    * The paper does not say how the learned upsampling meets the border; here the outermost pixels
      are repeated. The official filters have a bias, which here they have not.
    * At each scale the official cross-entropy is divided by the sum of the pixels' weights over the
      batch, so that an image counts by how many known pixels it has; here each image's is, and all
      images count the same (`core.losses`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core import scales
from tune_mm.core.types import DataSpec, Features, Padded
from tune_mm.models.base import DenseHead, Encoder, StagedEncoder, StagedFusion, image_maps
from tune_mm.models.fusions._decoder import DecoderModule, PyramidPooling, SqueezeExcite
from tune_mm.models.maps import channels_last

Count = Annotated[int, Field(ge=1)]
MODULES = 3


class EsanetFusionConfig(Section):
    """Sizes of what follows the encoders."""

    name: Literal["esanet"] = "esanet"
    # Channels of the decoder's three modules, the coarsest first.
    decoder: tuple[Count, Count, Count] = (512, 256, 128)
    # Residual blocks in each module.
    blocks: int = Field(3, ge=0)
    # Regions per side, for each branch of the pyramid pooling.
    bins: tuple[Count, ...] = Field((1, 5), min_length=1)
    # How much squeeze and excitation narrows the channels.
    reduction: int = Field(16, ge=1)
    # Whether each module predicts too, in training.
    sides: bool = True


class EsanetFusion(StagedFusion):
    """Maps [B, 1, C, H, W] after stage 1 -> hidden [B, decoder[-1], h, w] at the size of stage S -
    3 (1/4).
    """

    Config = EsanetFusionConfig
    dense = True

    def __init__(
        self,
        config: EsanetFusionConfig,
        modalities: tuple[str, ...],
        channels: tuple[int, ...],
        spec: DataSpec,
    ) -> None:
        """channels: of the maps after each stage, the same of all encoders."""
        super().__init__()
        self.modalities = modalities
        classes = spec.task.outputs
        height, width = spec.shapes[modalities[0]][-2:]
        self.gates = nn.ModuleList()
        for own in channels:
            gates = {}
            for m in modalities:
                gates[m] = SqueezeExcite(own, config.reduction)
            self.gates.append(nn.ModuleDict(gates))
        self.context = PyramidPooling(channels[-1], config.decoder[0], config.bins)
        self.decoder = nn.ModuleList()
        before = config.decoder[0]
        side = classes if config.sides else 0
        skips = channels[-2 : -2 - MODULES : -1]  # from the coarsest but one upwards
        for after, skip in zip(config.decoder, skips, strict=True):
            self.decoder.append(DecoderModule(before, after, config.blocks, skip, side))
            before = after
        self.head = DenseHead(config.decoder[-1], classes, (height, width))
        channels_last(self)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Encoder]) -> EsanetFusion:
        """See `StagedFusion.build`. Raises ValueError for encoders without stages or with other
        ones than the first, and for images that differ in size.
        """
        shapes = {m: spec.shapes[m] for m in encoders}
        if any(len(s) != 3 for s in shapes.values()) or len({s[1:] for s in shapes.values()}) > 1:
            raise ValueError(f"the esanet fusion needs images (C, H, W) of one size, got {shapes}")
        channels: dict[str, tuple[int, ...]] = {}
        for m, encoder in encoders.items():
            if not isinstance(encoder, StagedEncoder) or len(encoder.channels) <= MODULES:
                raise ValueError(
                    f"the esanet fusion needs encoders of {MODULES + 1} or more stages (esanet, resnet18), "
                    f"which that of '{m}' is not"
                )
            encoder.until = 1
            encoder.through = bool(channels)  # none but the first sees the others
            channels[m] = tuple(encoder.channels)
        if len(set(channels.values())) > 1:
            raise ValueError(
                f"the esanet fusion adds maps, which must have as many channels, got {channels}"
            )
        return cls(config, tuple(encoders), next(iter(channels.values())), spec)

    def block(self, modality: str) -> slice:
        """All columns: a shared representation."""
        return slice(None)

    def hidden(
        self,
        encoders: Mapping[str, StagedEncoder],
        features: Features,
        absent: Collection[str] = (),
    ) -> Tensor:
        """See `StagedFusion.hidden`: [B, decoder[-1], h, w], in training with the side outputs
        beside it.
        """
        present = {}
        for m in self.modalities:
            if m not in absent:
                present[m] = features[m]
        fused = self._fused(encoders, present)
        maps = self.context(fused[-1])
        sides = []
        for module, skip in zip(self.decoder, fused[-2::-1], strict=False):
            maps, side = module(maps, skip)
            if side is not None:
                sides.append(side)
        return scales.beside(maps, sides)

    def _fused(self, encoders: Mapping[str, StagedEncoder], present: Features) -> list[Tensor]:
        """F_s of every stage [B, C_s, H_s, W_s]."""
        first = self.modalities[0]
        out = list[Tensor]()
        for number, gates in enumerate(self.gates, 1):
            own = cast("nn.ModuleDict", gates)
            gated = list[Tensor]()
            for m, x in present.items():
                if number == 1:
                    maps = image_maps(x)
                elif m == first:
                    before = Padded(out[-1][:, None])
                    maps = image_maps(encoders[m].stage(number, before))
                else:
                    maps = x.levels[number - 2].flatten(0, 1)
                gated.append(own[m](maps))
            fused = gated[0]
            for other in gated[1:]:
                fused = fused + other
            out.append(fused)
        return out


plugin = EsanetFusion
