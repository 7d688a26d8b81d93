"""Learning-rate schedules: progress through the training in [0, 1] -> factor on the base rate.

A schedule is arithmetic on two or three numbers, so that a trial is a row of plan.csv and every point of its curve
can be tested. The first update has progress 0 and the last one 1, whatever the number of updates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mura_models.errors import ConfigError

LR_SCHEDULES = ("constant", "step", "cosine", "one_cycle", "warmup_cosine", "exponential")

ONE_CYCLE_START = 1 / 25  # first factor of a cycle, as in torch.optim.lr_scheduler.OneCycleLR
ONE_CYCLE_END = ONE_CYCLE_START / 1e4  # last factor of a cycle, likewise


@dataclass(frozen=True, kw_only=True, slots=True)
class LrSchedule:
    """One curve: its name, where it bends and how low it falls."""

    name: str = "constant"
    boundary: float = 0.5
    """Progress at which `step` drops, or at which the rise of `one_cycle` and `warmup_cosine` ends; in (0, 1)."""
    final_factor: float = 0.1
    """Factor after the drop (`step`) or at progress 1 (`cosine`, `warmup_cosine`, `exponential`); in (0, 1]."""

    def __post_init__(self) -> None:
        if self.name not in LR_SCHEDULES:
            raise ConfigError(f"lr_schedule={self.name!r}: must be one of {', '.join(LR_SCHEDULES)}")
        if not 0 < self.boundary < 1:
            raise ConfigError(f"boundary={self.boundary}: must lie between 0 and 1")
        if not 0 < self.final_factor <= 1:
            raise ConfigError(f"final_factor={self.final_factor}: must be above 0 and at most 1")

    def factor(self, progress: float) -> float:
        """Give the factor on the base rate at `progress`, clipped to [0, 1]."""
        return _CURVES[self.name](self, min(1.0, max(0.0, progress)))

    def rate(self, base_lr: float, update: int, num_updates: int) -> float:
        """Give the learning rate of update number `update` (from 0) of `num_updates`."""
        return base_lr * self.factor(update / max(1, num_updates - 1))


def _constant(_schedule: LrSchedule, _progress: float) -> float:
    return 1.0


def _step(schedule: LrSchedule, progress: float) -> float:
    return 1.0 if progress < schedule.boundary else schedule.final_factor


def _cosine(schedule: LrSchedule, progress: float) -> float:
    return _anneal(1.0, schedule.final_factor, progress)


def _exponential(schedule: LrSchedule, progress: float) -> float:
    return float(schedule.final_factor**progress)


def _one_cycle(schedule: LrSchedule, progress: float) -> float:
    if progress < schedule.boundary:
        return _anneal(ONE_CYCLE_START, 1.0, progress / schedule.boundary)
    return _anneal(1.0, ONE_CYCLE_END, (progress - schedule.boundary) / (1 - schedule.boundary))


def _warmup_cosine(schedule: LrSchedule, progress: float) -> float:
    if progress < schedule.boundary:
        # Not from zero: an update at rate 0 is an update lost.
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / schedule.boundary
    return _anneal(1.0, schedule.final_factor, (progress - schedule.boundary) / (1 - schedule.boundary))


def _anneal(start: float, end: float, fraction: float) -> float:
    """Go from `start` to `end` along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


_CURVES: dict[str, Callable[[LrSchedule, float], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "warmup_cosine": _warmup_cosine,
    "exponential": _exponential,
}


def sample_lr_schedule(name: str, rng: np.random.Generator) -> LrSchedule:
    """Draw the free numbers of the schedule `name`; ranges chosen by us, around the usual values."""
    match name:
        case "step":
            return LrSchedule(name=name, boundary=rng.uniform(0.4, 0.8), final_factor=0.1)
        case "one_cycle":
            return LrSchedule(name=name, boundary=rng.uniform(0.15, 0.4))
        case "warmup_cosine":
            return LrSchedule(name=name, boundary=rng.uniform(0.05, 0.2), final_factor=0.01)
        case "cosine":
            return LrSchedule(name=name, final_factor=0.01)
        case "exponential":
            return LrSchedule(name=name, final_factor=10 ** rng.uniform(-2, -0.5))
        case _:
            return LrSchedule(name=name)
