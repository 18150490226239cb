"""The values that flow through the core.

Shape legend: B batch, N samples, T time steps or frames, D channels of a sequence, C outputs or
channels of an image, H x W an image (a spectrogram is an image of one channel: frequency x time).

torch only; no module of `core` imports ray or mlflow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
TaskKind = Literal["classification", "regression", "segmentation"]
DataKind = Literal["real", "synthetic"]
UnimodalPath = Literal["zero", "mask", "self"]
# `auto`: the fusion's own default.
PathChoice = Literal["auto", "zero", "mask", "self"]
VOID = 255  # the class of pixels that count nowhere


class Padded(NamedTuple):
    """One modality of a batch, or its features."""

    # [B, T, D] for sequences, [B, D] for vectors, [B, C, H, W] for images and the maps of dense
    # encoders, [B, T, C, H, W] for frames or maps of encoders in stages.
    value: Tensor
    # bool [B, T], True where a step is real; None: all are.
    mask: Tensor | None = None
    # Maps [B, C_l, H_l, W_l] of a dense encoder's earlier stages, the finest first.
    levels: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return (self.value, *([] if self.mask is None else [self.mask]), *self.levels)

    def detach(self) -> Padded:
        """The same values with the gradient stopped."""
        return Padded(self.value.detach(), self.mask, tuple(x.detach() for x in self.levels))

    def zero(self) -> Padded:
        """The same shape and mask with every value 0 (how DGL takes a modality away)."""
        return Padded(
            torch.zeros_like(self.value), self.mask, tuple(torch.zeros_like(x) for x in self.levels)
        )

    def to(self, device: torch.device) -> Padded:
        """All tensors on `device`."""
        mask = None if self.mask is None else self.mask.to(device)
        return Padded(self.value.to(device), mask, tuple(x.to(device) for x in self.levels))

    def take(self, index: Tensor) -> Padded:
        """The samples at `index` [B]."""
        mask = None if self.mask is None else self.mask[index]
        return Padded(self.value[index], mask, tuple(x[index] for x in self.levels))


class Stored(ABC):
    """One modality of a split that stays outside memory (a memory-mapped store) until a batch asks
    for it.

    shape: of one sample as a batch holds it.
    """

    shape: tuple[int, ...]

    @property
    def content(self) -> str:
        """A name of what the store was made of, by content; "" where there is none."""
        return ""

    @abstractmethod
    def __len__(self) -> int:
        """Samples."""

    @abstractmethod
    def to(self, device: torch.device) -> Stored:
        """The same samples, whose batches are made on `device`."""

    @abstractmethod
    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        """The samples at `index` (int64 [B], on any device).

        generator: for training, a CPU generator from which crops, frames and flips are drawn; None:
        for evaluation, the same values at every call.
        """


Inputs = dict[str, Padded]
Features = dict[str, Padded]
# (inputs, target, generator) -> the batch's images and its target, changed alike: see
# `Split.transform`.
Transform = Callable[[Inputs, Tensor, torch.Generator | None], tuple[Inputs, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Some samples."""

    # By modality.
    inputs: Inputs
    # int64 [B] (classification), float [B] (regression) or int64 [B, H, W] (segmentation, VOID
    # where nothing is known).
    target: Tensor
    # Stable ids [B].
    index: Tensor


@dataclass(frozen=True)
class Task:
    """What the logits mean."""

    kind: TaskKind
    # The number of classes; 1 for regression.
    outputs: int
    # In the order of the logits.
    class_names: tuple[str, ...] = ()
    # Of the classes in the cross-entropy of a segmentation; (): all 1.
    weights: tuple[float, ...] = ()
    # Weight of the soft Dice loss beside it, of a segmentation.
    dice: float = 0.0
    # Sets of classes by name whose Dice score is reported; (): every class but the first.
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of a data set: the shape of one sample per modality, in order, and the
    task.

    Shapes: (D,) a vector, (T, D) a sequence, (C, H, W) an image or spectrogram, (T, C, H, W)
    frames.
    """

    shapes: Mapping[str, tuple[int, ...]]
    task: Task

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.shapes)


@dataclass(frozen=True)
class Split:
    """All samples of a split.

    Every stored modality and `drawn` take a batch from the same state of the generator.
    """

    # [N, ...] by modality, in memory or stored.
    inputs: Mapping[str, Padded | Stored]
    # [N]; of a segmentation uint8 [N, H, W].
    target: Tensor
    # Names of the samples.
    ids: tuple[str, ...] = ()
    # What is done to the images and the target of a batch alike (crops, flips), from the training
    # batch's generator; for evaluation, without one, the same at every call.
    transform: Transform | None = None
    # Where samples have parts (slices of a volume) of which a training batch draws one: the target
    # of what is drawn. `target` is then that of the part which evaluation sees.
    drawn: Stored | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def stored(self) -> bool:
        """Whether a batch must be read from a store."""
        return any(isinstance(x, Stored) for x in self.inputs.values())

    def to(self, device: torch.device) -> Split:
        """The split on `device`."""
        inputs = {m: x.to(device) for m, x in self.inputs.items()}
        if self.drawn is None:
            drawn = None
        else:
            drawn = self.drawn.to(device)
        return replace(self, inputs=inputs, target=self.target.to(device), drawn=drawn)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The samples at `index` [B] (on any device) as a batch. generator: see `Stored.take`."""
        place = index.to(self.target.device)
        if generator is None or self.drawn is None:
            start = None
        else:
            start = generator.get_state()

        def take(x: Padded | Stored) -> Padded:
            if isinstance(x, Padded):
                return x.take(place)
            if generator is not None and start is not None:
                generator.set_state(start)
            return x.take(index, generator)

        inputs = {m: take(x) for m, x in self.inputs.items()}
        if self.drawn is None or start is None:
            target = self.target[place]
        else:
            target = take(self.drawn).value
        if target.dtype == torch.uint8:
            target = target.long()
        if self.transform is not None:
            inputs, target = self.transform(inputs, target, generator)
        return Batch(inputs, target, place)


@dataclass(frozen=True)
class Dataset:
    """A loaded data set."""

    name: str
    spec: DataSpec
    # `train`, `val` and `test`, never with the same samples.
    splits: Mapping[str, Split]
    # Where they came from.
    kind: DataKind = "real"
    # What a user should know, one line each.
    notes: tuple[str, ...] = field(default=())
    # Samples left out, by name, with the reason.
    dropped: Mapping[str, str] = field(default_factory=dict)


class Clock(NamedTuple):
    """Integers that a method may branch on."""

    # From 0.
    epoch: int
    # Within the epoch, from 0.
    step: int
    # Per epoch.
    steps: int
    # Of the whole run.
    epochs: int
    # Of a step that is taken in several parts.
    substep: int = 0

    def within(self, start: Tensor, end: Tensor) -> Tensor:
        """bool (0-dim): whether this epoch lies in the window from `start` to `end` (excluded),
        fractions of the epochs rounded to whole ones.
        """
        return (self.epoch >= torch.round(start * self.epochs)) & (
            self.epoch < torch.round(end * self.epochs)
        )


@dataclass(frozen=True)
class EpochEnd:
    """What a method does between epochs."""

    # Its next state.
    state: Tensors
    # 0-dim tensors.
    logs: Tensors = field(default_factory=dict)
    # New values by name of parameters that it replaces, whose optimizer memory starts anew, and of
    # buffers.
    params: Tensors = field(default_factory=dict)
    # Training samples seen beside the epoch's own.
    samples: int = 0


@dataclass(frozen=True)
class Update:
    """What a step hands to the optimizer."""

    # Gradients by parameter name; a name left out is left untouched.
    grads: Tensors
    # 0-dim.
    loss: Tensor
    # 0-dim tensors, averaged over the epoch on the device.
    logs: Tensors
    # The method's next state.
    state: Tensors
    # Factors (0-dim) on the learning rate by owner of parameters, for this step.
    rates: Tensors = field(default_factory=dict)
