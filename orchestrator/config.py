"""What a run is (RunConfig) and where it runs (Placement): frozen, checked when made.

Only RunConfig belongs to a run's identity: the same RunConfig over the same data gives the same manifest, folds and
plan on a laptop and on a cluster.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mura_models.backbones import BackboneSpec
from mura_models.errors import ConfigError
from mura_models.preprocessing import Preprocessing

Preset = Literal["quick", "paper", "full"]
Metric = Literal["auroc", "kappa", "accuracy"]
Sampling = Literal["plain", "balanced_bones"]

PROBE_RECIPES = ("linear_probe", "mlp_probe")
RECIPES = (*PROBE_RECIPES, "intermediate_task", "finetune")
PRESETS: tuple[str, ...] = get_args(Preset)
METRICS: tuple[str, ...] = get_args(Metric)

GRACE_FRACTION = 0.4
"""No trial is stopped before this part of its epochs has run (chosen by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run's figures."""

    preset: Preset = "quick"
    bones: tuple[str, ...] | None = None
    """Bones that get a specialist; None = every bone of the data. Baselines and router always see all."""
    recipes: tuple[str, ...] = PROBE_RECIPES
    """Recipes of the baselines; specialists take those that are not `linear_probe` (the paper's 3.4 is 3.2)."""
    num_trials: int = 12
    num_epochs: int = 16
    num_folds: int = 5
    batch_size: int = 64
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    activation: Literal["relu", "none"] = "relu"
    sampling: Sampling = "plain"
    metric: Metric = "auroc"
    early_stopping: bool = True
    patience_epochs: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("preset", self.preset, PRESETS)
        _check_choice("metric", self.metric, METRICS)
        _check_choice("sampling", self.sampling, get_args(Sampling))
        _check_choice("activation", self.activation, ("relu", "none"))
        for recipe in self.recipes:
            _check_choice("recipes", recipe, RECIPES)
        _check_distinct("recipes", self.recipes)
        _check_distinct("bones", self.bones or ())
        unbuilt = [recipe for recipe in self.recipes if recipe not in PROBE_RECIPES]
        if unbuilt:
            raise ConfigError(f"recipes={unbuilt[0]}: not built yet; choose among {', '.join(PROBE_RECIPES)}")
        if not self.recipes:
            raise ConfigError("recipes: name at least one")
        if self.bones is not None and not self.bones:
            raise ConfigError("bones: name at least one, or give --all-bones")
        _check_range("trials", self.num_trials, 1, 1000)
        _check_range("epochs", self.num_epochs, 1, 10_000)
        _check_range("folds", self.num_folds, 2, 100)
        _check_range("batch_size", self.batch_size, 1, 65_536)
        _check_range("patience_epochs", self.patience_epochs, 1, 10_000)
        _check_range("seed", self.seed, 0, 2**31 - 1)

    @property
    def grace_epochs(self) -> int:
        """Epochs that every trial runs before it may be stopped."""
        return max(1, math.ceil(GRACE_FRACTION * self.num_epochs))

    def to_json(self) -> dict[str, Any]:
        """Give the settings as plain JSON values: no path, and bones in one order, so that equal runs are equal."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        plain["bones"] = sorted(self.bones) if self.bones else None
        plain["backbone"]["weights"] = self.backbone.name_weights()
        return plain

    def digest(self, data_fingerprint: str) -> str:
        """Name this configuration over this data in eight characters."""
        text = json.dumps([self.to_json(), data_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a run lies and what it runs on: never part of its identity."""

    run_dir: Path | None = None
    fresh: bool = False
    address: str | None = None
    max_concurrent: int | None = None
    gpus_per_trial: float | None = None
    """None = 1 where the cluster has GPUs, else 0."""
    cpus_per_trial: float | None = None
    """None = 1, or less where several trials share the CPUs of one machine's GPUs."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.max_concurrent is not None:
            _check_range("max_concurrent", self.max_concurrent, 1, 100_000)
        if self.gpus_per_trial is not None and not 0 <= self.gpus_per_trial <= 64:
            raise ConfigError(f"gpus_per_trial={self.gpus_per_trial}: must lie in [0, 64]")
        if self.gpus_per_trial is not None and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ConfigError(f"gpus_per_trial={self.gpus_per_trial}: above 1 it must be a whole number")
        if self.cpus_per_trial is not None and not 0 < self.cpus_per_trial <= 1024:
            raise ConfigError(f"cpus_per_trial={self.cpus_per_trial}: must lie in (0, 1024]")


def quick() -> RunConfig:
    """Give the default: both probes on EfficientNet-Lite0, minutes on a laptop."""
    return RunConfig()


def paper() -> RunConfig:
    """Give the source paper's settings for its probes: ResNet-18, a tenth for dev, bones drawn equally often."""
    return replace(
        quick(),
        preset="paper",
        backbone=BackboneSpec(name="resnet18"),
        num_epochs=10,
        num_folds=10,
        activation="none",
        sampling="balanced_bones",
        metric="accuracy",
    )


def preset(name: str) -> RunConfig:
    """Give the configuration that a preset names. Raises ConfigError for one that is not built."""
    _check_choice("preset", name, PRESETS)
    if name == "full":
        raise ConfigError("preset=full: needs the recipe finetune, which is not built yet; choose quick or paper")
    return {"quick": quick, "paper": paper}[name]()


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
