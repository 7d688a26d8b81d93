"""Random augmentation of whole batches on the training device: no loop over images and no stateful generator.

The paper's two augmentations (flip, autocontrast) are in preprocessing.py. The others are for training whole networks:
rotation (by up to 30 degrees in Rajpurkar et al., MURA, 2017, https://arxiv.org/abs/1712.06957), scale with shift,
contrast and brightness.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mura_models.data.preprocessing import VIEWS, apply_view


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The largest change of each kind; 0 turns it off."""

    rotation_degrees: float = 0.0
    scale_jitter: float = 0.0
    """Scale by up to so much either way, and move by up to half as much of a side."""
    brightness_contrast_jitter: float = 0.0
    """Contrast and brightness by up to so much either way."""

    @property
    def is_geometric(self) -> bool:
        """Whether pixels move."""
        return bool(self.rotation_degrees or self.scale_jitter)


def augment(images_BHW: Tensor, views_B: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Return augmented images: uint8 as given, or float32 in [0, 1] if `augmentation` changes anything.

    images_BHW: uint8.
    views_B: index into preprocessing.VIEWS of each image's view under the paper's two augmentations.
    rng: draws the rest; its numbers do not depend on the device.
    """
    flips_B, contrasts_B = np.array(VIEWS)[views_B].T
    images_BHW = _where(flips_B, apply_view(images_BHW, True, False), images_BHW)
    if contrasts_B.any():
        images_BHW = _where(contrasts_B, apply_view(images_BHW, False, True), images_BHW)
    if not (augmentation.is_geometric or augmentation.brightness_contrast_jitter):
        return images_BHW
    changed_BHW = images_BHW.float() / 255
    if augmentation.is_geometric:
        changed_BHW = _move(changed_BHW, augmentation, rng)
    if augmentation.brightness_contrast_jitter:
        changed_BHW = _change_contrast(changed_BHW, augmentation.brightness_contrast_jitter, rng)
    return changed_BHW


def _where(mask_B: np.ndarray, first_BHW: Tensor, second_BHW: Tensor) -> Tensor:
    mask_B11 = torch.from_numpy(mask_B).to(first_BHW.device)[:, None, None]
    return torch.where(mask_B11, first_BHW, second_BHW)


def _move(images_BHW: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Rotate, scale and shift each image by its own draw; pixels from outside are black."""
    num_images = len(images_BHW)
    angle_B = np.deg2rad(rng.uniform(-1, 1, num_images) * augmentation.rotation_degrees)
    scale_B = np.exp(rng.uniform(-1, 1, num_images) * math.log1p(augmentation.scale_jitter))
    shift_B2 = rng.uniform(-1, 1, (num_images, 2)) * augmentation.scale_jitter  # the grid is 2 wide, so half a side
    cos_B, sin_B = np.cos(angle_B) / scale_B, np.sin(angle_B) / scale_B
    theta_B23 = np.stack([cos_B, -sin_B, shift_B2[:, 0], sin_B, cos_B, shift_B2[:, 1]], axis=1).reshape(-1, 2, 3)
    theta = torch.from_numpy(theta_B23).to(images_BHW)
    size = (num_images, 1, *images_BHW.shape[1:])
    grid = functional.affine_grid(theta, list(size), align_corners=False)
    moved_B1HW = functional.grid_sample(images_BHW[:, None], grid, mode="bilinear", align_corners=False)
    return moved_B1HW[:, 0]


def _change_contrast(images_BHW: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """Scale each image's gray levels around their mean, and brighten or darken it."""
    drawn_2B = torch.from_numpy(1 + amount * rng.uniform(-1, 1, (2, len(images_BHW)))).to(images_BHW)
    factor_B11, brightness_B11 = drawn_2B[:, :, None, None]
    mean_B11 = images_BHW.mean(dim=(1, 2), keepdim=True)
    changed_BHW: Tensor = (images_BHW - mean_B11) * factor_B11 + mean_B11 * brightness_B11
    return changed_BHW.clamp(0, 1)
