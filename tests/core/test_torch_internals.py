"""The undocumented parts of torch that `torch_internals` uses are what it takes them for."""

import torch

from tune_mm.core.torch_internals import copy_all, softmax_backward, transformed, vmapped


def test_transforms_are_seen_from_inside():
    seen = []

    def look(x):
        seen.append((vmapped(), transformed()))
        return x.sum()

    x = torch.ones(2, 3)
    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x)
    torch.func.vmap(torch.func.grad(look))(x)
    assert seen == [(False, False), (False, True), (True, True), (True, True)]


def test_the_gradient_of_a_softmax_is_its_formula():
    """w (g - sum_k g_k w_k)"""
    torch.manual_seed(0)
    weights = torch.softmax(torch.randn(4, 5, dtype=torch.float64), -1)
    grad = torch.randn(4, 5, dtype=torch.float64)
    wanted = weights * (grad - (grad * weights).sum(-1, keepdim=True))
    torch.testing.assert_close(softmax_backward(grad, weights, -1), wanted)


def test_all_values_are_copied_in_place():
    targets = [torch.zeros(2), torch.zeros(3, 1)]
    places = [t.data_ptr() for t in targets]
    copy_all(targets, [torch.ones(2), torch.full((3, 1), 2.0)])
    assert [t.data_ptr() for t in targets] == places
    assert targets[0].tolist() == [1, 1]
    assert targets[1].flatten().tolist() == [2, 2, 2]
