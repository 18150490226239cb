"""One modality alone: its own encoder, fusion and head, and nothing of the others.

Paper
    DGL (ICCV 2025) Table 1 "Unimodal", Eq. 5: the vanilla unimodal model.
Idea
    What a modality reaches when nothing competes with it.
Equations
    L = loss(f(Omega(h_m)), y)
Deviations
    The public code trains it with zeros in place of the other modalities and a learning rate of its
    own for video; here the model is built for one modality, and the learning rate is a setting like
    any other (`optim.lr`).
Shapes
    Features [B, T, W] or [B, W]; logits [B, C].
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from tune_mm.config import Section
from tune_mm.core.types import DataSpec
from tune_mm.methods.joint import Joint


class UnimodalConfig(Section):
    """modality: the name of the modality to train, as the data set calls it."""

    name: Literal["unimodal"] = "unimodal"
    modality: str


class Unimodal(Joint):
    """One modality alone: see the module docstring."""

    Config = UnimodalConfig
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = "it trains one modality only"

    @classmethod
    def settings_for_tests(cls, modalities: Sequence[str], fusion: str) -> Mapping[str, Any]:
        return {"modality": modalities[0]}

    def spec(self, spec: DataSpec) -> DataSpec:
        """The spec of one modality. Raises ValueError for a modality that the data set does not
        have.
        """
        name = self.config.modality
        if name not in spec.shapes:
            near = difflib.get_close_matches(name, spec.modalities, n=1)
            hint = f"; nearest '{near[0]}'" if near else ""
            raise ValueError(
                f"method.modality: must be one of {', '.join(spec.modalities)}, got '{name}'{hint}"
            )
        return DataSpec({name: spec.shapes[name]}, spec.task)


plugin = Unimodal
