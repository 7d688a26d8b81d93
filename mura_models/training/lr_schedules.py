"""Learning-rate schedules: progress through the training in [0, 1] -> factor on the base rate.

A schedule is arithmetic on two or three numbers, so that a trial is a row of plan.csv and every point of its curve
can be tested. The first step has progress 0 and the last one 1, whatever the number of steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mura_models.errors import ConfigError

LR_SCHEDULES = ("constant", "step", "cosine", "one_cycle", "warmup_cosine", "exponential")
WARMUP_SCHEDULES = ("one_cycle", "warmup_cosine")

ONE_CYCLE_START = 1 / 25  # first factor of a cycle, as in torch.optim.lr_scheduler.OneCycleLR
ONE_CYCLE_END = ONE_CYCLE_START / 1e4  # last factor of a cycle, likewise


@dataclass(frozen=True, kw_only=True, slots=True)
class LrSchedule:
    """One curve: its name, where it bends and how low it falls."""

    name: str = "constant"
    boundary: float = 0.5
    """Progress at which `step` drops, or at which the rise of `one_cycle` and `warmup_cosine` ends; in (0, 1)."""
    boundary_steps: int | None = None
    """Step at which `step` drops or the warm-up ends, if given in steps rather than as a fraction of the training; it
    overrides `boundary`. Beyond the training, `step` never drops and a warm-up ends with the training."""
    final_factor: float = 0.1
    """Factor after the drop (`step`) or at progress 1 (`cosine`, `warmup_cosine`, `exponential`); in (0, 1]."""

    def __post_init__(self) -> None:
        if self.name not in LR_SCHEDULES:
            raise ConfigError(f"lr_schedule={self.name!r}: must be one of {', '.join(LR_SCHEDULES)}")
        if not 0 < self.boundary < 1:
            raise ConfigError(f"boundary={self.boundary}: must lie between 0 and 1")
        if not 0 < self.final_factor <= 1:
            raise ConfigError(f"final_factor={self.final_factor}: must be above 0 and at most 1")
        if self.boundary_steps is None:
            return
        if self.boundary_steps < 1:
            raise ConfigError(f"boundary_steps={self.boundary_steps}: must be at least 1")
        if self.name not in ("step", *WARMUP_SCHEDULES):
            allowed = ", ".join(("step", *WARMUP_SCHEDULES))
            raise ConfigError(f"boundary_steps={self.boundary_steps}: {self.name} has no boundary; {allowed} have")

    def rate(self, base_lr: float, step: int, num_steps: int) -> float:
        """Return the learning rate of step number `step` (from 0) of `num_steps`.

        A boundary between two steps moves to the later one, so that a warm-up always reaches `base_lr`.
        """
        # One divisor for both: division rounds monotonically, so they compare as the whole numbers do.
        last = max(1, num_steps - 1)
        return base_lr * self._factor(step / last, self._find_boundary_step(num_steps) / last)

    def warmup_steps(self, num_steps: int) -> int:
        """Return the number of steps before the warm-up is over, 0 without one: the first step at the base rate."""
        return self._find_boundary_step(num_steps) if self.name in WARMUP_SCHEDULES else 0

    def _find_boundary_step(self, num_steps: int) -> int:
        """Return the first step at or past the boundary; a warm-up ends with the training at the latest."""
        last = num_steps - 1
        step = self.boundary_steps
        if step is None:
            # Not ceil: 0.28 * 25 comes out above 7, though 7 / 25 is 0.28.
            step = round(self.boundary * last)
            if step / max(1, last) < self.boundary:
                step += 1
        return min(step, last) if self.name in WARMUP_SCHEDULES else step

    def _factor(self, progress: float, boundary: float) -> float:
        return _CURVES[self.name](self, min(1.0, max(0.0, progress)), boundary)


TWO_STAGE = LrSchedule(name="step", boundary_steps=1000, final_factor=0.1)
"""The paper's 3.4a, then 3.4b: 1000 steps at the base rate (theirs was 0.01), then a tenth of it."""


def _constant(_schedule: LrSchedule, _progress: float, _boundary: float) -> float:
    return 1.0


def _step(schedule: LrSchedule, progress: float, boundary: float) -> float:
    return 1.0 if progress < boundary else schedule.final_factor


def _cosine(schedule: LrSchedule, progress: float, _boundary: float) -> float:
    return _anneal(1.0, schedule.final_factor, progress)


def _exponential(schedule: LrSchedule, progress: float, _boundary: float) -> float:
    return float(schedule.final_factor**progress)


def _one_cycle(_schedule: LrSchedule, progress: float, boundary: float) -> float:
    if progress < boundary:
        return _anneal(ONE_CYCLE_START, 1.0, progress / boundary)
    return _fall(ONE_CYCLE_END, progress, boundary)


def _warmup_cosine(schedule: LrSchedule, progress: float, boundary: float) -> float:
    if progress < boundary:
        # Not from zero: a step at rate 0 is lost.
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / boundary
    return _fall(schedule.final_factor, progress, boundary)


def _fall(end: float, progress: float, boundary: float) -> float:
    """Go from 1 at `boundary` to `end` at progress 1; a boundary at progress 1 leaves nothing to fall."""
    return 1.0 if progress == boundary else _anneal(1.0, end, (progress - boundary) / (1 - boundary))


def _anneal(start: float, end: float, fraction: float) -> float:
    """Go from `start` to `end` along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


_CURVES: dict[str, Callable[[LrSchedule, float, float], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "warmup_cosine": _warmup_cosine,
    "exponential": _exponential,
}


def sample_lr_schedule(name: str, rng: np.random.Generator) -> LrSchedule:
    """Sample the free parameters of the schedule `name`; ranges chosen by us, around the usual values."""
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
