"""Activation checkpointing: less memory for more time, also where a module is bound to tensors that
are not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tune_mm.core.torch_internals import transformed


def recomputed(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), whose inner values are computed again in the backward pass instead of being kept
    (Chen et al., 2016).

    The second pass uses the tensors that the layer is bound to now, and each of its modules is in
    training or in evaluation mode as it is now: by the time of it, `functional_call` and
    `Net.evaluating` have ended. BatchNorm's running statistics move once, and what moves them in
    between does not reach the second pass. Where nothing is kept (no gradient) or hooks on what is
    kept are not there (transforms of torch.func), it is layer(x) alone. The layer must draw no
    random numbers.
    """
    if not torch.is_grad_enabled() or transformed():
        out: Tensor = layer(x)
        return out
    params = dict(layer.named_parameters())
    buffers = dict(layer.named_buffers())
    copies = {name: b.clone() for name, b in buffers.items()}
    modes = {module: module.training for module in layer.modules()}
    passes = 0

    def run(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        own = buffers if passes == 1 else copies
        with _in(modes):
            result: Tensor = torch.func.functional_call(layer, {**params, **own}, (x,))
        return result

    kept: Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
    return kept


@contextmanager
def _in(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Each module in training (True) or evaluation mode; afterwards as it was."""
    before = {module: module.training for module in modes}
    try:
        for module, training in modes.items():
            module.training = training
        yield
    finally:
        for module, training in before.items():
            module.training = training
