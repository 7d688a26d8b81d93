"""The configurations that a search tries: the paper's own first, then drawn ones, the same for all targets alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mura_models.training.lr_schedules import LR_SCHEDULES, TWO_STAGE, LrSchedule, sample_lr_schedule
from mura_models.training.sampling_modes import Sampling
from orchestrator.run.config import RECIPES, RunConfig

LR_RANGE = {"linear_probe": (3e-3, 3e-2), "mlp_probe": (5e-5, 1e-3), "finetune": (1e-4, 1e-3)}
"""Base rates searched, log-uniform: chosen by us on held-out folds of FracAtlas (docs/explanation/decisions.md)."""
WEIGHT_DECAY_RANGE = {"linear_probe": (3.0, 100.0), "mlp_probe": (1e-2, 30.0), "finetune": (1e-2, 1.0)}
"""Log-uniform; decoupled from the gradient (AdamW), so it takes effect as lr times this value per step."""
BACKBONE_LR_FACTORS = (1.0, 0.3, 0.1)
"""The backbone's rate as a part of the head's, tried in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One configuration to try."""

    schedule: LrSchedule
    lr: float
    weight_decay: float
    backbone_lr_factor: float = 0.0
    """0 where the backbone is frozen."""
    sampling: Sampling = "plain"
    seed: int = 0


CONSTANT = LrSchedule(name="constant")
PAPER_SETTINGS: dict[str, Sequence[tuple[LrSchedule, float, float]]] = {
    "linear_probe": ((CONSTANT, 0.001, 0.0), (LrSchedule(name="step", boundary=0.5, final_factor=0.1), 0.01, 0.0)),
    "mlp_probe": ((CONSTANT, 0.001, 0.0), (LrSchedule(name="step", boundary=0.5, final_factor=0.1), 0.01, 0.0)),
    "two_stage_probe": ((TWO_STAGE, 0.01, 0.0),),
    "finetune": (),
}
"""By recipe. 3.1 and 3.2: Adam at 0.001 throughout; 3.4a, then 3.4b: Adam at 0.01, then at 0.001."""
FINETUNE_DEFAULT = (LrSchedule(name="warmup_cosine", boundary=0.1, final_factor=0.01), 3e-4, 0.05)
"""Tried first: chosen by us on the held-out fold of FracAtlas (docs/explanation/decisions.md)."""


def sample_configs(config: RunConfig, recipe: str, *, is_specialist: bool) -> list[TrialConfig]:
    """Return a recipe's configurations, the same for all its targets; but the paper gave specialists another rate."""
    head_recipe = "mlp_probe" if recipe == "intermediate_task" else recipe
    num_configs = count_trials(config, recipe)
    first = _list_first(config, recipe, is_specialist=is_specialist)[:num_configs]
    salt = RECIPES.index(recipe)
    rng = np.random.default_rng([config.seed, salt])
    num_drawn = num_configs - len(first)
    tried = {schedule.name for schedule, *_ in first}
    drawn = _draw(head_recipe, num_drawn, tried, rng) if num_drawn else []
    seeds = np.random.SeedSequence([config.seed, salt, 1]).generate_state(num_configs) >> 1
    return [
        TrialConfig(
            schedule=schedule,
            lr=lr,
            weight_decay=decay,
            backbone_lr_factor=_choose_factor(config, number) if recipe == "finetune" else 0.0,
            sampling=config.sampling[number % len(config.sampling)],
            seed=int(seed),
        )
        for number, ((schedule, lr, decay), seed) in enumerate(zip([*first, *drawn], seeds, strict=True))
    ]


def count_trials(config: RunConfig, recipe: str) -> int:
    """Return the trials of a search: a two-stage probe has nothing to search but what is done against imbalance."""
    if recipe == "two_stage_probe":
        return len(config.sampling)
    return config.finetune_trials if recipe == "finetune" else config.num_trials


def _list_first(config: RunConfig, recipe: str, *, is_specialist: bool) -> list[tuple[LrSchedule, float, float]]:
    if recipe == "two_stage_probe":
        return [*PAPER_SETTINGS[recipe]] * len(config.sampling)
    lr = (is_specialist and config.specialist_lr) or config.first_lr
    if lr:
        return [(CONSTANT, lr, 0.0)]
    if recipe == "finetune":
        return [FINETUNE_DEFAULT]
    return list(PAPER_SETTINGS["mlp_probe" if recipe == "intermediate_task" else recipe])


def _draw(
    recipe: str, num: int, tried: Collection[str], rng: np.random.Generator
) -> list[tuple[LrSchedule, float, float]]:
    rates = latin_hypercube_log_uniform(LR_RANGE[recipe], num, rng)
    decays = latin_hypercube_log_uniform(WEIGHT_DECAY_RANGE[recipe], num, rng)
    names = [LR_SCHEDULES[i % len(LR_SCHEDULES)] for i in rng.permutation(max(num, len(LR_SCHEDULES)))]
    if num < len(names):  # too few for all: those first that no trial has tried
        names = sorted(names, key=lambda name: name in tried)[:num]
    return [
        (sample_lr_schedule(name, rng), float(f"{lr:.4g}"), float(f"{decay:.4g}"))
        for name, lr, decay in zip(names, rates, decays, strict=True)
    ]


def _choose_factor(config: RunConfig, number: int) -> float:
    """Return the backbone's part of the rate: as set, else in turn, each under every sampling before the next."""
    turn = number // len(config.sampling) % len(BACKBONE_LR_FACTORS)
    return config.finetune.backbone_lr_factor or BACKBONE_LR_FACTORS[turn]


def latin_hypercube_log_uniform(bounds: tuple[float, float], num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one value from each of `num` equal log-intervals of `bounds`, in random order (Latin hypercube)."""
    low, high = np.log(bounds)
    places = (rng.permutation(num) + rng.uniform(size=num)) / max(1, num)
    values: np.ndarray = np.exp(low + places * (high - low))
    return values
