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
    grads = grads + hp["weight_decay"] * params
    velocity = grads if step == 1 else hp["momentum"] * slots["momentum"] + grads
    return params - hp["lr"] * velocity, {"momentum": velocity}


def adam(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    """Adam (Kingma & Ba, 2015) with L2 regularisation added to the gradient. step counts from 1."""
    return _adam(params, grads + hp["weight_decay"] * params, slots, hp, step)


def adamw(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    """AdamW (Loshchilov & Hutter, 2019): weight decay decoupled from the moments. step counts from
    1.
    """
    return _adam(params * (1 - hp["lr"] * hp["weight_decay"]), grads, slots, hp, step)


def _adam(
    params: Tensor, grads: Tensor, slots: Tensors, hp: Tensors, step: int
) -> tuple[Tensor, Tensors]:
    beta1, beta2 = hp["beta1"], hp["beta2"]
    mean = beta1 * slots["exp_avg"] + (1 - beta1) * grads
    square = beta2 * slots["exp_avg_sq"] + (1 - beta2) * (grads * grads)
    scale = (square / (1 - beta2**step)).sqrt_().add_(hp["eps"])
    return params - hp["lr"] / (1 - beta1**step) * mean / scale, {
        "exp_avg": mean,
        "exp_avg_sq": square,
    }


RULES: dict[str, Rule] = {"sgd": sgd, "adam": adam, "adamw": adamw}
SLOTS: dict[str, tuple[str, ...]] = {"sgd": ("momentum",), "adam": ("exp_avg", "exp_avg_sq")}
SLOTS["adamw"] = SLOTS["adam"]
