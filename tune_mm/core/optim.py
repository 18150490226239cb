"""SGD, Adam and AdamW as pure functions on flat vectors, equal to `torch.optim` (held by a test).

Each takes and returns everything it uses: (params [P], grads [P], slots, hp, step) -> (params,
slots). `hp` holds 0-dim tensors (or [K, 1] beside [K, P] vectors), so settings may differ between
trials that run the same program. A flat vector per owner costs a dozen kernels a step however many
parameters a model has.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tune_mm.core.types import Tensors

Rule = Callable[[Tensor, Tensor, Tensors, Tensors, int], tuple[Tensor, Tensors]]


def sgd(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    """SGD with momentum (no dampening, no Nesterov) and coupled weight decay. step counts from 1."""
    velocity = grads + hp["weight_decay"] * params
    if step > 1:
        velocity = hp["momentum"] * slots["momentum"] + velocity
    return params - hp["lr"] * velocity, {"momentum": velocity}


def adam(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    """Adam (Kingma & Ba, 2015) with L2 regularisation added to the gradient. step counts from 1."""
    penalised = grads + hp["weight_decay"] * params
    return _adam(params, penalised, slots, hp, step)


def adamw(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    """AdamW (Loshchilov & Hutter, 2019): weight decay apart from the moments. step counts from 1."""
    decayed = params * (1 - hp["lr"] * hp["weight_decay"])
    return _adam(decayed, grads, slots, hp, step)


def _adam(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    beta1 = hp["beta1"]
    beta2 = hp["beta2"]
    mean = beta1 * slots["exp_avg"] + (1 - beta1) * grads
    square = beta2 * slots["exp_avg_sq"] + (1 - beta2) * (grads * grads)
    unbiased = square / (1 - beta2**step)
    scale = unbiased.sqrt_().add_(hp["eps"])
    rate = hp["lr"] / (1 - beta1**step)
    moved = params - rate * mean / scale
    return moved, {"exp_avg": mean, "exp_avg_sq": square}


RULES: dict[str, Rule] = {"sgd": sgd, "adam": adam, "adamw": adamw}
SLOTS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}
