"""Ready-made configurations: each a function that returns a RunConfig.

quick   both probes on EfficientNet-Lite0, minutes on a laptop
paper   the source paper's systems and settings, and specialists for every bone
full    the whole network too, as Stanford trained it, for machines with GPUs
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import SettingError
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from orchestrator.run.config import RunConfig

PAPER_FINETUNE = FinetuneSettings(
    backbone_lr_factor=1.0,
    warm_start_head=False,
    ema_decay=0.0,
    rotation_degrees=0.0,
    scale_jitter=0.0,
    brightness_contrast_jitter=0.0,
)
"""The paper names Adam at one rate and the two augmentations that every image gets."""


def quick() -> RunConfig:
    """Return the default: both probes on EfficientNet-Lite0, minutes on a laptop."""
    return RunConfig()


def paper() -> RunConfig:
    """Return the source paper's settings: ResNet-18, a tenth for dev, one trial per system, the best epoch by accuracy.

    Two things differ on purpose: the tenth is cut by patient, not by image, and models are selected per study.
    """
    return replace(
        quick(),
        preset="paper",
        backbone=BackboneSpec(name="resnet18"),
        recipes=("linear_probe", "mlp_probe", "two_stage_probe", "intermediate_task"),
        num_trials=1,
        num_epochs=10,
        num_folds=10,
        held_out="fold_0",
        activation="none",
        sampling=("balanced_bones",),
        metric="image_accuracy",
        kept_epoch="best",
        epoch_covers="all_bones",
        first_lr=0.001,
        specialist_lr=0.01,  # 3.4a
        specialist_probe_steps=1000,  # 3.4a
        compare_with_paper=True,
        grace_fraction=0.0,
        patience_epochs=4,
        finetune=PAPER_FINETUNE,
        finetune_trials=1,
        finetune_epochs=10,
        finetune_batch_size=64,
    )


def full() -> RunConfig:
    """Return quick's probes and DenseNet-169 trained whole at 320 px, five seeds together, as Stanford did."""
    return replace(
        quick(),
        preset="full",
        backbone=BackboneSpec(name="densenet169"),
        preprocessing=Preprocessing(image_size_px=320),
        recipes=("linear_probe", "mlp_probe", "finetune"),
        finetune=FinetuneSettings(rotation_degrees=30.0),
        finetune_trials=8,
        replicate_seeds=5,
        ensemble=True,
    )


PresetName = Literal["quick", "paper", "full"]
PRESETS: dict[str, Callable[[], RunConfig]] = {"quick": quick, "paper": paper, "full": full}


def make_preset(name: str) -> RunConfig:
    """Return the configuration that a preset names. Raises SettingError for an unknown one."""
    if name not in PRESETS:
        raise SettingError("preset", name, f"must be one of {', '.join(PRESETS)}")
    return PRESETS[name]()
