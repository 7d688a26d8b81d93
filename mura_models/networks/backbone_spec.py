"""Which backbone, under which weights. Free of torch, so that the command line can list the options."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from mura_models.errors import SettingError, WeightsError

LITE0 = "efficientnet_lite0"
WEIGHTS_WITHOUT_FILE = ("imagenet", "random")


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A backbone and its weights."""

    name: str = field(default=LITE0, metadata={"option": "--backbone"})
    """Frozen network that turns images into features: efficientnet_lite0, resnet18, resnet50, densenet169 or any
    timm model."""
    weights: str = "imagenet"
    """Weights of the backbone: imagenet, random, or a .pt, .pth or .safetensors file."""
    seed: int = 0
    """Of random weights."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise SettingError("weights", self.weights, "must be imagenet, random or the path of a file")

    def name_weights(self) -> str:
        """Return the weights for a record: a file by its name and SHA-256, never by its folder.

        Raises WeightsError if the file cannot be read.
        """
        if self.weights in WEIGHTS_WITHOUT_FILE:
            return self.weights
        path = Path(self.weights)
        check_weights_file(path)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(
                f"weights {path}: {error.strerror}; give imagenet, random or the path of a file"
            ) from None
        return f"{path.name} sha256:{digest[:16]}"


def check_weights_file(path: Path) -> None:
    """Raise WeightsError unless a regular file is there: opening a pipe would wait forever."""
    if not os.path.isfile(path):  # noqa: PTH113, a Path raises for a name that is too long
        what = "not a file" if os.path.exists(path) else "no such file"  # noqa: PTH110
        raise WeightsError(
            f"weights {str(path)!r}: {what}; give imagenet, random or an existing .pt, .pth or .safetensors file"
        )
