"""`Method`: what a balancing method defines. It owns the loss and the gradients, never the loop.

A method holds only its static settings; everything that changes is passed in and returned:
parameters (in `net`), float hyperparameters as 0-dim tensors (`hp`), its own state, and a clock of
Python integers. Method bodies use neither `.item()` nor `if tensor` nor boolean indexing, so that
the same body runs alone and under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tune_mm.core import grads
from tune_mm.core.net import Net
from tune_mm.core.probe import Probe
from tune_mm.core.settings import StaticSettings
from tune_mm.core.support import Support
from tune_mm.core.types import (
    Batch,
    Clock,
    DataSpec,
    EpochEnd,
    Features,
    Inputs,
    PathChoice,
    Tensors,
    Update,
)


@dataclass(frozen=True)
class Start:
    """What a method may ask for before the first step."""

    samples: int  # of the training split
    # Nets of one modality each, trained alone with the given changes of the config and then fixed.
    # Trained once per machine: trials that ask for the same get them from the cache.
    unimodal: Callable[[Mapping[str, Any]], dict[str, Net]]


class Method:
    """Base class: joint training by gradient descent on `loss`, with hooks for what methods change."""

    Config: ClassVar[type[Any]]
    support: ClassVar[Support] = Support()
    unimodal_path: PathChoice = "auto"
    separable: bool = False  # the loss is a mean over samples: a batch may be computed in parts
    linear: ClassVar[bool] = (
        True  # predicts by the fusion's linear head, which is what gradient statistics look at
    )

    # What the conformance tests need to know, told by the method's own file (`settings_for_tests`
    # too): settings at which it equals joint training (None: there are none, and why),
    neutral: ClassVar[Mapping[str, Any] | None] = None
    why_not_neutral: ClassVar[str] = ""
    # settings at which it draws no random numbers.
    deterministic: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any) -> None:
        self._section = config
        self.config: Any = StaticSettings(config)
        # A method that lets its user choose has a setting of that name.
        self.unimodal_path = getattr(config, "unimodal_path", self.unimodal_path)

    @classmethod
    def settings_for_tests(cls, modalities: Sequence[str], fusion: str) -> Mapping[str, Any]:
        """Settings with which the conformance tests make the method for data of `modalities` and a
        small model of that fusion: where its defaults do not do.
        """
        return {}

    @property
    def section(self) -> Any:
        """The whole section of the configuration, tunable settings included."""
        return self._section

    def value(self, name: str) -> Any:
        """A tunable setting as a plain number, for what runs trial by trial.

        That is `dips`, `init`, `check`, `epoch_end` and `predict`. In a step only `hp[name]` is
        right: trials that share a program differ in it.
        """
        return getattr(self._section, name)

    def spec(self, spec: DataSpec) -> DataSpec:
        """What the model is built for: the data set's own spec, or a part of it.

        Raises ValueError when the method does not support this task or these modalities.
        """
        return spec

    def trains(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Prefixes of the parameters that receive gradients; all others are left untouched."""
        return (*(f"encoders.{m}" for m in modalities), "fusion")

    def trained(self, net: Net) -> tuple[str, ...]:
        """`trains` for this model: a method overrides it where a part of the model does not enter
        its loss.
        """
        return self.trains(net.modalities)

    def aux(self, spec: DataSpec, widths: Mapping[str, int]) -> nn.ModuleDict | None:
        """Extra modules under `aux.*`, used in training only. widths: feature width per modality."""
        return None

    def check(self, net: Net) -> None:
        """Raises ValueError, starting with the setting's name, where the method cannot train this
        model.

        Parameters may be without memory (on the meta device).
        """

    def init(self, net: Net, start: Start) -> Tensors:
        """The method's state before the first step."""
        return {}

    def dips(self, epochs: int) -> tuple[tuple[int, int], ...]:
        """Ranges of epochs (from 1, both included) of a run of `epochs` in which metrics may fall
        for a while: after a re-initialisation, at the beginning of a stage. No trial is stopped by
        what it reports there.
        """
        return ()

    def substeps(self, modalities: tuple[str, ...]) -> int:
        """Optimizer steps per batch."""
        return 1

    def optim(self, hp: Tensors, optim: Tensors) -> dict[str, Tensors]:
        """Optimizer settings by prefix that differ from `optim` (the run's own, with its scheduled
        lr).
        """
        return {}

    def loss(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensor, Tensors]:
        """Scalar loss and logs. Logs are averaged over the epoch; `edit` may read them."""
        raise NotImplementedError

    def edit(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock, update: Update
    ) -> Update:
        """Gradient surgery and the next state."""
        return update

    def gradient(
        self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock
    ) -> tuple[Tensors, Tensor, Tensors]:
        """Gradient of `loss` for the parameters that the method trains, the detached loss and logs.

        Of a whole batch, or of a part of one (see `separable`).
        """

        def objective(bound: Net) -> tuple[Tensor, Tensors]:
            return self.loss(bound, batch, hp, state, clock)

        return grads.gradient(objective, net, self.trained(net))

    def grads(self, net: Net, batch: Batch, hp: Tensors, state: Tensors, clock: Clock) -> Update:
        """`gradient`, then `edit`."""
        found = self.gradient(net, batch, hp, state, clock)
        return self.edit(net, batch, hp, state, clock, Update(*found, state))

    def epoch_end(self, probe: Probe, hp: Tensors, state: Tensors, clock: Clock) -> EpochEnd:
        """What happens after an epoch. probe: the net, and the train and val splits (never test)."""
        return EpochEnd(state)

    def classifier_gradients(self, net: Net, features: Features, target: Tensor) -> Tensors:
        """Per modality the gradient [C, W] of the head of the method's own classifier (CGGM, Eq.
        9); {}: it has none.

        features: detached, or this is called under `no_grad`; target [B].
        """
        return {}

    def predict(self, net: Net, inputs: Inputs, state: Tensors) -> Tensors:
        """Logits: `joint`, and each modality alone through the fusion under its own name.

        Of others, such as a method's own classifiers, under `<kind>/<modality>`.
        """
        features = net.encode(inputs)
        return {"joint": net.fuse(features), **net.unimodal(features, self.unimodal_path)}
