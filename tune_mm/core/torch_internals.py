"""What this project uses of torch that torch does not document, each with the reason.

Held by tests/core/test_torch_internals.py, which an upgrade of torch breaks first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _functorch as functorch


def vmapped() -> bool:
    """Whether this code runs under `torch.func.vmap`, at any depth.

    Why: what is fastest alone (bytes of random bits, kernels of our own) has no batching rule.
    """
    stack = functorch.get_interpreter_stack()
    return stack is not None and any(level.key() == functorch.TransformType.Vmap for level in stack)


def transformed() -> bool:
    """Whether this code runs under any transform of `torch.func` (grad, vjp, vmap)."""
    return bool(functorch.get_interpreter_stack())


def softmax_backward(grad: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The gradient of a softmax with output `weights` along `dim`.

    Why: autograd's own kernel; weights * (grad - sum(grad * weights)) takes two more passes over
    the scores, which are most of an attention's memory.
    """
    out: Tensor = torch._softmax_backward_data(grad, weights, dim, weights.dtype)
    return out


def copy_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value into its target.

    Why: one kernel for all of a model's parameters, where a loop has one for each.
    """
    torch._foreach_copy_(list(targets), list(values))
