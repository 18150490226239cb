"""Gradients by name, and the few operations on them that methods and the step share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tune_mm.core.net import Net, owned
from tune_mm.core.types import Tensors

Objective = Callable[[Net], tuple[Tensor, Tensors]]


def gradient(
    objective: Objective, net: Net, prefixes: Iterable[str]
) -> tuple[Tensors, Tensor, Tensors]:
    """Gradients of objective(net)[0] for the parameters under `prefixes`, the detached loss and
    detached logs.

    Raises RuntimeError (from torch) when a parameter under `prefixes` does not take part in the
    loss.
    """
    params = net.group(*prefixes)
    if net.functional:

        def bound(given: Tensors) -> tuple[Tensor, tuple[Tensor, Tensors, Tensors]]:
            own = net.bind(given)
            loss, logs = objective(own)
            return loss, (loss, logs, own.buffers)

        found, (loss, logs, buffers) = torch.func.grad(bound, has_aux=True)(params)
        net.buffers.update(buffers)
        return found, loss.detach(), {k: v.detach() for k, v in logs.items()}
    loss, logs = objective(net)
    return of(loss, params), loss.detach(), {k: v.detach() for k, v in logs.items()}


def of(loss: Tensor, params: Tensors) -> Tensors:
    """Gradients of a loss for `params` by name, outside transforms. Raises RuntimeError (from
    torch) for a parameter that takes no part in it.
    """
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def gradients(
    objectives: Objective, net: Net, prefixes: Iterable[str]
) -> tuple[list[Tensors], Tensor, Tensors]:
    """Gradients of each of the losses objectives(net)[0] [K] of one forward pass, the detached
    losses and logs.

    A parameter under `prefixes` that does not take part in a loss has a gradient of 0 there.
    """
    params = net.group(*prefixes)
    if net.functional:

        def bound(given: Tensors) -> tuple[Tensor, tuple[Tensors, Tensors]]:
            own = net.bind(given)
            losses, logs = objectives(own)
            return losses, (logs, own.buffers)

        out: Any = torch.func.vjp(bound, params, has_aux=True)
        losses, back, (logs, buffers) = out
        net.buffers.update(buffers)
        found = []
        for row in torch.eye(len(losses), dtype=losses.dtype, device=losses.device):
            found.append(back(row)[0])
    else:
        losses, logs = objectives(net)
        given = list(params.values())
        rows = []
        for k, loss in enumerate(losses):
            rows.append(
                torch.autograd.grad(
                    loss, given, retain_graph=k + 1 < len(losses), materialize_grads=True
                )
            )
        found = [dict(zip(params, row, strict=True)) for row in rows]
    return found, losses.detach(), {k: v.detach() for k, v in logs.items()}


def scale(grads: Tensors, factors: dict[str, Tensor]) -> Tensors:
    """Gradients multiplied by a 0-dim factor per prefix; others unchanged."""
    out = dict(grads)
    for prefix, factor in factors.items():
        out.update(
            {name: g * factor.to(g.dtype) for name, g in grads.items() if owned(name, prefix)}
        )
    return out


def flat(tensors: Tensors, names: Iterable[str]) -> Tensor:
    """One vector of all the values of `names`, in that order; of one contiguous tensor a view."""
    parts = [tensors[n].reshape(-1) for n in names]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)


def unflat(vector: Tensor, like: Tensors, names: Iterable[str]) -> Tensors:
    """The inverse of `flat`: views of `vector` in the shapes of `like`."""
    names = list(names)
    parts = torch.split(vector, [like[n].numel() for n in names])
    found = {}
    for n, part in zip(names, parts, strict=True):
        found[n] = part.view(like[n].shape)
    return found


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by owner: `encoders.<modality>`, `fusion`, `aux`."""
    out: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        if parts[0] == "encoders":
            owner = ".".join(parts[:2])
        else:
            owner = parts[0]
        out.setdefault(owner, []).append(name)
    return out
