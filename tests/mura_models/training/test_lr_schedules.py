"""Schedules against torch's own, step by step, and at the steps where they bend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from mura_models.errors import ConfigError
from mura_models.training.lr_schedules import LR_SCHEDULES, TWO_STAGE, WARMUP_SCHEDULES, LrSchedule, sample_lr_schedule

BASE_LR = 0.02
BUDGETS = (2, 3, 16, 2000)
START, CYCLE_END = 1 / 25, 1 / 25 / 1e4
"""First factor of a warm-up and last one of a cycle: torch's div_factor and final_div_factor."""
QUARTER = (2 + math.sqrt(2)) / 4
"""Half a cosine from 1 to 0, a quarter of its way along."""


def list_rates(schedule, num_steps, base_lr=BASE_LR):
    """Return the rate of every step."""
    return [schedule.rate(base_lr, step, num_steps) for step in range(num_steps)]


def list_torch_rates(make_scheduler, num_steps):
    """Return the rate of every step under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    scheduler = make_scheduler(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def bend_at(name, step, num_steps, **settings):
    """Return the schedules that bend at `step`: given in steps and, within the training, in progress."""
    schedules = [LrSchedule(name=name, boundary_steps=step, **settings)]
    if step < num_steps - 1:
        schedules.append(LrSchedule(name=name, boundary=step / (num_steps - 1), **settings))
    return schedules


def pair_budgets_with_bends(*, latest):
    """Return (budget, boundary) early, half-way and late, up to `latest` steps after the last one."""
    return [
        (budget, boundary)
        for budget in BUDGETS
        for boundary in sorted({1, 2, budget // 3, budget // 2, 1000, *range(budget - 2, budget + 2)})
        if 1 <= boundary <= budget - 1 + latest
    ]


@pytest.mark.parametrize("num_steps", BUDGETS)
def test_constant_is_torchs_constant(num_steps):
    theirs = list_torch_rates(lambda o: lr_scheduler.ConstantLR(o, factor=1), num_steps)
    assert list_rates(LrSchedule(name="constant"), num_steps) == theirs == [BASE_LR] * num_steps


@pytest.mark.parametrize(("num_steps", "drop"), pair_budgets_with_bends(latest=1000))
def test_step_is_torchs_multi_step(num_steps, drop):
    theirs = list_torch_rates(lambda o: lr_scheduler.MultiStepLR(o, milestones=[drop], gamma=0.1), num_steps)
    for schedule in bend_at("step", drop, num_steps, final_factor=0.1):
        assert list_rates(schedule, num_steps) == theirs


@pytest.mark.parametrize("num_steps", BUDGETS)
def test_cosine_is_torchs_cosine_annealing(num_steps):
    def anneal(optimizer):
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps - 1, eta_min=0.01 * BASE_LR)

    ours = list_rates(LrSchedule(name="cosine", final_factor=0.01), num_steps)
    assert ours == pytest.approx(list_torch_rates(anneal, num_steps))


@pytest.mark.parametrize("num_steps", BUDGETS)
def test_exponential_is_torchs_exponential(num_steps):
    def decay(optimizer):
        return lr_scheduler.ExponentialLR(optimizer, gamma=0.05 ** (1 / (num_steps - 1)))

    ours = list_rates(LrSchedule(name="exponential", final_factor=0.05), num_steps)
    assert ours == pytest.approx(list_torch_rates(decay, num_steps))


@pytest.mark.parametrize(("num_steps", "peak"), pair_budgets_with_bends(latest=0))
def test_one_cycle_is_torchs_one_cycle(num_steps, peak):
    """Torch puts the peak at step pct_start * total_steps - 1."""

    def cycle(optimizer):
        rise = (peak + 1) / num_steps
        return lr_scheduler.OneCycleLR(
            optimizer, BASE_LR, total_steps=num_steps, pct_start=rise, div_factor=25, final_div_factor=1e4
        )

    theirs = list_torch_rates(cycle, num_steps)
    for schedule in bend_at("one_cycle", peak, num_steps):
        assert list_rates(schedule, num_steps) == pytest.approx(theirs)


@pytest.mark.parametrize(("num_steps", "peak"), pair_budgets_with_bends(latest=0))
def test_warmup_cosine_is_torchs_linear_rise_then_cosine(num_steps, peak):
    def warm_up(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 25, total_iters=peak)
        if peak == num_steps - 1:  # torch's cosine cannot take no time at all
            return rise
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps - 1 - peak, eta_min=0.01 * BASE_LR)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[peak])

    theirs = list_torch_rates(warm_up, num_steps)
    for schedule in bend_at("warmup_cosine", peak, num_steps, final_factor=0.01):
        assert list_rates(schedule, num_steps) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("schedule", "num_steps", "factors"),
    [
        (LrSchedule(name="constant"), 2000, {0: 1, 999: 1, 1000: 1, 1999: 1}),
        (LrSchedule(name="step", boundary=0.5), 1000, {0: 1, 498: 1, 499: 1, 500: 0.1, 501: 0.1, 999: 0.1}),
        (LrSchedule(name="step", boundary=0.5), 2, {0: 1, 1: 0.1}),
        (LrSchedule(name="step", boundary_steps=7), 16, {0: 1, 6: 1, 7: 0.1, 8: 0.1, 15: 0.1}),
        (LrSchedule(name="cosine", final_factor=0.01), 9, {0: 1, 2: 0.01 + 0.99 * QUARTER, 4: 0.505, 8: 0.01}),
        (LrSchedule(name="cosine", final_factor=0.01), 2, {0: 1, 1: 0.01}),
        (LrSchedule(name="exponential", final_factor=0.01), 2001, {0: 1, 500: 0.1**0.5, 1000: 0.1, 2000: 0.01}),
        (LrSchedule(name="exponential", final_factor=0.01), 2, {0: 1, 1: 0.01}),
        (
            LrSchedule(name="one_cycle", boundary_steps=4),
            9,
            {
                0: START,
                3: START + (1 - START) * QUARTER,
                4: 1,
                5: CYCLE_END + (1 - CYCLE_END) * QUARTER,
                8: CYCLE_END,
            },
        ),
        (
            LrSchedule(name="warmup_cosine", boundary_steps=4, final_factor=0.01),
            9,
            {0: START, 3: 0.76, 4: 1, 5: 0.01 + 0.99 * QUARTER, 8: 0.01},
        ),
        # A boundary between two steps is the later one: 0.3 of 8 is 2.4.
        (LrSchedule(name="warmup_cosine", boundary=0.3), 9, {0: START, 2: 0.68, 3: 1, 8: 0.1}),
        (LrSchedule(name="step", boundary=0.3), 9, {0: 1, 2: 1, 3: 0.1, 8: 0.1}),
        # A warm-up that is longer than the training ends with it.
        (LrSchedule(name="one_cycle", boundary_steps=1000), 3, {0: START, 1: 0.52, 2: 1}),
        (LrSchedule(name="warmup_cosine", boundary_steps=1000), 3, {0: START, 1: 0.52, 2: 1}),
    ],
)
def test_the_factor_at_the_start_around_the_boundary_and_at_the_end(schedule, num_steps, factors):
    ours = {step: schedule.rate(1.0, step, num_steps) for step in factors}
    assert ours == pytest.approx(factors, rel=1e-12, abs=0)


@pytest.mark.parametrize("num_steps", [1, 16, 999, 1000, 1001, 2000, 4096])
def test_the_papers_two_stages_are_a_thousand_steps_at_a_hundredth_then_a_thousandth(num_steps):
    rates = list_rates(TWO_STAGE, num_steps, base_lr=0.01)
    assert rates == pytest.approx(([0.01] * 1000 + [0.001] * 3096)[:num_steps], rel=1e-12, abs=0)


@st.composite
def draw_schedules(draw, names=LR_SCHEDULES):
    """Draw a schedule whose boundary, if it has one, is given in progress or in steps."""
    name = draw(st.sampled_from(names))
    has_boundary = name in ("step", *WARMUP_SCHEDULES)
    return LrSchedule(
        name=name,
        boundary=draw(st.floats(0.001, 0.999)),
        boundary_steps=draw(st.none() | st.integers(1, 400)) if has_boundary else None,
        final_factor=draw(st.floats(1e-6, 1)),
    )


@given(schedule=draw_schedules(), num_steps=st.integers(1, 300))
def test_every_factor_is_above_0_and_at_most_1(schedule, num_steps):
    assert all(0 < factor <= 1 for factor in list_rates(schedule, num_steps, base_lr=1.0))


@given(schedule=draw_schedules(), num_steps=st.integers(2, 5000))
def test_the_first_and_the_last_factor_are_as_documented(schedule, num_steps):
    first, last = (schedule.rate(1.0, step, num_steps) for step in (0, num_steps - 1))
    assert first == pytest.approx(START if schedule.name in WARMUP_SCHEDULES else 1, rel=1e-12)
    ends = {"constant": 1, "one_cycle": CYCLE_END}
    stays_up = schedule.boundary_steps is not None and schedule.boundary_steps > num_steps - 1
    rises_to_the_end = schedule.warmup_steps(num_steps) == num_steps - 1
    end = 1 if stays_up or rises_to_the_end else ends.get(schedule.name, schedule.final_factor)
    assert last == pytest.approx(end, rel=1e-9, abs=0)


@given(boundary=st.integers(1, 10**6), num_steps=st.integers(1, 10**6), data=st.data())
def test_a_step_in_steps_falls_at_that_update_whatever_the_budget(boundary, num_steps, data):
    schedule = LrSchedule(name="step", boundary_steps=boundary, final_factor=0.25)
    steps = {0, boundary - 1, boundary, boundary + 1, num_steps - 1, data.draw(st.integers(0, num_steps - 1))}
    for step in steps:
        if step < num_steps:
            assert schedule.rate(1.0, step, num_steps) == (1.0 if step < boundary else 0.25)


@given(name=st.sampled_from(("step", *WARMUP_SCHEDULES)), num_steps=st.integers(3, 300), data=st.data())
def test_a_boundary_means_the_same_in_progress_and_in_steps(name, num_steps, data):
    in_steps, in_progress = bend_at(name, data.draw(st.integers(1, num_steps - 2)), num_steps)
    assert list_rates(in_progress, num_steps) == list_rates(in_steps, num_steps)


@given(schedule=draw_schedules(), num_steps=st.integers(1, 300))
def test_the_warm_up_is_over_at_the_first_update_at_the_base_rate(schedule, num_steps):
    assert schedule.warmup_steps(num_steps) == list_rates(schedule, num_steps, base_lr=1.0).index(1.0)


@given(schedule=draw_schedules(), num_steps=st.integers(1, 300))
def test_the_rate_rises_to_the_end_of_the_warm_up_and_never_again(schedule, num_steps):
    rates = np.array(list_rates(schedule, num_steps, base_lr=1.0))
    top = schedule.warmup_steps(num_steps)
    assert (np.diff(rates[: top + 1]) >= 0).all()
    assert (np.diff(rates[top:]) <= 0).all()


@pytest.mark.parametrize(
    ("schedule", "num_steps", "warmup_steps"),
    [
        *((LrSchedule(name=name), 16, 0) for name in ("constant", "step", "cosine", "exponential")),
        (TWO_STAGE, 2000, 0),
        (LrSchedule(name="one_cycle", boundary=0.25), 41, 10),
        (LrSchedule(name="one_cycle", boundary=0.28), 26, 7),  # 0.28 * 25 is a little above 7 in floats
        (LrSchedule(name="warmup_cosine", boundary=0.1), 16, 2),
        (LrSchedule(name="warmup_cosine", boundary_steps=5), 16, 5),
        (LrSchedule(name="warmup_cosine", boundary_steps=1000), 16, 15),
        (LrSchedule(name="one_cycle", boundary_steps=1000), 1, 0),
    ],
)
def test_the_warm_up_takes_as_many_steps_as_its_boundary_says(schedule, num_steps, warmup_steps):
    assert schedule.warmup_steps(num_steps) == warmup_steps


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_drawn_schedule_keeps_the_rate_positive_and_at_most_its_base(name):
    rng = np.random.default_rng(0)
    for _ in range(50):
        schedule = sample_lr_schedule(name, rng)
        assert schedule.name == name
        for num_steps in (1, 2, 7):
            assert all(0 < rate <= BASE_LR for rate in list_rates(schedule, num_steps))


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_steps_beyond_the_ends_count_as_the_ends(name):
    schedule = LrSchedule(name=name)
    rates = [schedule.rate(BASE_LR, step, 10) for step in (-5, 0, 9, 14)]
    assert rates[0] == rates[1]
    assert rates[2] == rates[3]


def test_the_same_generator_draws_the_same_schedules():
    drawn = [[sample_lr_schedule(name, np.random.default_rng(5)) for name in LR_SCHEDULES] for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"name": "linear"}, "lr_schedule='linear': must be one of constant, step"),
        ({"boundary": 0.0}, "boundary=0.0: must lie between 0 and 1"),
        ({"boundary": 1.0}, "boundary=1.0: must lie between 0 and 1"),
        ({"name": "step", "boundary_steps": 0}, "boundary_steps=0: must be at least 1"),
        ({"boundary_steps": 5}, "boundary_steps=5: constant has no boundary; step, one_cycle, warmup_cosine have"),
        ({"name": "cosine", "boundary_steps": 5}, "boundary_steps=5: cosine has no boundary"),
        ({"name": "exponential", "boundary_steps": 5}, "boundary_steps=5: exponential has no boundary"),
        ({"boundary": math.nan}, "boundary=nan: must lie between 0 and 1"),
        ({"final_factor": math.nan}, "final_factor=nan: must be above 0"),
        ({"final_factor": 0.0}, "final_factor=0.0: must be above 0"),
        ({"final_factor": 1.5}, "final_factor=1.5: must be above 0 and at most 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_value(wrong, text):
    with pytest.raises(ConfigError, match=text):
        LrSchedule(**wrong)
