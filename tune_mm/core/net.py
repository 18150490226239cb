"""`Net`: a multimodal model bound to tensors. Every call is pure: same tensors in, same tensors
out.

Two bindings behave alike. Direct: the model's own parameters are used as they are, at no cost.
Functional: parameters and buffers are given as dictionaries (under `torch.func` transforms, or to
evaluate a stored state).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from tune_mm.core import losses, scales
from tune_mm.core.types import Features, Inputs, Padded, PathChoice, Task, Tensors, UnimodalPath


def owned(name: str, prefix: str) -> bool:
    """Whether the parameter `name` lies under `prefix` (by whole path segments, never by
    substring).
    """
    return name == prefix or name.startswith(prefix + ".")


class _Bound(nn.Module):
    """Lets `functional_call` run any function of a module, not only its forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        return call(self.module, *args)


class Net:
    """A model with its task, bound to parameters. See the module docstring.

    model: a module with children `encoders` (by modality) and `fusion` (with `paths`, `block`,
    `head`) that answers `hidden`, `without` and `unimodal`, itself or its fusion. buffers: in
    functional binding, a training pass inside `grads.gradient` leaves the new ones here (the
    running statistics of BatchNorm).
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        params: Mapping[str, Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.modalities: tuple[str, ...] = tuple(
            name for name, _ in model.get_submodule("encoders").named_children()
        )
        self.functional = params is not None
        self.params: Tensors = dict(model.named_parameters() if params is None else params)
        self.buffers: Tensors = dict(model.named_buffers()) if buffers is None else dict(buffers)
        self._given: Tensors = {} if params is None else {**self.params, **self.buffers}
        # A late fusion is called alone; one that steps through the encoders needs the whole model.
        if hasattr(model.get_submodule("fusion"), "without"):
            self._fusing = "fusion"
        else:
            self._fusing = ""

    def bind(self, params: Mapping[str, Tensor]) -> Net:
        """The same model with `params` in place of the present ones (names left out keep theirs),
        and copies of the buffers, which a training pass writes to.
        """
        return Net(
            self.model,
            self.task,
            {**self.params, **params},
            {n: b.clone() for n, b in self.buffers.items()},
        )

    def _calling(self, instead: Tensors) -> Net:
        """The same net, in the same binding, which calls the model with the tensors of `instead`
        for its own.
        """
        net = copy(self)
        net._given = {**self._given, **instead}
        return net

    def stop(self, prefix: str) -> Net:
        """The same net in which no gradient reaches the parameters under `prefix`. Raises KeyError
        if it owns none.
        """
        stopped = {}
        for name, p in self.group(prefix).items():
            stopped[name] = p.detach()
        net = self._calling(stopped)
        net.params = {**self.params, **stopped}
        return net

    def apart(self) -> Net:
        """The same net with copies of the buffers: what a training pass does to running statistics
        is forgotten.
        """
        if self.model.training:
            copies = {name: b.clone() for name, b in self.buffers.items()}
        else:
            copies = {}
        net = self._calling(copies)
        net.buffers = copies or self.buffers
        return net

    def group(self, *prefixes: str) -> Tensors:
        """Parameters under any of `prefixes`. Raises KeyError for a prefix that owns none."""
        for prefix in prefixes:
            if not any(owned(name, prefix) for name in self.params):
                raise KeyError(f"no parameter under '{prefix}'")
        found = {}
        for n, p in self.params.items():
            if any(owned(n, q) for q in prefixes):
                found[n] = p
        return found

    def apply(self, path: str, call: Callable[..., Any], *args: Any) -> Any:
        """`call(submodule, *args)` with the submodule at `path` ("": the model) bound to this net's
        tensors.
        """
        module = self.model.get_submodule(path)
        start = len(path) + 1 if path else 0
        given = {}
        for n, t in self._given.items():
            if not path or owned(n, path):
                given[f"module.{n[start:]}"] = t
        if not given:
            return call(module, *args)
        return torch.func.functional_call(_Bound(module), given, (call, *args), tie_weights=False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """For passes beside the training one: no dropout, and BatchNorm's running statistics used
        but not changed.
        """
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def encode(self, inputs: Inputs) -> Features:
        """Features per modality, each from its own encoder."""
        found = {}
        for m in self.modalities:
            found[m] = self.encode_one(m, inputs[m])
        return found

    def encode_one(self, modality: str, x: Padded) -> Padded:
        """Features of one modality."""
        out: Padded = self.apply(f"encoders.{modality}", lambda encoder: encoder(x))
        return out

    def hidden(self, features: Features, absent: Collection[str] = ()) -> Tensor:
        """[B, H]: what the fusion's linear head reads. absent: modalities that are zeroed (DGL,
        Sec. 3.2); BatchNorm's running statistics, which the multimodal prediction uses, do not see
        such a pass.
        """
        out: Tensor
        if absent:
            out = self.apart().apply(self._fusing, lambda part: part.without(features, absent))
        else:
            out = self.apply(self._fusing, lambda part: part.hidden(features))
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B, C] of a hidden [B, H]."""
        out: Tensor = self.apply("fusion.head", lambda head: head(hidden))
        return scales.beside(out, scales.coarser(hidden))

    def fuse(self, features: Features) -> Tensor:
        """Logits [B, C]."""
        return self.head(self.hidden(features))

    def path(self, choice: PathChoice) -> UnimodalPath:
        """How a modality alone passes the fusion. Raises ValueError for a way that the fusion does
        not have.
        """
        fusion: Any = self.model.get_submodule("fusion")
        if choice == "auto":
            default: UnimodalPath = fusion.paths[0]
            return default
        if choice not in fusion.paths:
            if choice in fusion.refused:
                why = f" ({fusion.refused[choice]})"
            else:
                why = ""
            allowed = ", ".join(("auto", *fusion.paths))
            raise ValueError(
                f"unimodal_path: must be one of {allowed} with this fusion, got '{choice}'{why}"
            )
        return choice

    def unimodal_hidden(self, features: Features, path: PathChoice = "auto") -> Tensors:
        """Hidden [B, H] per modality, each alone through the fusion; running statistics do not see
        these passes.
        """
        way = self.path(path)
        out: Tensors = self.apart().apply(self._fusing, lambda part: part.unimodal(features, way))
        return out

    def unimodal(self, features: Features, path: PathChoice = "auto") -> Tensors:
        """Logits [B, C] per modality, each alone through the fusion and its head."""
        found = {}
        for m, h in self.unimodal_hidden(features, path).items():
            found[m] = self.head(h)
        return found

    def block(self, modality: str) -> slice:
        """Columns of the head's weight that belong to `modality`."""
        out: slice = self.apply("fusion", lambda fusion: fusion.block(modality))
        return out

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The task loss, averaged over the batch; with predictions at coarser scales (`scales`) the
        sum of all.
        """
        loss = losses.task_loss(self.task, logits, target)
        for coarser in scales.coarser(logits):
            loss = loss + losses.task_loss(self.task, coarser, target)
        return loss
