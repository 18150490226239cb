"""What every encoder must satisfy: shapes, masks, gradients, batch-size independence, ranks.

A new file in tune_mm/models/encoders is covered by existing: it states the ranks of the samples that
it takes (`ranks`) and settings of a small one (`small`).
"""

from __future__ import annotations

import pytest
import torch

from tests.support import named
from tune_mm import plugins
from tune_mm.core.types import Padded
from tune_mm.models.base import DenseEncoder

ENCODERS = plugins.available("encoders")
SAMPLES = {1: (7,), 2: (5, 6), 3: (3, 32, 40), 4: (2, 3, 32, 40)}  # shapes by rank
STEPS = (2, 4)  # ranks of samples with steps or frames, some of which may be padding
TAKEN = [(name, rank) for name in ENCODERS for rank in plugins.load("encoders", name).ranks]
MASKED = [(name, rank) for name, rank in TAKEN if rank in STEPS]
REFUSED = [
    (name, rank)
    for name in ENCODERS
    for rank in (*SAMPLES, 5)
    if rank not in plugins.load("encoders", name).ranks
]
CASE = pytest.mark.parametrize(("name", "rank"), TAKEN)


def make(name, rank):
    cls = plugins.load("encoders", name)
    torch.manual_seed(0)
    return cls.build(cls.Config(**cls.small), SAMPLES[rank]).double()


def values(rank, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SAMPLES[rank], generator=generator, dtype=torch.float64)


def trained(name, rank):
    """In evaluation mode, after a training pass that has moved running statistics."""
    encoder = make(name, rank)
    with torch.no_grad():
        encoder.train()(Padded(2 * values(rank, 4, seed=7) + 1))
    return encoder.eval()


def outputs(found):
    """All tensors that an encoder returns."""
    return [found.value, *found.levels]


@CASE
def test_features_have_the_shape_that_their_kind_promises(name, rank):
    """[B, W] of vectors, images and frames, [B, T, W] of sequences; maps [B, W, h, w] where dense."""
    encoder = make(name, rank)
    found = encoder(Padded(values(rank, 3)))
    if isinstance(encoder, DenseEncoder):
        assert found.value.shape[:2] == (3, encoder.width)
        assert found.value.ndim == 4
        assert [level.shape[1] for level in found.levels] == list(encoder.channels)
        return
    steps = (SAMPLES[2][0],) if rank == 2 else ()
    assert found.value.shape == (3, *steps, encoder.width)


@CASE
def test_a_sample_is_encoded_the_same_in_any_batch(name, rank):
    encoder = trained(name, rank)
    x = values(rank, 3)
    with torch.no_grad():
        together = outputs(encoder(Padded(x)))
        for i in range(3):
            alone = outputs(encoder(Padded(x[i : i + 1])))
            for whole, one in zip(together, alone, strict=True):
                torch.testing.assert_close(whole[i : i + 1], one, rtol=1e-10, atol=1e-12)


@CASE
def test_every_parameter_learns(name, rank):
    encoder = make(name, rank).train()
    found = encoder(Padded(values(rank, 4)))
    # Weights of their own for all outputs: a plain sum has no gradient before a normalisation.
    generator = torch.Generator().manual_seed(3)
    loss = torch.zeros((), dtype=torch.float64)
    for tensor in outputs(found):
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weights * tensor).sum()
    loss.backward()
    for parameter, value in encoder.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.any(), parameter


@pytest.mark.parametrize(("name", "rank"), MASKED)
def test_padding_changes_nothing(name, rank):
    """What real steps are encoded to does not depend on what the padded ones hold."""
    encoder = trained(name, rank)
    x = values(rank, 2)
    mask = torch.ones(2, SAMPLES[rank][0], dtype=torch.bool)
    mask[1, 1:] = False
    other = x.clone()
    other[1, 1:] = 1e3
    with torch.no_grad():
        one = encoder(Padded(x, mask))
        two = encoder(Padded(other, mask))
    real = mask if rank == 2 else slice(None)
    torch.testing.assert_close(one.value[real], two.value[real])
    if rank == 2:
        assert torch.equal(one.mask, mask)


@CASE
def test_the_same_seed_is_the_same_encoder(name, rank):
    again = dict(make(name, rank).named_parameters())
    for parameter, value in make(name, rank).named_parameters():
        torch.testing.assert_close(value, again[parameter], rtol=0, atol=0, msg=named(parameter))


@pytest.mark.parametrize(("name", "rank"), REFUSED)
def test_other_ranks_are_refused(name, rank):
    """By a message that names the encoder, what it takes, and what it got."""
    cls = plugins.load("encoders", name)
    shape = SAMPLES.get(rank, (1, 2, 3, 32, 40))
    with pytest.raises(ValueError, match=rf"the {name} encoder takes .*got shape.*{shape[0]}, ?"):
        cls.build(cls.Config(**cls.small), shape)
