"""Settings for training a whole network. Free of torch, so that the command line can list them."""

from dataclasses import dataclass

from mura_models.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings:
    """How the whole network is trained. Each field is an option of the command, and its docstring the help text."""

    backbone_lr_factor: float | None = None
    """Backbone learning rate relative to the head's; if it is not set, trials use 1, 0.3 and 0.1 in turn."""
    freeze_backbone_epochs: int = 0
    """Epochs at the start in which only the head is trained."""
    warm_start_head: bool = True
    """Initialize the head by logistic regression on the frozen backbone's embeddings instead of at random."""
    ema_decay: float = 0.98
    """Decay of the weights' exponential moving average; 0 disables it."""
    freeze_batchnorm: bool = False
    """Keep the pretrained running statistics of batch normalization."""
    rotation_degrees: float = 15.0
    """Largest random rotation in either direction (Stanford's MURA baseline: 30)."""
    scale_jitter: float = 0.1
    """Largest random change of scale in either direction; images are also shifted by up to half this part of a side."""
    brightness_contrast_jitter: float = 0.1
    """Largest random change of brightness and contrast in either direction."""

    def __post_init__(self) -> None:
        if self.backbone_lr_factor is not None and not 0 < self.backbone_lr_factor <= 10:
            raise SettingError("backbone_lr_factor", self.backbone_lr_factor, "must be above 0 and at most 10")
        if self.freeze_backbone_epochs < 0:
            raise SettingError("freeze_backbone_epochs", self.freeze_backbone_epochs, "must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise SettingError("ema_decay", self.ema_decay, "must be at least 0 and below 1")
        if not 0 <= self.rotation_degrees <= 180:
            raise SettingError("rotation_degrees", self.rotation_degrees, "must be between 0 and 180")
        for name in ("scale_jitter", "brightness_contrast_jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(name, getattr(self, name), "must be at least 0 and below 1")
