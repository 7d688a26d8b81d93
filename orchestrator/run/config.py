"""What a run is: every setting that decides its figures, frozen and checked when made.

Only RunConfig belongs to a run's identity: the same RunConfig over the same data gives the same manifest, folds and
plan on a laptop and on a cluster.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import SettingError
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from mura_models.training.sampling_modes import Sampling

Metric = Literal["auroc", "kappa", "accuracy", "image_accuracy"]
Recipe = Literal["linear_probe", "mlp_probe", "two_stage_probe", "intermediate_task", "finetune"]

RECIPES: tuple[str, ...] = get_args(Recipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run's figures.

    The docstrings of fields are the help of `run_study.py`; an option is named after its field unless its metadata
    names another (orchestrator/options.py).
    """

    preset: str = "quick"
    """Preset that the other settings start from."""
    bones: tuple[str, ...] | None = None
    """Train specialists for these bones only. Baselines and router always see all bones."""
    recipes: tuple[Recipe, ...] = ("linear_probe", "mlp_probe")
    """How models are trained. Specialists use mlp_probe, two_stage_probe and finetune, or linear_probe if none of
    these is named."""
    num_trials: int = 12
    """Trials per probe search."""
    num_epochs: int = 16
    """Maximum epochs per trial."""
    num_steps: int | None = None
    """Optimizer steps of a probe trial at full length (default: an epoch is one pass over the largest bone, or over
    all bones under the preset paper)."""
    epoch_covers: Literal["largest_bone", "all_bones"] = "largest_bone"
    """What an epoch passes over once, for all targets of a run alike, if no number of steps is set."""
    num_folds: int = 5
    """Cross-validation folds of the train split, cut by patient."""
    held_out: Literal["every_fold", "fold_0"] = "every_fold"
    """Dev rows of a probe: every fold, each by the head that was not trained on it, or fold 0 by one head."""
    batch_size: int = 64
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    activation: Literal["relu", "none"] = "relu"
    sampling: tuple[Sampling, ...] = ("plain",)
    """Treatment of class imbalance. If several are named, the trials of a search try them in turn."""
    metric: Metric = "auroc"
    """Dev metric that epochs and trials are selected by: per study, except image_accuracy (per image, at 0.5)."""
    kept_epoch: Literal["last", "best"] = "last"
    first_lr: float | None = None
    """Constant learning rate of the first trial of every search; None = the first trials of each recipe."""
    specialist_lr: float | None = None
    """The same for specialists, in place of `first_lr`; None = as every other search."""
    specialist_probe_steps: int | None = None
    """Steps of a specialist's `mlp_probe`, without early stopping; None = as the baseline's."""
    compare_with_paper: bool = False
    """Report the source paper's figures next to this run's."""
    early_stopping: bool = True
    """Stop unpromising trials early (ASHA, and patience)."""
    grace_fraction: float = 0.4
    """No trial is stopped before this part of its epochs has run (chosen by us)."""
    patience_epochs: int = 4
    num_audited: int = field(default=4, metadata={"option": "--audit"})
    """Stopped trials per stage that are run to completion, to check early stopping."""
    replicate_seeds: int = 0
    """Train each winner again under this many new seeds and export the median one; 0 exports the winner itself."""
    ensemble: bool = False
    """Export all replicates together instead of the median one."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    finetune_trials: int = 4
    """Trials per search."""
    finetune_epochs: int = 12
    """Maximum epochs per trial. If left out, it follows --epochs."""
    finetune_steps: int | None = None
    """Optimizer steps of a trial at full length (default: as for probes)."""
    finetune_batch_size: int = 32
    """Images per optimizer step."""
    seed: int = 0
    """Seed of folds, plan and training."""

    def __post_init__(self) -> None:
        for name in ("metric", "activation", "held_out", "epoch_covers", "kept_epoch"):
            check_choice(name, getattr(self, name))
        for name in ("recipes", "sampling", "bones"):
            self._check_list(name)
        for name, low, high in _RANGES:
            check_range(name, getattr(self, name), low, high)
        for name in ("first_lr", "specialist_lr"):
            lr = getattr(self, name)
            if lr is not None and not 0 < lr <= 1:
                raise SettingError(name, lr, "must be above 0 and at most 1")
        if self.ensemble and self.replicate_seeds < 2:
            others = {"ensemble": True}
            raise SettingError("replicate_seeds", self.replicate_seeds, "{ensemble} needs at least 2", others)
        if self.finetune.freeze_backbone_epochs >= self.finetune_epochs:
            raise SettingError(
                "freeze_backbone_epochs",
                self.finetune.freeze_backbone_epochs,
                "must be below {finetune_epochs}",
                {"finetune_epochs": self.finetune_epochs},
            )

    def _check_list(self, name: str) -> None:
        """Raise SettingError if a list is empty, names a value twice or one that is not allowed."""
        values = getattr(self, name)
        if values is None:
            return
        if not values:
            raise SettingError(name, (), "name at least one")
        for value in values:
            if name != "bones":
                check_choice(name, value)
            if values.count(value) > 1:
                raise SettingError(name, value, "named twice; name each once")

    @property
    def selected_metric(self) -> str:
        """Dev metric that models are selected by: always per study, since a study gets the answer."""
        return "accuracy" if self.metric == "image_accuracy" else self.metric

    @property
    def specialist_recipes(self) -> tuple[str, ...]:
        """Recipes of specialists: those whose paper's system had one, but linear probes where there is no other."""
        chosen = [recipe for recipe in self.recipes if recipe not in ("linear_probe", "intermediate_task")]
        return tuple(chosen) or ("linear_probe",)

    @property
    def system_recipes(self) -> tuple[str, ...]:
        """Every recipe that some target is trained by, in the order of the report."""
        return tuple(dict.fromkeys((*self.recipes, *self.specialist_recipes)))

    @property
    def router_recipes(self) -> tuple[str, ...]:
        """Recipes of the router: the probe, and the whole network where something else needs or resembles it."""
        has_bone_task = "finetune" in self.recipes or "intermediate_task" in self.recipes
        return ("linear_probe", "finetune") if has_bone_task else ("linear_probe",)

    @property
    def trains_networks(self) -> bool:
        """Whether whole networks are trained, which asks for the images."""
        return "finetune" in self.router_recipes

    def count_grace_epochs(self, num_epochs: int) -> int:
        """Return the epochs that every trial of so many runs before it may be stopped."""
        return max(1, math.ceil(self.grace_fraction * num_epochs))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values: no path, and bones in one order, so that equal runs are equal."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        plain["bones"] = sorted(self.bones) if self.bones else None
        plain["backbone"]["weights"] = self.backbone.name_weights()
        return plain

    def digest(self, data_fingerprint: str) -> str:
        """Name this configuration over this data in eight characters."""
        text = json.dumps([self.to_json(), data_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


_CHOICES: dict[str, tuple[str, ...]] = {
    "metric": get_args(Metric),
    "recipes": RECIPES,
    "sampling": get_args(Sampling),
    "activation": ("relu", "none"),
    "held_out": ("every_fold", "fold_0"),
    "epoch_covers": ("largest_bone", "all_bones"),
    "kept_epoch": ("last", "best"),
}
_RANGES = (
    ("num_trials", 1, 1000),
    ("num_epochs", 1, 10_000),
    ("num_steps", 1, 10_000_000),
    ("specialist_probe_steps", 1, 10_000_000),
    ("num_folds", 2, 100),
    ("batch_size", 1, 65_536),
    ("grace_fraction", 0, 1),
    ("patience_epochs", 1, 10_000),
    ("num_audited", 0, 1000),
    ("replicate_seeds", 0, 100),
    ("finetune_trials", 1, 1000),
    ("finetune_epochs", 1, 10_000),
    ("finetune_steps", 1, 10_000_000),
    ("finetune_batch_size", 2, 65_536),
    ("seed", 0, 2**31 - 1),
)


def check_choice(name: str, value: str) -> None:
    """Raise SettingError unless the setting may have this value."""
    if value not in _CHOICES[name]:
        raise SettingError(name, value, f"must be one of {', '.join(_CHOICES[name])}")


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise SettingError unless a value that is set is in [low, high]."""
    if value is not None and not low <= value <= high:
        raise SettingError(name, value, f"must be between {low} and {high}")
