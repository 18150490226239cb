"""Gradient statistics that need an extra pass: measured once an epoch on one fixed batch of
training samples.

What the papers plot: DGL Fig. 1c and 3 (`norm_multi`, `norm_uni`, `suppression`), CGGM Fig. 2c and
3c (`cos`) and, once at the end of a run, Fig. 4 (`vectors`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tune_mm.core import losses
from tune_mm.core.grads import flat, groups
from tune_mm.core.method import Method
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, Features, PathChoice, Tensors

EXPONENT_CAP = 50.0


def probe(net: Net, batch: Batch, path: PathChoice) -> Tensors:
    """Per modality m, with the model in evaluation mode (dropout off), so that no random number is
    drawn.

    grad/norm_multi/<m>, grad/norm_uni/<m>: L2 norm of the gradient that the multimodal loss, and
    the loss of m alone through the fusion, send to encoder m. grad/cos/<m>: cosine between the
    head's weight gradients of the two losses, over m's block. grad/suppression/<m>: see
    `suppression`. probe/loss/<m>: the loss of m alone.
    """
    features = net.encode(batch.inputs)
    target = batch.target
    hidden = net.hidden(features)
    joint = net.head(hidden)
    alone = net.unimodal_hidden(features, path)
    logits = {m: net.head(h) for m, h in alone.items()}
    unimodal = {m: net.loss(z, target) for m, z in logits.items()}
    multi_norms = _norms(net, net.loss(joint, target))
    uni_norms = _norms(net, torch.stack(list(unimodal.values())).sum())
    out: Tensors = {}
    with torch.no_grad():
        fused = losses.head_gradient(net.task, joint, hidden, target)
        for m in net.modalities:
            own = losses.head_gradient(net.task, logits[m], alone[m], target)
            block = net.block(m)
            shared_part = fused[:, block].flatten()
            own_part = own[:, block].flatten()
            out[f"grad/norm_multi/{m}"] = multi_norms[m]
            out[f"grad/norm_uni/{m}"] = uni_norms[m]
            out[f"grad/cos/{m}"] = torch.cosine_similarity(shared_part, own_part, 0)
            out[f"probe/loss/{m}"] = unimodal[m].detach()
        if net.task.kind == "classification":
            out.update(suppression(net, features, target))
    return out


def vectors(net: Net, batch: Batch, method: Method) -> Tensors:
    """Gradient vectors [D] of one batch, by "<modality>/<kind>", as CGGM's Fig. 4 compares them.

    unimodal: of the fused head's weight, over the modality's block, when the modality passes the
    fusion alone; classifier: of the head of the method's own classifier of that modality (methods
    with classifiers only).
    """
    with torch.no_grad():
        features = net.encode(batch.inputs)
        alone = net.unimodal_hidden(features, method.unimodal_path)
        found: Tensors = {}
        for m in net.modalities:
            own = losses.head_gradient(net.task, net.head(alone[m]), alone[m], batch.target)
            found[f"{m}/unimodal"] = own[:, net.block(m)].flatten()
        theirs = method.classifier_gradients(net, features, batch.target)
        for m, gradient in theirs.items():
            found[f"{m}/classifier"] = gradient.flatten()
        return found


def _norms(net: Net, loss: Tensor) -> Tensors:
    """L2 norm of the gradient of `loss` with respect to each encoder."""
    params = net.group("encoders")
    values = torch.autograd.grad(
        loss, list(params.values()), retain_graph=True, materialize_grads=True
    )
    grads = dict(zip(params, values, strict=True))
    out: Tensors = {}
    for owner, names in groups(grads).items():
        modality = owner.split(".")[1]
        out[modality] = flat(grads, names).norm()
    return out


def suppression(net: Net, features: Features, target: Tensor) -> Tensors:
    """grad/suppression/<m>: DGL's s = exp((W_k - W_y) z) of the *other* modalities, averaged over k
    != y and samples.

    z is what the head reads with m's features at 0 and the bias does not count (DGL, Sec. 3.1 and
    Fig. 3a): s < 1 shrinks the gradient that encoder m receives. Exponents are capped at 50. target
    [B].
    """
    out: Tensors = {}
    bias = net.params.get("fusion.head.bias")
    others = torch.nn.functional.one_hot(target, net.task.outputs) == 0
    for m in net.modalities:
        logits = net.head(net.hidden(features, (m,)))
        scores = logits if bias is None else logits - bias
        of_the_class = scores.gather(1, target[:, None])
        gap = (scores - of_the_class).clamp(max=EXPONENT_CAP)
        total = (gap.exp() * others).sum()
        out[f"grad/suppression/{m}"] = total / others.sum()
    return out
