"""Augmentation of whole batches, compared with torchvision's on one image at a time."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as transforms
from torchvision.transforms import InterpolationMode

from mura_models.data.augmentation import Augmentation, augment
from mura_models.data.preprocessing import VIEWS, apply_view

pytestmark = pytest.mark.usefixtures("one_thread")

NOTHING = Augmentation()


class FixedDraws:
    """A random generator with known draws, each a fraction of the largest change."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def uniform(self, low, high, size):
        return np.broadcast_to(np.asarray(self.draws.pop(0), float), size)


def make_images(num=4, size=32):
    """Return smooth images, for which interpolations hardly differ."""
    drawn = torch.rand((num, 1, size // 4, size // 4), generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(drawn, size=(size, size), mode="bicubic")[:, 0].clamp(0, 1) * 255).byte()


def plain(images):
    return np.zeros(len(images), int)


def test_each_image_gets_its_own_view():
    images = make_images()
    changed = augment(images, np.arange(4), NOTHING, np.random.default_rng(0))
    assert changed.dtype == torch.uint8
    for number, view in enumerate(VIEWS):
        assert torch.equal(changed[number], apply_view(images[number : number + 1], *view)[0])


def test_without_augmentation_images_stay_as_they_are():
    images = make_images()
    assert torch.equal(augment(images, plain(images), NOTHING, np.random.default_rng(0)), images)


@pytest.mark.parametrize("part", [1.0, -0.5, 0.1])
def test_rotation_is_torchvisions(part):
    images = make_images()
    angles, no_scale, no_shift = np.full(4, part), np.zeros(4), np.zeros((4, 2))
    turned = augment(images, plain(images), Augmentation(rotation_degrees=30), FixedDraws(angles, no_scale, no_shift))
    expected = transforms.rotate(images.float() / 255, 30 * part, InterpolationMode.BILINEAR)
    assert torch.allclose(turned, expected, atol=1e-4)


@pytest.mark.parametrize("part", [1.0, -1.0])
def test_zoom_is_torchvisions(part):
    images = make_images()
    zoomed = augment(
        images,
        plain(images),
        Augmentation(scale_jitter=0.25),
        FixedDraws(np.zeros(4), np.full(4, part), np.zeros((4, 2))),
    )
    expected = transforms.affine(
        images.float() / 255,
        angle=0.0,
        translate=[0, 0],
        scale=math.exp(part * math.log(1.25)),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    assert torch.allclose(zoomed, expected, atol=1e-3)


def test_a_shift_moves_by_at_most_half_the_zoom_of_a_side():
    images = make_images()
    shift = np.tile([1.0, 0.0], (4, 1))
    moved = augment(images, plain(images), Augmentation(scale_jitter=0.25), FixedDraws(np.zeros(4), np.zeros(4), shift))
    expected = images.float() / 255
    assert torch.allclose(moved[:, :, :-4], expected[:, :, 4:], atol=1e-3)  # 32 px * 0.25 / 2
    assert (moved[:, :, -4:] == 0).all()  # from outside comes black


def test_contrast_is_stretched_around_each_images_own_mean():
    images = make_images()
    factor, brightness = np.full(4, 1.0), np.full(4, -0.5)
    draws = np.stack([factor, brightness])
    changed = augment(images, plain(images), Augmentation(brightness_contrast_jitter=0.2), FixedDraws(draws))
    scaled = images.float() / 255
    mean = scaled.mean((1, 2), keepdim=True)
    assert torch.allclose(changed, ((scaled - mean) * 1.2 + mean * 0.9).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"rotation_degrees": 20.0}, {"scale_jitter": 0.2}, {"brightness_contrast_jitter": 0.2}]
)
def test_every_image_is_changed_by_a_draw_of_its_own_and_a_seed_repeats_it(changes):
    same = make_images(1).expand(6, -1, -1).contiguous()
    first, again, other = (
        augment(same, plain(same), Augmentation(**changes), np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.equal(first[0], image) for image in first[1:])
    assert first.min() >= 0
    assert first.max() <= 1
