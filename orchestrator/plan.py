"""The plan: every trial a row, written before anything is trained.

All targets of a recipe get the same points, so that a specialist and the baseline it is compared with have had the same
chances; the paper's own settings come first among them.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from mura_models.errors import ConfigError, DataError
from mura_models.lr_schedules import LR_SCHEDULES, LrSchedule, sample_lr_schedule
from mura_models.training import TrialSettings
from orchestrator.config import RunConfig

MIN_IMAGES_PER_LABEL = 20
"""A bone with fewer of either label in train has no specialist: the baseline serves it (DESIGN.md)."""

MIN_UPDATES_PER_EPOCH = 4
LR_RANGE = {"linear_probe": (3e-3, 3e-2), "mlp_probe": (5e-5, 1e-3)}
"""Base rates searched, log-uniform: chosen by us on out-of-fold rows of FracAtlas (docs/DECISIONS.md)."""
WEIGHT_DECAY_RANGE = {"linear_probe": (3.0, 100.0), "mlp_probe": (1e-2, 30.0)}
"""Log-uniform; decoupled from the gradient (AdamW), so it takes effect as lr times this value an update."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTrial:
    """One row of plan.csv."""

    stage: int
    depends_on: str
    search: str
    target: str
    recipe: str
    trial: str
    lr_schedule: str
    lr: float
    weight_decay: float
    boundary: float
    final_factor: float
    num_epochs: int
    updates_per_epoch: int
    seed: int
    num_images: int
    forecast_s: float

    def settings(self, config: RunConfig) -> TrialSettings:
        """Give all that decides this trial's epochs."""
        return TrialSettings(
            recipe=self.recipe,  # type: ignore[arg-type]
            lr=self.lr,
            lr_schedule=LrSchedule(name=self.lr_schedule, boundary=self.boundary, final_factor=self.final_factor),
            weight_decay=self.weight_decay,
            num_epochs=self.num_epochs,
            updates_per_epoch=self.updates_per_epoch,
            batch_size=config.batch_size,
            activation=config.activation,
            sampling=config.sampling,
            metric="macro_f1" if self.target == "router" else config.metric,
            grace_epochs=config.grace_epochs,
            patience_epochs=config.patience_epochs if config.early_stopping else None,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All trials, longest first, and the bones that cannot have a specialist."""

    trials: tuple[PlannedTrial, ...]
    untrainable: dict[str, str]
    """Bone -> why it has no specialist."""

    @property
    def searches(self) -> list[str]:
        """Names of the searches, in the order of the trials."""
        return list(dict.fromkeys(trial.search for trial in self.trials))

    def of_search(self, search: str) -> list[PlannedTrial]:
        """Give the trials of one search."""
        return [trial for trial in self.trials if trial.search == search]

    def to_table(self) -> pd.DataFrame:
        """Give plan.csv."""
        return pd.DataFrame([asdict(trial) for trial in self.trials])


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One configuration to try: a schedule, its base rate and the weight decay."""

    schedule: LrSchedule
    lr: float
    weight_decay: float
    seed: int


PAPER_POINTS = (
    # 3.2: Adam at 0.001 throughout. 3.4a, then 3.4b: Adam at 0.01, then at 0.001.
    (LrSchedule(name="constant"), 0.001, 0.0),
    (LrSchedule(name="step", boundary=0.5, final_factor=0.1), 0.01, 0.0),
)


def make_plan(config: RunConfig, manifest: pd.DataFrame) -> Plan:
    """Lay out every trial over the train rows of `manifest`; the same for the same config and data.

    Raises ConfigError for a bone that the data does not have, DataError where no baseline can be trained.
    """
    train = manifest[manifest["split"] == "train"]
    counts = train.groupby(["bone", "label"]).size().unstack(fill_value=0).reindex(columns=[0, 1], fill_value=0)
    if (counts.sum() < config.num_folds).any():
        normal, abnormal = counts.sum()
        raise DataError(f"train has {normal} normal and {abnormal} abnormal images: each needs at least one a fold")
    trainable, untrainable = _split_bones(config, counts, num_folds=train.groupby("bone")["fold"].nunique())
    specialist_recipes = [r for r in config.recipes if r != "linear_probe"] or ["linear_probe"]
    searches = [(f"specialist:{bone}", recipe) for bone in trainable for recipe in specialist_recipes]
    searches += [("baseline", recipe) for recipe in config.recipes]
    if len(counts) > 1:
        searches.append(("router", "linear_probe"))
    images_of_bone = train["bone"].value_counts().to_dict()
    updates = count_updates_per_epoch(config, train)
    trials = []
    for target, recipe in searches:
        num_images = images_of_bone.get(target.removeprefix("specialist:"), len(train))
        trials += _plan_search(config, target, recipe, num_images=num_images, updates_per_epoch=updates)
    trials.sort(key=lambda trial: (-trial.forecast_s, trial.search, trial.trial))
    return Plan(trials=tuple(trials), untrainable=untrainable)


def count_updates_per_epoch(config: RunConfig, train: pd.DataFrame) -> int:
    """Give the updates of one pass over the largest bone, as one head sees it: an epoch of every search."""
    seen = train["bone"].value_counts().max() * (config.num_folds - 1) / config.num_folds
    return max(MIN_UPDATES_PER_EPOCH, math.ceil(seen / config.batch_size))


def draw_points(config: RunConfig, recipe: str) -> list[Point]:
    """Draw the points of a recipe, the paper's first: the same for all of its targets."""
    salt = ("linear_probe", "mlp_probe").index(recipe)
    rng = np.random.default_rng([config.seed, salt])
    num_drawn = max(0, config.num_trials - len(PAPER_POINTS))
    rates = _spread_log(LR_RANGE[recipe], num_drawn, rng)
    decays = _spread_log(WEIGHT_DECAY_RANGE[recipe], num_drawn, rng)
    names = [LR_SCHEDULES[i % len(LR_SCHEDULES)] for i in rng.permutation(num_drawn)]
    drawn = [
        (sample_lr_schedule(name, rng), float(f"{lr:.4g}"), float(f"{decay:.4g}"))
        for name, lr, decay in zip(names, rates, decays, strict=True)
    ]
    seeds = np.random.SeedSequence([config.seed, salt, 1]).generate_state(config.num_trials) >> 1
    points = [*PAPER_POINTS, *drawn][: config.num_trials]
    return [
        Point(schedule=schedule, lr=lr, weight_decay=decay, seed=int(seed))
        for (schedule, lr, decay), seed in zip(points, seeds, strict=True)
    ]


def _plan_search(
    config: RunConfig, target: str, recipe: str, *, num_images: int, updates_per_epoch: int
) -> list[PlannedTrial]:
    search = f"{target}/{recipe}"
    return [
        PlannedTrial(
            stage=1,
            depends_on="",
            search=search,
            target=target,
            recipe=recipe,
            trial=f"{search}/{number:03d}",
            lr_schedule=point.schedule.name,
            lr=point.lr,
            weight_decay=point.weight_decay,
            boundary=point.schedule.boundary,
            final_factor=point.schedule.final_factor,
            num_epochs=config.num_epochs,
            updates_per_epoch=updates_per_epoch,
            seed=point.seed,
            num_images=num_images,
            forecast_s=_forecast_trial_s(config, recipe, num_images, updates_per_epoch),
        )
        for number, point in enumerate(draw_points(config, recipe))
    ]


def _split_bones(config: RunConfig, counts: pd.DataFrame, *, num_folds: pd.Series) -> tuple[list[str], dict[str, str]]:
    known = list(counts.index)
    wanted = known if config.bones is None else list(config.bones)
    missing = [bone for bone in wanted if bone not in known]
    if missing:
        raise ConfigError(f"bones={missing[0]}: not in the data, which has {', '.join(known)}")
    untrainable = {}
    is_cut = num_folds.max() > 1  # a dry run plans before the folds are cut
    for bone in known:
        normal, abnormal = counts.loc[bone].tolist()
        if bone not in wanted:
            untrainable[bone] = "not among --bones"
        elif min(normal, abnormal) < MIN_IMAGES_PER_LABEL:
            untrainable[bone] = (
                f"{normal} normal and {abnormal} abnormal images in train: "
                f"a specialist needs {MIN_IMAGES_PER_LABEL} of each"
            )
        elif is_cut and num_folds[bone] < 2:
            untrainable[bone] = "all of its train images lie in one fold: a head would have none to learn from"
    return [bone for bone in wanted if bone not in untrainable], untrainable


def _spread_log(bounds: tuple[float, float], num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one value from each of `num` equal log-intervals of `bounds`, in random order (Latin hypercube)."""
    low, high = np.log(bounds)
    places = (rng.permutation(num) + rng.uniform(size=num)) / max(1, num)
    values: np.ndarray = np.exp(low + places * (high - low))
    return values


def _forecast_trial_s(config: RunConfig, recipe: str, num_images: int, updates_per_epoch: int) -> float:
    """Forecast a full-length trial on one CPU core; rates measured with EfficientNet-Lite0 (docs/DECISIONS.md)."""
    update_s = {"linear_probe": 0.4e-3, "mlp_probe": 4e-3}[recipe] * config.num_folds * config.batch_size / 64
    judge_s = {"linear_probe": 1e-6, "mlp_probe": 2e-5}[recipe] * num_images
    return round(config.num_epochs * (updates_per_epoch * update_s + judge_s), 2)
