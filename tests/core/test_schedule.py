"""Schedules against torch.optim.lr_scheduler."""

import pytest
import torch

from tune_mm.config import ScheduleConfig
from tune_mm.core import schedule


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def factors(config, epochs, losses=None):
    out, plateau = [], schedule.Plateau()
    for epoch in range(epochs):
        out.append(schedule.factor(config, epoch, epochs, plateau))
        plateau = schedule.observe(config, plateau, losses[epoch] if losses else 0.0, epochs)
    return out


def torch_factors(make, epochs, losses=None):
    opt = optimizer()
    scheduler, out = make(opt), []
    for epoch in range(epochs):
        out.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step(losses[epoch]) if losses else scheduler.step()
    return out


def test_step_at_epochs_and_at_fractions():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [7, 9], 0.1), 10)
    assert factors(ScheduleConfig(name="step", milestones=(7, 9)), 10) == pytest.approx(expected)
    assert factors(ScheduleConfig(name="step", milestones=(0.7, 0.9)), 10) == pytest.approx(
        expected
    )


def test_cosine():
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.1), 10
    )
    assert factors(ScheduleConfig(name="cosine", floor=0.1), 10) == pytest.approx(expected)


def test_plateau():
    losses = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.94, 0.5, 0.6, 0.7, 0.8, 0.9]
    make = lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=2)  # noqa: E731
    expected = torch_factors(make, 12, losses)
    found = factors(ScheduleConfig(name="plateau", patience=2), 12, losses)
    assert found == pytest.approx(expected)
    assert min(found) < 0.05
    as_fraction = factors(ScheduleConfig(name="plateau", patience=2 / 12), 12, losses)
    assert as_fraction == pytest.approx(expected)


def test_warmup_is_linear_then_hands_over():
    found = factors(ScheduleConfig(name="constant", warmup=4, warmup_start=0.2), 6)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors(ScheduleConfig(name="cosine", warmup=0.5, warmup_start=0.5), 4)[
        2
    ] == pytest.approx(1.0)


def test_warmup_and_cosine_by_step():
    """CGGM on BraTS: linear from 4e-4 to 1e-2 over 10 epochs, then torch's cosine to 1e-3, by
    iteration.
    """
    epochs, steps, rise = 16, 5, 10
    config = ScheduleConfig(name="cosine", per="step", warmup=rise, warmup_start=0.04, floor=0.1)
    found = [
        1e-2 * schedule.factor(config, e, epochs, schedule.Plateau(), i / steps)
        for e in range(epochs)
        for i in range(steps)
    ]
    up = [4e-4 + (1e-2 - 4e-4) * t / (rise * steps) for t in range(rise * steps)]
    left = (epochs - rise) * steps
    down = torch_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, left, eta_min=0.1), left
    )
    assert found == pytest.approx(up + [1e-2 * f for f in down])
    assert len(set(found)) == epochs * steps


def test_by_epoch_the_steps_change_nothing():
    config = ScheduleConfig(name="cosine", warmup=2)
    factor = lambda share: schedule.factor(config, 3, 8, schedule.Plateau(), share)  # noqa: E731
    assert factor(0.0) == factor(0.7)


@pytest.mark.parametrize(("epochs", "share"), [(40, 0.1), (20, 0.3)])
def test_one_cycle(epochs, share):
    """torch's own with cosine annealing: from 1/25 to 1 in the warm-up, then to 1/250000."""

    def make(o):
        return torch.optim.lr_scheduler.OneCycleLR(
            o, 1.0, epochs, pct_start=share, cycle_momentum=False
        )

    config = ScheduleConfig(name="onecycle", warmup=share, warmup_start=1 / 25, floor=1 / 25e4)
    found = factors(config, epochs)
    assert found == pytest.approx(torch_factors(make, epochs), rel=1e-9)
    assert (found[0], max(found), found[-1]) == pytest.approx((0.04, 1.0, 4e-6))


def test_one_cycle_without_a_warm_up_falls_from_the_first_epoch():
    found = factors(ScheduleConfig(name="onecycle", floor=0.1), 3)
    assert found == pytest.approx([1.0, 0.55, 0.1])
