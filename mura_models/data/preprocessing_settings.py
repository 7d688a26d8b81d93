"""How an image becomes a square. Free of torch, so that the command line can list the options."""

from dataclasses import dataclass
from typing import Literal, get_args

from mura_models.errors import SettingError

ResizeMode = Literal["stretch", "pad"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Size of the images and how they are brought to it."""

    image_size_px: int = 256
    """Side of the square images, in pixels."""
    resize: ResizeMode = "stretch"
    """How an image becomes square: stretch (as in the paper) or pad (keeps the aspect ratio, on black)."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size_px <= 1024:
            raise SettingError("image_size_px", self.image_size_px, "must be between 16 and 1024")
        if self.resize not in get_args(ResizeMode):
            raise SettingError("resize", self.resize, f"must be one of {', '.join(get_args(ResizeMode))}")

    def key(self) -> str:
        """Return the settings as a cache key: equal keys, equal pixels."""
        return f"{self.resize}-bilinear-{self.image_size_px}px"
