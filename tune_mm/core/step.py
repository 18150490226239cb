"""One optimizer step: clip, then one update rule per owner of parameters, on flat vectors.

A small model is one vector per owner; a large one is taken in parts, so that nothing of its size is
copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tune_mm.core import optim
from tune_mm.core.grads import flat, groups, unflat
from tune_mm.core.torch_internals import copy_all
from tune_mm.core.types import Tensors

PART = 2**21  # values of a vector: 8 MiB in float32, which caches hold


@dataclass(frozen=True)
class OptState:
    """An optimizer's memory."""

    slots: dict[str, Tensors] = field(default_factory=dict)  # by name and parameter
    # Taken by each parameter; an untouched one takes none.
    steps: dict[str, int] = field(default_factory=dict)


def init(name: str, params: Tensors) -> OptState:
    """Zero state for all of `params` under the rule `name` (sgd, adam, adamw)."""
    slots: dict[str, Tensors] = {}
    for slot in optim.SLOTS[name]:
        slots[slot] = {n: torch.zeros_like(p) for n, p in params.items()}
    return OptState(slots, dict.fromkeys(params, 0))


def norms(
    grads: Tensors, owners: Mapping[str, list[str]], max_norm: Tensor | None
) -> tuple[Tensors, Tensor | None]:
    """L2 norm per owner, and the clipping factor over everything but `aux` (None: no clipping)."""
    found: Tensors = {}
    for owner, names in owners.items():
        parts = []
        for part in _parts(grads, names):
            parts.append(flat(grads, part).norm())
        found[owner] = parts[0] if len(parts) == 1 else torch.stack(parts).norm()
    if max_norm is None:
        return found, None
    clipped = [norm for owner, norm in found.items() if owner != "aux"]
    total = torch.stack(clipped).norm()
    factor = max_norm / (total + 1e-6)
    return found, factor.clamp(max=1.0)


def rated(overrides: Mapping[str, Tensors], hp: Tensors, rates: Tensors) -> dict[str, Tensors]:
    """`overrides` of `hp` by owner, with the learning rate of each owner in `rates` times its factor."""
    out = dict(overrides)
    for owner, factor in rates.items():
        own = out.get(owner, {})
        lr = own.get("lr", hp["lr"])
        out[owner] = {**own, "lr": lr * factor}
    return out


def descend(
    rule: str,
    params: Tensors,
    grads: Tensors,
    state: OptState,
    hp: Tensors,
    overrides: Mapping[str, Tensors] | None = None,
    in_place: bool = False,
) -> tuple[Tensors, OptState, Tensors]:
    """New parameters, new state, and `grad/norm/<modality>` of the gradients applied.

    params and grads by name; a parameter without a gradient is left untouched (no weight decay, no
    momentum). hp: the rule's 0-dim tensors, and `clip` for the maximum norm over everything but
    `aux`. overrides: settings by owner. in_place: write to `params` and to the slots of `state`,
    which then are the new ones; no second copy is made.
    """
    owners = groups(grads)
    found, clip = norms(grads, owners, hp.get("clip"))
    if in_place:
        new = dict(params)
        slots = state.slots
    else:
        new = {}
        slots = {slot: dict(values) for slot, values in state.slots.items()}
    for owner, names in owners.items():
        settings = {**hp, **(overrides or {}).get(owner, {})}
        for step, chosen in _by_steps(state, names).items():
            for part in _parts(grads, chosen):
                slope = flat(grads, part)
                if clip is not None and owner != "aux":
                    slope = slope * clip
                old = {slot: flat(values, part) for slot, values in slots.items()}
                before = flat(params, part)
                moved, memory = optim.RULES[rule](before, slope, old, settings, step + 1)
                values = unflat(moved, params, part)
                if in_place:
                    copy_all([params[name] for name in part], list(values.values()))
                else:
                    new.update(values)
                for slot, vector in memory.items():
                    slots[slot].update(unflat(vector, params, part))
    steps = {name: taken + (name in grads) for name, taken in state.steps.items()}
    return new, OptState(slots, steps), _logged(found, clip)


def _logged(found: Tensors, clip: Tensor | None) -> Tensors:
    """Norms of the encoders' gradients as they were applied."""
    logs: Tensors = {}
    for owner, norm in found.items():
        kind, _, modality = owner.partition(".")
        if kind == "encoders":
            logs[f"grad/norm/{modality}"] = norm if clip is None else norm * clip
    return logs


def _parts(tensors: Tensors, names: list[str]) -> list[list[str]]:
    """Names in order, in parts of at most PART values in all, or of a single tensor."""
    out: list[list[str]] = []
    room = 0
    for name in names:
        size = tensors[name].numel()
        if size > room:
            out.append([])
            room = PART
        out[-1].append(name)
        room -= size
    return out


def _by_steps(state: OptState, names: list[str]) -> dict[int, list[str]]:
    out: dict[int, list[str]] = {}
    for name in names:
        out.setdefault(state.steps[name], []).append(name)
    return out
