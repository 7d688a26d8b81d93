"""What a run is (RunConfig) and where it runs (ExecutionOptions): frozen, checked when made.

Only RunConfig belongs to a run's identity: the same RunConfig over the same data gives the same manifest, folds and
plan on a laptop and on a cluster.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from mura_models.training.sampling_modes import Sampling

Metric = Literal["auroc", "kappa", "accuracy", "image_accuracy"]
Recipe = Literal["linear_probe", "mlp_probe", "two_stage_probe", "intermediate_task", "finetune"]

RECIPES: tuple[str, ...] = get_args(Recipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run's figures."""

    preset: str = "quick"
    bones: tuple[str, ...] | None = None
    """Bones that get a specialist; None = every bone of the data. Baselines and router always see all."""
    recipes: tuple[str, ...] = ("linear_probe", "mlp_probe")
    """Recipes of the baselines; see `specialist_recipes` for those of specialists."""
    num_trials: int = 12
    """Of a probe's search."""
    num_epochs: int = 16
    num_steps: int | None = None
    """Of a probe's trial at full length; None = each epoch is a pass over what `epoch_covers` names."""
    epoch_covers: Literal["largest_bone", "all_bones"] = "largest_bone"
    """Images that an epoch passes over once, for all targets of a run alike."""
    num_folds: int = 5
    held_out: Literal["every_fold", "fold_0"] = "every_fold"
    """Which rows judge a probe: all, each by the head that never saw it, or those of fold 0 by one head."""
    batch_size: int = 64
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    activation: Literal["relu", "none"] = "relu"
    sampling: tuple[Sampling, ...] = ("plain",)
    """What is done against imbalance; of several, the trials of a search try each in turn."""
    metric: Metric = "auroc"
    """By which epochs and trials are chosen on dev: by study, but `image_accuracy` by image at 0.5 (the paper's)."""
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
    grace_fraction: float = 0.4
    """No trial is stopped before this part of its epochs has run (chosen by us)."""
    patience_epochs: int = 4
    num_audited: int = 4
    """Stopped trials of a stage that are run to their end, to learn how often the bracket was wrong."""
    replicate_seeds: int = 0
    """Fresh seeds over which each winner's configuration is trained again; 0 = the winner itself is shipped."""
    ensemble: bool = False
    """Ship all replicates together rather than the median one."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    finetune_trials: int = 4
    finetune_epochs: int = 12
    finetune_steps: int | None = None
    finetune_batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("metric", self.metric, get_args(Metric))
        _check_choice("activation", self.activation, ("relu", "none"))
        _check_choice("held_out", self.held_out, ("every_fold", "fold_0"))
        _check_choice("epoch_covers", self.epoch_covers, ("largest_bone", "all_bones"))
        _check_choice("kept_epoch", self.kept_epoch, ("last", "best"))
        for name, allowed in (("recipes", RECIPES), ("sampling", get_args(Sampling))):
            values = getattr(self, name)
            for value in values:
                _check_choice(name, value, allowed)
            _check_distinct(name, values)
            if not values:
                raise ConfigError(f"{name}: name at least one")
        _check_distinct("bones", self.bones or ())
        if self.bones is not None and not self.bones:
            raise ConfigError("bones: name at least one, or give --all-bones")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None:
                _check_range(name.removeprefix("num_"), value, low, high)
        for name in ("first_lr", "specialist_lr"):
            lr = getattr(self, name)
            if lr is not None and not 0 < lr <= 1:
                raise ConfigError(f"{name}={lr}: must lie in (0, 1]")
        if not 0 <= self.grace_fraction <= 1:
            raise ConfigError(f"grace_fraction={self.grace_fraction}: must lie in [0, 1]")
        if self.ensemble and self.replicate_seeds < 2:
            raise ConfigError(
                f"replicate_seeds={self.replicate_seeds}: an ensemble needs at least 2; give more, or --no-ensemble"
            )
        if self.finetune.freeze_backbone_epochs >= self.finetune_epochs:
            raise ConfigError(
                f"freeze_backbone_epochs={self.finetune.freeze_backbone_epochs}: "
                f"must be below finetune_epochs={self.finetune_epochs}"
            )

    @property
    def selected_metric(self) -> str:
        """By which dev decides what is served: always by study, since a study is what is answered."""
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


_RANGES = (
    ("num_trials", 1, 1000),
    ("num_epochs", 1, 10_000),
    ("num_steps", 1, 10_000_000),
    ("specialist_probe_steps", 1, 10_000_000),
    ("num_folds", 2, 100),
    ("batch_size", 1, 65_536),
    ("patience_epochs", 1, 10_000),
    ("num_audited", 0, 1000),
    ("replicate_seeds", 0, 100),
    ("finetune_trials", 1, 1000),
    ("finetune_epochs", 1, 10_000),
    ("finetune_steps", 1, 10_000_000),
    ("finetune_batch_size", 2, 65_536),
    ("seed", 0, 2**31 - 1),
)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value}: must be one of {', '.join(allowed)}")


def _check_distinct(name: str, values: tuple[str, ...]) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{name}={twice[0]}: named twice; name each once")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value}: must lie in [{low}, {high}]")
