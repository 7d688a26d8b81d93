"""The plan: every trial a row, written before anything is trained.

Stage 1 has the probes, stage 2 what trains whole networks (the bone task among them), stage 3 the heads on the bone
task's backbone. All targets of a recipe get the same configurations and number of steps, so that a specialist and the
baseline it is compared with have had the same chances; `specialist_lr` and `specialist_probe_steps` set them
apart, as the source paper did.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import pandas as pd

from mura_models.data.folds import assign_folds
from mura_models.errors import DataError, SettingError
from mura_models.inference.assembly import FROZEN
from mura_models.training.loop import TrialSettings
from mura_models.training.lr_schedules import TWO_STAGE
from orchestrator.run.config import RunConfig
from orchestrator.run.names import BASELINE, BONE_TASK, ROUTER, SearchId, TrialId, specialist_target
from orchestrator.search.search_space import TrialConfig, sample_configs

MIN_IMAGES_PER_LABEL = 20
"""A bone with fewer of either label in train has no specialist: the baseline is its selected model."""

MIN_STEPS_PER_EPOCH = 4
STAGES = {"linear_probe": 1, "mlp_probe": 1, "two_stage_probe": 1, "finetune": 2, "intermediate_task": 3}
TWO_STAGE_STEPS = TWO_STAGE.boundary_steps or 0
"""The paper's 3.4a: so many steps; 3.4b doubles them (its text gives no number for the second stage)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTrial:
    """One trial: one row of plan.csv."""

    id: TrialId
    stage: int
    depends_on: SearchId | None
    """The search whose winner it starts from."""
    settings: TrialSettings
    num_images: int
    """Train images of its target."""
    estimated_s: float
    """Duration at full length on one CPU core."""

    @property
    def name(self) -> str:
        """The name of the trial in every file."""
        return str(self.id)

    @property
    def search(self) -> str:
        """The name of its search."""
        return str(self.id.search)

    @property
    def target(self) -> str:
        """The target of its search."""
        return self.id.search.target

    @property
    def recipe(self) -> str:
        """The recipe of its search."""
        return self.id.search.recipe

    def to_row(self) -> dict[str, Any]:
        """Return the row of plan.csv."""
        settings = self.settings
        schedule = settings.lr_schedule
        return {
            "stage": self.stage,
            "depends_on": str(self.depends_on or ""),
            "search": self.search,
            "target": self.target,
            "recipe": self.recipe,
            "trial": self.name,
            "lr_schedule": schedule.name,
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "backbone_lr_factor": settings.finetune.backbone_lr_factor if settings.finetune else 0.0,
            "lr_boundary": schedule.boundary,
            "lr_boundary_steps": schedule.boundary_steps,
            "lr_final_factor": schedule.final_factor,
            "sampling": settings.sampling,
            "num_epochs": settings.num_epochs,
            "steps_per_epoch": settings.steps_per_epoch,
            "batch_size": settings.batch_size,
            "grace_epochs": settings.grace_epochs,
            "patience_epochs": settings.patience_epochs,
            "seed": settings.seed,
            "num_images": self.num_images,
            "estimated_s": self.estimated_s,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """The trials that can run together. A stage never mixes: all train the same kind of model on the same backbone."""

    number: int
    kind: Literal["probe", "network"]
    """Heads on a backbone that stays frozen, or whole networks."""
    depends_on: SearchId | None
    """The search whose winner makes the backbone; None for the frozen one."""
    trials: tuple[PlannedTrial, ...]

    def __post_init__(self) -> None:
        for trial in self.trials:
            if (trial.stage, kind_of(trial.recipe), trial.depends_on) != (self.number, self.kind, self.depends_on):
                raise ValueError(f"{trial.name} is not a trial of stage {self.number}")

    @property
    def base_backbone(self) -> str:
        """The key of the backbone that the stage starts from."""
        return self.depends_on.backbone_key(0) if self.depends_on else FROZEN

    @property
    def searches(self) -> dict[str, PlannedTrial]:
        """Each search and its first trial, in the order of the trials."""
        firsts: dict[str, PlannedTrial] = {}
        for trial in self.trials:
            firsts.setdefault(trial.search, trial)
        return firsts

    def without(self, searches: Collection[str]) -> "StagePlan":
        """Return the stage without the trials of these searches."""
        return replace(self, trials=tuple(trial for trial in self.trials if trial.search not in searches))


def kind_of(recipe: str) -> Literal["probe", "network"]:
    """Return what the trials of a recipe train."""
    return "network" if recipe == "finetune" else "probe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All trials, stage by stage and the longest first, and the bones that cannot have a specialist."""

    trials: tuple[PlannedTrial, ...]
    untrainable: dict[str, str]
    """Bone -> why it has no specialist."""

    @property
    def searches(self) -> list[str]:
        """Names of the searches, in the order of the trials."""
        return list(dict.fromkeys(trial.search for trial in self.trials))

    @property
    def stages(self) -> list[StagePlan]:
        """The stages that have trials, in their order."""
        stages = []
        for number, trials in groupby(self.trials, key=lambda trial: trial.stage):
            members = tuple(trials)
            first = members[0]
            kind = kind_of(first.recipe)
            stages.append(StagePlan(number=number, kind=kind, depends_on=first.depends_on, trials=members))
        return stages

    def of_search(self, search: str) -> list[PlannedTrial]:
        """Return the trials of one search."""
        return [trial for trial in self.trials if trial.search == search]

    def to_table(self) -> pd.DataFrame:
        """Return plan.csv."""
        table = pd.DataFrame([trial.to_row() for trial in self.trials])
        return table.astype({"lr_boundary_steps": "Int64", "patience_epochs": "Int64"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a trial is trained at most."""

    num_epochs: int
    steps_per_epoch: int
    batch_size: int
    is_in_steps: bool = False
    """Trained for its number of steps, come what may: the paper's way for 3.4."""


def make_plan(config: RunConfig, manifest: pd.DataFrame) -> Plan:
    """Lay out every trial over the train rows of `manifest`; the same for the same config and data.

    Raises SettingError for a bone that the data does not have, DataError if no baseline can be trained or evaluated, or
    no folds can be cut.
    """
    train = manifest[manifest["split"] == "train"]
    counts = train.groupby(["bone", "label"]).size().unstack(fill_value=0).reindex(columns=[0, 1], fill_value=0)
    if (counts.sum() < config.num_folds).any():
        normal, abnormal = counts.sum()
        raise DataError(f"train has {normal} normal and {abnormal} abnormal images: each needs at least one per fold")
    folds = assign_folds(manifest, num_folds=config.num_folds, seed=config.seed)  # a dry run plans before they are cut
    train = train.assign(fold=folds[manifest["split"] == "train"])
    _check_fold_0(config, train)
    trainable, untrainable = _split_bones(config, counts, train)
    searches = [SearchId(specialist_target(bone), recipe) for bone in trainable for recipe in config.specialist_recipes]
    searches += [SearchId(BASELINE, recipe) for recipe in config.system_recipes]
    if len(counts) > 1:
        searches += [SearchId(ROUTER, recipe) for recipe in config.router_recipes]
    images_of_bone = {str(bone): int(n) for bone, n in train["bone"].value_counts().items()}
    trials = [
        trial
        for search in searches
        if search.recipe != "intermediate_task" or len(counts) > 1  # with one bone there is no bone to name
        for trial in _plan_search(config, search, images_of_bone)
    ]
    trials.sort(key=lambda trial: (trial.stage, -trial.estimated_s, trial.search, trial.name))
    return Plan(trials=tuple(trials), untrainable=untrainable)


def choose_budget(config: RunConfig, search: SearchId, images_of_bone: Mapping[str, int]) -> Budget:
    """Return what a trial may spend: the same for specialists and baselines unless the config says otherwise."""
    if search.recipe == "two_stage_probe":
        epochs = 2 * config.num_epochs
        return _budget_in_steps(config, epochs, 2 * TWO_STAGE_STEPS)
    if config.specialist_probe_steps and search.bone is not None and search.recipe == "mlp_probe":
        return _budget_in_steps(config, config.num_epochs, config.specialist_probe_steps)
    is_finetune = search.recipe == "finetune"
    num_epochs = config.finetune_epochs if is_finetune else config.num_epochs
    num_steps = config.finetune_steps if is_finetune else config.num_steps
    batch_size = config.finetune_batch_size if is_finetune else config.batch_size
    images = (max if config.epoch_covers == "largest_bone" else sum)(images_of_bone.values())
    seen = images * (config.num_folds - 1) / config.num_folds
    per_epoch = seen / batch_size if num_steps is None else num_steps / num_epochs
    floor = MIN_STEPS_PER_EPOCH if num_steps is None else 1
    return Budget(num_epochs=num_epochs, steps_per_epoch=max(floor, math.ceil(per_epoch)), batch_size=batch_size)


def _budget_in_steps(config: RunConfig, num_epochs: int, num_steps: int) -> Budget:
    steps = math.ceil(num_steps / num_epochs)
    return Budget(num_epochs=num_epochs, steps_per_epoch=steps, batch_size=config.batch_size, is_in_steps=True)


def _plan_search(config: RunConfig, search: SearchId, images_of_bone: Mapping[str, int]) -> list[PlannedTrial]:
    budget = choose_budget(config, search, images_of_bone)
    num_images = sum(images_of_bone.values()) if search.bone is None else images_of_bone[search.bone]
    return [
        PlannedTrial(
            id=TrialId(search, number),
            stage=STAGES[search.recipe],
            depends_on=BONE_TASK if search.recipe == "intermediate_task" else None,
            settings=_make_settings(config, search, trial_config, budget),
            num_images=num_images,
            estimated_s=_estimate_trial_s(config, search.recipe, num_images, budget),
        )
        for number, trial_config in enumerate(
            sample_configs(config, search.recipe, is_specialist=search.bone is not None)
        )
    ]


def _make_settings(config: RunConfig, search: SearchId, trial_config: TrialConfig, budget: Budget) -> TrialSettings:
    finetune = None
    if search.recipe == "finetune":
        finetune = replace(config.finetune, backbone_lr_factor=trial_config.backbone_lr_factor)
    return TrialSettings(
        head="linear" if search.recipe in ("linear_probe", "finetune") else "mlp",
        lr=trial_config.lr,
        lr_schedule=trial_config.schedule,
        weight_decay=trial_config.weight_decay,
        num_epochs=budget.num_epochs,
        steps_per_epoch=budget.steps_per_epoch,
        batch_size=budget.batch_size,
        activation=config.activation,
        sampling=trial_config.sampling,
        metric="macro_f1" if search.is_router else config.metric,
        grace_epochs=count_grace_epochs(config, trial_config, budget),
        patience_epochs=config.patience_epochs if config.early_stopping and not budget.is_in_steps else None,
        kept_epoch=config.kept_epoch,
        finetune=finetune,
        seed=trial_config.seed,
    )


def count_grace_epochs(config: RunConfig, trial_config: TrialConfig, budget: Budget) -> int:
    """Return the epochs before anything may stop a trial: a part of all, and its warm-up, be it of rate or of head."""
    if budget.is_in_steps:
        return budget.num_epochs
    warmup = trial_config.schedule.warmup_steps(budget.num_epochs * budget.steps_per_epoch) / budget.steps_per_epoch
    frozen = config.finetune.freeze_backbone_epochs if trial_config.backbone_lr_factor else 0
    grace = max(config.count_grace_epochs(budget.num_epochs), math.ceil(warmup), frozen)
    return min(budget.num_epochs, grace)


def holds_out_one_fold(config: RunConfig, recipe: str) -> bool:
    """Return whether a recipe is evaluated on fold 0 only: it saw the other folds or costs too much to repeat.

    The bone task has seen the other folds' images, so a head on its backbone cannot be evaluated on them.
    """
    return config.held_out == "fold_0" or recipe in ("finetune", "intermediate_task")


def _check_fold_0(config: RunConfig, train: pd.DataFrame) -> None:
    """Raise DataError if a baseline is evaluated on fold 0 only, and fold 0 or the rest has one label only."""
    on_fold_0 = [recipe for recipe in config.system_recipes if holds_out_one_fold(config, recipe)]
    if train["bone"].nunique() < 2:
        on_fold_0 = [recipe for recipe in on_fold_0 if recipe != "intermediate_task"]
    is_dev = train["fold"] == 0
    for side, labels in (("fold 0", train.loc[is_dev, "label"]), ("all but fold 0", train.loc[~is_dev, "label"])):
        if on_fold_0 and labels.nunique() < 2:
            raise DataError(
                f"{side} has {(labels == 0).sum()} normal and {(labels == 1).sum()} abnormal images: to evaluate "
                f"{', '.join(on_fold_0)} on fold 0 only, fold 0 and the rest need both labels; change --folds or "
                "the dev rows"
            )


def _split_bones(config: RunConfig, counts: pd.DataFrame, train: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    known = list(counts.index)
    wanted = known if config.bones is None else list(config.bones)
    missing = [bone for bone in wanted if bone not in known]
    if missing:
        raise SettingError("bones", missing[0], f"not in the data, which has {', '.join(known)}")
    num_folds = train.groupby("bone")["fold"].nunique()
    on_fold_0 = any(holds_out_one_fold(config, recipe) for recipe in config.specialist_recipes)
    labels_of_side = train.groupby(["bone", train["fold"] == 0])["label"].nunique().unstack(fill_value=0)
    untrainable = {}
    for bone in known:
        normal, abnormal = counts.loc[bone].tolist()
        if bone not in wanted:
            untrainable[bone] = "not among --bones"
        elif min(normal, abnormal) < MIN_IMAGES_PER_LABEL:
            untrainable[bone] = (
                f"{normal} normal and {abnormal} abnormal images in train: "
                f"a specialist needs {MIN_IMAGES_PER_LABEL} of each"
            )
        elif num_folds[bone] < 2:
            untrainable[bone] = "all of its train images are in one fold: a head would have none to learn from"
        elif on_fold_0 and labels_of_side.loc[bone].min() < 2:
            side = (
                "fold 0, on which specialists are evaluated,"
                if labels_of_side.loc[bone, True] < 2
                else "all but fold 0"
            )
            untrainable[bone] = f"{side} lacks a label of it: try another number of folds"
    return [bone for bone in wanted if bone not in untrainable], untrainable


def _estimate_trial_s(config: RunConfig, recipe: str, num_images: int, budget: Budget) -> float:
    """Estimate a full-length trial on one CPU core; rates measured with EfficientNet-Lite0 (decisions.md)."""
    num_steps = budget.num_epochs * budget.steps_per_epoch
    if recipe == "finetune":
        image_s = (config.preprocessing.image_size_px / 160) ** 2 / 18
        evaluate_s = image_s / 3 * num_images / config.num_folds
        return round(num_steps * budget.batch_size * image_s + budget.num_epochs * evaluate_s, 2)
    num_heads = 1 if holds_out_one_fold(config, recipe) else config.num_folds
    is_linear = recipe == "linear_probe"
    step_s = (0.4e-3 if is_linear else 4e-3) * num_heads * budget.batch_size / 64
    evaluate_s = (1e-6 if is_linear else 2e-5) * num_images
    return round(num_steps * step_s + budget.num_epochs * evaluate_s, 2)
