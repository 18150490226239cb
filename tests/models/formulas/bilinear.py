"""Sums over all pairs of components."""

from itertools import combinations

import torch

from tests.models.formulas._features import means

CASES: dict[str, dict[str, object]] = {
    "bilinear": {"width": 5},
}


def products(fusion, h, alone=None):
    """sum over pairs i < j of sum_kl W_ij[o, k, l] h_i[k] h_j[l], plus the bias; `alone`: in its
    pairs, with itself.
    """
    out = fusion.product.bias
    matrices = fusion.product.weight.chunk(len(list(combinations(h, 2))), 1)
    for weight, (a, b) in zip(matrices, combinations(h, 2), strict=True):
        if alone in (None, a, b):
            x, y = (h[a], h[b]) if alone is None else (h[alone], h[alone])
            out = out + torch.einsum("okl,bk,bl->bo", weight.view(-1, x.shape[1], y.shape[1]), x, y)
    return out


def literal(model, config, features, alone, path):
    return products(model.fusion, means(features), alone)
