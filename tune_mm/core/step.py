"""One optimizer step: clip, then one update rule per owner of parameters, on flat vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tune_mm.core import grads as G
from tune_mm.core import optim
from tune_mm.core.types import Tensors


@dataclass(frozen=True)
class OptState:
    """Slots by name and parameter, and how many steps each parameter has taken (untouched ones take none)."""

    slots: dict[str, Tensors] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)


def init(name: str, params: Tensors) -> OptState:
    """Zero state for all of `params` under the rule `name` (sgd, adam, adamw)."""
    slots = {slot: {n: torch.zeros_like(p) for n, p in params.items()} for slot in optim.SLOTS[name]}
    return OptState(slots, dict.fromkeys(params, 0))


def norms(flats: Mapping[str, Tensor], max_norm: Tensor | None) -> tuple[Tensors, Tensor | None]:
    """L2 norm per owner, and the clipping factor over everything but `aux` (None: no clipping)."""
    found = {owner: flat.norm() for owner, flat in flats.items()}
    if max_norm is None:
        return found, None
    total = torch.stack([n for owner, n in found.items() if owner != "aux"]).norm()
    return found, (max_norm / (total + 1e-6)).clamp(max=1.0)


def rated(overrides: Mapping[str, Tensors], hp: Tensors, rates: Tensors) -> dict[str, Tensors]:
    """`overrides` of `hp` by owner with the learning rate of each owner in `rates` multiplied by its factor."""
    out = dict(overrides)
    for owner, factor in rates.items():
        own = {**hp, **out.get(owner, {})}
        out[owner] = {**out.get(owner, {}), "lr": own["lr"] * factor}
    return out


def descend(
    rule: str,
    params: Tensors,
    grads: Tensors,
    state: OptState,
    hp: Tensors,
    overrides: Mapping[str, Tensors] | None = None,
) -> tuple[Tensors, OptState, Tensors]:
    """New parameters, new state, and `grad/norm/<modality>` of the gradients applied.

    params and grads by name; a parameter without a gradient is left untouched (no weight decay, no momentum). hp: the
    rule's 0-dim tensors, and `clip` for the maximum norm over everything but `aux`. overrides: settings by owner.
    """
    overrides = overrides or {}
    owners = G.groups(grads)
    flats = {owner: G.flat(grads, names) for owner, names in owners.items()}
    found, clip = norms(flats, hp.get("clip"))
    new: Tensors = {}
    slots = {slot: dict(values) for slot, values in state.slots.items()}
    for owner, names in owners.items():
        flat = flats[owner] if clip is None or owner == "aux" else flats[owner] * clip
        settings = {**hp, **overrides.get(owner, {})}
        offsets = _spans(grads, names)
        for step, chosen in _by_steps(state, names).items():
            part = flat if len(chosen) == len(names) else torch.cat([flat[offsets[n]] for n in chosen])
            old = {slot: G.flat(values, chosen) for slot, values in state.slots.items()}
            moved, memory = optim.RULES[rule](G.flat(params, chosen), part, old, settings, step + 1)
            new.update(G.unflat(moved, params, chosen))
            for slot, vector in memory.items():
                slots[slot].update(G.unflat(vector, params, chosen))
    steps = {n: k + (n in grads) for n, k in state.steps.items()}
    logs = {
        f"grad/norm/{owner.split('.')[1]}": n if clip is None else n * clip
        for owner, n in found.items()
        if owner.startswith("encoders.")
    }
    return new, OptState(slots, steps), logs


def _spans(tensors: Tensors, names: list[str]) -> dict[str, slice]:
    out, start = {}, 0
    for name in names:
        out[name] = slice(start, start + tensors[name].numel())
        start += tensors[name].numel()
    return out


def _by_steps(state: OptState, names: list[str]) -> dict[int, list[str]]:
    out: dict[int, list[str]] = {}
    for name in names:
        out.setdefault(state.steps[name], []).append(name)
    return out
