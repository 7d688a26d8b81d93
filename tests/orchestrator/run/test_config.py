"""Settings: what the presets are, what is refused, and what makes two runs the same."""

from dataclasses import FrozenInstanceError, replace

import pytest

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from mura_models.training.lr_schedules import TWO_STAGE
from orchestrator.run.config import RunConfig
from orchestrator.run.presets import full, make_preset, paper, quick

OTHER_RUNS = [
    {"bones": ("wrist",)},
    {"recipes": ("mlp_probe",)},
    {"num_trials": 3},
    {"num_epochs": 3},
    {"num_folds": 3},
    {"batch_size": 32},
    {"preprocessing": Preprocessing(image_size_px=128)},
    {"preprocessing": Preprocessing(resize="pad")},
    {"backbone": BackboneSpec(name="resnet18")},
    {"backbone": BackboneSpec(weights="random")},
    {"activation": "none"},
    {"sampling": ("balanced_bones",)},
    {"held_out": "fold_0"},
    {"kept_epoch": "best"},
    {"num_steps": 7},
    {"epoch_covers": "all_bones"},
    {"first_lr": 0.001},
    {"specialist_lr": 0.01},
    {"specialist_probe_steps": 100},
    {"compare_with_paper": True},
    {"replicate_seeds": 2},
    {"finetune_epochs": 3},
    {"finetune": FinetuneSettings(rotation_degrees=30)},
    {"metric": "kappa"},
    {"early_stopping": False},
    {"seed": 1},
]


def test_the_default_is_the_quick_preset():
    assert make_preset("quick") == quick() == RunConfig()
    assert (quick().backbone.name, quick().sampling, quick().metric) == ("efficientnet_lite0", ("plain",), "auroc")


def test_the_paper_preset_has_the_papers_settings():
    config = make_preset("paper")
    assert config == paper()
    assert config.backbone == BackboneSpec(name="resnet18", weights="imagenet")
    assert config.preprocessing == Preprocessing(image_size_px=256, resize="stretch")
    assert (config.num_epochs, config.patience_epochs, config.num_folds) == (10, 4, 10)
    assert (config.activation, config.sampling, config.metric) == ("none", ("balanced_bones",), "image_accuracy")
    assert (config.first_lr, config.specialist_lr) == (0.001, 0.01)
    assert config.specialist_probe_steps == TWO_STAGE.boundary_steps
    assert (config.epoch_covers, config.compare_with_paper) == ("all_bones", True)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"metric": "f1"}, "metric=f1: must be one of auroc, kappa, accuracy, image_accuracy"),
        ({"sampling": ("heavy",)}, "sampling=heavy: must be one of plain, balanced_bones"),
        ({"activation": "gelu"}, "activation=gelu: must be one of relu, none"),
        ({"recipes": ("forest",)}, "recipes=forest: must be one of linear_probe"),
        ({"ensemble": True}, "replicate_seeds=0: ensemble=True needs at least 2"),
        (
            {"finetune": FinetuneSettings(freeze_backbone_epochs=12)},
            "freeze_backbone_epochs=12: must be below finetune_epochs=12",
        ),
        ({"first_lr": 0.0}, r"first_lr=0.0: must be above 0 and at most 1"),
        ({"specialist_lr": 2.0}, r"specialist_lr=2.0: must be above 0 and at most 1"),
        ({"specialist_probe_steps": 0}, "specialist_probe_steps=0: must be between 1 and "),
        ({"epoch_covers": "a_bone"}, "epoch_covers=a_bone: must be one of largest_bone, all_bones"),
        ({"grace_fraction": 1.5}, r"grace_fraction=1.5: must be between 0 and 1"),
        ({"sampling": ()}, r"sampling=\(\): name at least one"),
        ({"recipes": ()}, r"recipes=\(\): name at least one"),
        ({"bones": ()}, r"bones=\(\): name at least one"),
        ({"num_trials": 0}, "num_trials=0: must be between 1 and "),
        ({"num_epochs": 0}, "num_epochs=0: must be between 1 and "),
        ({"num_folds": 1}, "num_folds=1: must be between 2 and "),
        ({"batch_size": 0}, "batch_size=0: must be between 1 and "),
        ({"patience_epochs": 0}, "patience_epochs=0: must be between 1 and "),
        ({"seed": -1}, "seed=-1: must be between 0 and "),
        ({"seed": 2**31}, "seed=2147483648: must be between 0 and "),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_line(wrong, text):
    with pytest.raises(ConfigError, match=text) as caught:
        RunConfig(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("twice", [{"recipes": ("mlp_probe", "mlp_probe")}, {"bones": ("wrist", "wrist")}])
def test_naming_a_thing_twice_is_refused(twice):
    """Else the plan would hold every trial of it twice, under one name."""
    (name, (value, _)), *_ = twice.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        RunConfig(**twice)


def test_a_preset_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="preset=fast: must be one of quick, paper, full"):
        make_preset("fast")


def test_the_full_preset_trains_whole_networks_as_stanford_did():
    config = make_preset("full")
    assert config == full()
    assert (config.backbone.name, config.preprocessing.image_size_px) == ("densenet169", 320)
    assert (config.replicate_seeds, config.ensemble, config.finetune.rotation_degrees) == (5, True, 30.0)
    assert "finetune" in config.recipes


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"backbone_lr_factor": 0}, "backbone_lr_factor=0"),
        ({"freeze_backbone_epochs": -1}, "freeze_backbone_epochs=-1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"rotation_degrees": 181}, "rotation_degrees=181"),
        ({"scale_jitter": 1.0}, "scale_jitter=1.0"),
        ({"brightness_contrast_jitter": -0.1}, "brightness_contrast_jitter=-0.1"),
    ],
)
def test_a_training_of_the_network_that_cannot_be_is_refused_by_its_value(wrong, text):
    with pytest.raises(ConfigError, match=f"{text}: must"):
        FinetuneSettings(**wrong)


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1


def test_the_same_config_over_the_same_data_is_the_same_run():
    assert RunConfig().digest("data") == RunConfig(seed=0).digest("data")
    assert len(RunConfig().digest("data")) == 8


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_every_setting_that_decides_figures_makes_another_run(change):
    assert replace(RunConfig(), **change).digest("data") != RunConfig().digest("data")


def test_other_data_makes_another_run():
    assert RunConfig().digest("data") != RunConfig().digest("other data")


@pytest.mark.parametrize(("num_epochs", "grace"), [(1, 1), (2, 1), (3, 2), (10, 4), (16, 7), (100, 40)])
def test_grace_is_two_fifths_of_the_epochs_rounded_up(num_epochs, grace):
    assert RunConfig().count_grace_epochs(num_epochs) == grace


def test_settings_become_plain_json_with_every_choice():
    plain = RunConfig(bones=("wrist",)).to_json()
    assert plain["bones"] == ["wrist"]
    assert plain["preprocessing"] == {"image_size_px": 256, "resize": "stretch"}
    assert plain["backbone"]["name"] == "efficientnet_lite0"
