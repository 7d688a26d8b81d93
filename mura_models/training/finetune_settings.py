"""What training a whole network needs beside its rates. Free of torch, so that the command line can list it."""

from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from mura_models.errors import ConfigError


def _setting(default: Any, text: str) -> Any:
    """Declare a field with the words that its option's help says."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings:
    """How the whole network is trained; each field is an option of the command."""

    backbone_lr_factor: float | None = _setting(
        None, "The backbone's rate as a part of the head's; None = each of 1, 0.3 and 0.1 is tried."
    )
    freeze_backbone_epochs: int = _setting(0, "Epochs at the start in which the head alone is trained.")
    warm_start_head: bool = _setting(
        True, "Start from a logistic regression on the frozen backbone's embeddings rather than from a random head."
    )
    ema_decay: float = _setting(
        0.98,
        "Ship an exponential moving average of the weights, of so much memory an update; 0 = the weights themselves.",
    )
    freeze_batchnorm: bool = _setting(False, "Keep the running statistics of batch normalisation as they came.")
    rotation_degrees: float = _setting(15.0, "Each image is turned by up to so much either way (Stanford: 30).")
    zoom: float = _setting(
        0.1, "Each image is scaled by up to so much either way, and moved by half as much of its side."
    )
    contrast: float = _setting(0.1, "Contrast and brightness are changed by up to so much either way.")

    def __post_init__(self) -> None:
        if self.backbone_lr_factor is not None and not 0 < self.backbone_lr_factor <= 10:
            raise ConfigError(f"backbone_lr_factor={self.backbone_lr_factor}: must lie in (0, 10]")
        if self.freeze_backbone_epochs < 0:
            raise ConfigError(f"freeze_backbone_epochs={self.freeze_backbone_epochs}: must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay}: must lie in [0, 1)")
        if not 0 <= self.rotation_degrees <= 180:
            raise ConfigError(f"rotation_degrees={self.rotation_degrees}: must lie in [0, 180]")
        for name in ("zoom", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One setting as a command line shows it."""

    name: str
    type: type
    default: Any
    text: str


def describe_fields(settings: type) -> list[Field]:
    """Return the fields of a dataclass of settings; the type of one that may be None is the other."""
    hints = get_type_hints(settings)
    return [
        Field(
            name=field.name,
            type=next((kind for kind in get_args(hints[field.name]) if kind is not type(None)), hints[field.name]),
            default=field.default,
            text=field.metadata["help"],
        )
        for field in fields(settings)
    ]
