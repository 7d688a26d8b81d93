"""The paper's preprocessing and augmentations, the only copy: resized on the CPU, then batched on the device.

An image stays one channel until it is normalized: the same pixels as the paper's three equal channels, for a
third of the work.
"""

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mura_models.data.preprocessing_settings import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# (flip, autocontrast), each drawn with probability 0.5 in the paper: four views per image, the first unchanged.
VIEWS = ((False, False), (True, False), (False, True), (True, True))


def resize_image(image_HW: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize one gray image to a square, bilinear with antialias, as torchvision does on a Pillow image."""
    size = (preprocessing.image_size_px, preprocessing.image_size_px)
    image = Image.fromarray(image_HW)
    if preprocessing.resize == "stretch":
        square = image.resize(size, Image.Resampling.BILINEAR)
    else:
        square = ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=0)
    return np.asarray(square)


def apply_view(images_BHW: torch.Tensor, flip: bool, autocontrast: bool) -> torch.Tensor:
    """Return one view of uint8 images; autocontrast is per image."""
    images_B1HW = images_BHW.unsqueeze(1)
    if flip:
        images_B1HW = transforms.horizontal_flip(images_B1HW)
    if autocontrast:
        images_B1HW = transforms.autocontrast(images_B1HW)
    return images_B1HW.squeeze(1)


def autocontrast_changes(images_BHW: torch.Tensor) -> torch.Tensor:
    """Return for each image whether autocontrast alters a pixel: not if it is flat or spans 0 to 255."""
    return (apply_view(images_BHW, False, True) != images_BHW).flatten(1).any(dim=1)


def normalize(images_BHW: torch.Tensor) -> torch.Tensor:
    """Return images, uint8 or float in [0, 1], as float32 [B, 3, H, W] normalized by ImageNet's mean and deviation."""
    images_B3HW = images_BHW.unsqueeze(1).expand(-1, 3, -1, -1)
    scaled_B3HW = transforms.to_dtype(images_B3HW, torch.float32, scale=True)
    normalized_B3HW: torch.Tensor = transforms.normalize(
        scaled_B3HW, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=not images_BHW.is_floating_point()
    )
    return normalized_B3HW
