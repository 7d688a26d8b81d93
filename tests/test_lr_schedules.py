"""Schedules against torch's own, update by update."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from mura_models.errors import ConfigError
from mura_models.lr_schedules import LR_SCHEDULES, LrSchedule, sample_lr_schedule

BASE_LR, NUM_UPDATES = 0.02, 41


def list_rates(schedule, num_updates=NUM_UPDATES):
    """Give the rate of every update."""
    return [schedule.rate(BASE_LR, update, num_updates) for update in range(num_updates)]


def list_torch_rates(make_scheduler, num_updates=NUM_UPDATES):
    """Give the rate of every update under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(num_updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_stays():
    assert list_rates(LrSchedule(name="constant")) == [BASE_LR] * NUM_UPDATES


def test_step_is_torchs_multi_step():
    ours = list_rates(LrSchedule(name="step", boundary=0.5, final_factor=0.1))
    theirs = list_torch_rates(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones=[20], gamma=0.1))
    assert ours == pytest.approx(theirs)


def test_the_papers_step_goes_from_a_hundredth_to_a_thousandth_half_way():
    schedule = LrSchedule(name="step", boundary=0.5, final_factor=0.1)
    rates = [schedule.rate(0.01, update, 1000) for update in range(1000)]
    assert rates == pytest.approx([0.01] * 500 + [0.001] * 500)


def test_cosine_is_torchs_cosine_annealing():
    def anneal(optimizer):
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=NUM_UPDATES - 1, eta_min=0.01 * BASE_LR)

    assert list_rates(LrSchedule(name="cosine", final_factor=0.01)) == pytest.approx(list_torch_rates(anneal))


def test_exponential_is_torchs_exponential():
    def decay(optimizer):
        return lr_scheduler.ExponentialLR(optimizer, gamma=0.05 ** (1 / (NUM_UPDATES - 1)))

    assert list_rates(LrSchedule(name="exponential", final_factor=0.05)) == pytest.approx(list_torch_rates(decay))


@pytest.mark.parametrize("peak", [8, 15])
def test_one_cycle_is_torchs_one_cycle(peak):
    """Torch puts the peak at update pct_start * total - 1, ours is named by progress."""

    def cycle(optimizer):
        rise = (peak + 1) / NUM_UPDATES
        return lr_scheduler.OneCycleLR(optimizer, BASE_LR, total_steps=NUM_UPDATES, pct_start=rise)

    theirs = list_torch_rates(cycle)
    ours = list_rates(LrSchedule(name="one_cycle", boundary=peak / (NUM_UPDATES - 1)))
    assert ours == pytest.approx(theirs)
    assert ours[peak] == max(ours) == BASE_LR
    assert ours[-1] == pytest.approx(BASE_LR / 25 / 1e4)


def test_warmup_cosine_is_torchs_linear_rise_then_cosine():
    rise = 10
    ours = list_rates(LrSchedule(name="warmup_cosine", boundary=rise / (NUM_UPDATES - 1), final_factor=0.01))
    rising = list_torch_rates(lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 25, total_iters=rise), rise)
    falling = list_torch_rates(
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=NUM_UPDATES - 1 - rise, eta_min=0.01 * BASE_LR),
        NUM_UPDATES - rise,
    )
    assert ours == pytest.approx(rising + falling)


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_drawn_schedule_keeps_the_rate_positive_and_at_most_its_base(name):
    rng = np.random.default_rng(0)
    for _ in range(50):
        schedule = sample_lr_schedule(name, rng)
        assert schedule.name == name
        for num_updates in (1, 2, 7):
            assert all(0 < rate <= BASE_LR for rate in list_rates(schedule, num_updates))


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_progress_beyond_the_ends_counts_as_the_ends(name):
    schedule = LrSchedule(name=name)
    assert schedule.factor(-0.5) == schedule.factor(0)
    assert schedule.factor(1.5) == schedule.factor(1)


def test_the_same_generator_draws_the_same_schedules():
    drawn = [[sample_lr_schedule(name, np.random.default_rng(5)) for name in LR_SCHEDULES] for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "linear"}, "lr_schedule='linear': must be one of constant, step"),
        ({"boundary": 0.0}, "boundary=0.0: must lie between 0 and 1"),
        ({"boundary": 1.0}, "boundary=1.0: must lie between 0 and 1"),
        ({"final_factor": 0.0}, "final_factor=0.0: must be above 0"),
        ({"final_factor": 1.5}, "final_factor=1.5: must be above 0 and at most 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_value(wrong, told):
    with pytest.raises(ConfigError, match=told):
        LrSchedule(**wrong)
