import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mura_models.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VIEWS,
    apply_view,
    autocontrast_changes,
    normalize,
    resize_image,
)
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError


def make_image(height_px: int, width_px: int, seed: int = 0) -> np.ndarray:
    """Draw smooth gray blobs between 30 and 200, so that autocontrast changes them."""
    coarse = np.random.default_rng(seed).integers(30, 200, (7, 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(300, 200), (512, 401), (89, 132), (1, 700)])
def test_stretch_is_torchvisions_resize_of_the_rgb_image(shape: tuple[int, int]) -> None:
    image = make_image(*shape)
    expected = v2.Resize((256, 256))(Image.fromarray(image).convert("RGB"))

    resized = resize_image(image, Preprocessing())

    assert np.array_equal(np.repeat(resized[:, :, None], 3, axis=2), np.asarray(expected))


def test_pad_keeps_the_aspect_ratio_on_black() -> None:
    image = make_image(400, 200)

    padded = resize_image(image, Preprocessing(image_size_px=128, resize="pad"))

    assert padded.shape == (128, 128)
    assert not padded[:, :32].any()
    assert not padded[:, 96:].any()
    expected = v2.Resize((128, 64))(Image.fromarray(image))
    assert np.array_equal(padded[:, 32:96], np.asarray(expected))


@pytest.mark.parametrize(("flip", "autocontrast"), VIEWS)
def test_each_view_is_the_papers_chain_pixel_for_pixel(flip: bool, autocontrast: bool) -> None:
    images = [make_image(300, 200, seed) for seed in range(3)]
    chain = v2.Compose(
        [
            v2.Resize((256, 256)),
            v2.PILToTensor(),
            v2.RandomAutocontrast(p=float(autocontrast)),
            v2.RandomHorizontalFlip(p=float(flip)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    expected_B3HW = torch.stack([chain(Image.fromarray(image).convert("RGB")) for image in images])

    resized_BHW = torch.from_numpy(np.stack([resize_image(image, Preprocessing()) for image in images]))
    prepared_B3HW = normalize(apply_view(resized_BHW, flip, autocontrast))

    assert torch.equal(prepared_B3HW, expected_B3HW)


def test_autocontrast_changes_nothing_if_an_image_spans_the_range_or_is_flat() -> None:
    full = make_image(64, 64)
    full = full.copy()
    full[0, 0], full[0, 1] = 0, 255
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))  # up to 252
    images_BHW = torch.from_numpy(np.stack([make_image(64, 64), full, np.full((64, 64), 77, np.uint8), ramp]))

    assert autocontrast_changes(images_BHW).tolist() == [True, False, False, True]


def test_images_given_to_the_augmentations_stay_as_they_were() -> None:
    images_BHW = torch.from_numpy(np.stack([make_image(64, 64)]))
    before_BHW = images_BHW.clone()

    normalize(apply_view(images_BHW, True, True))

    assert torch.equal(images_BHW, before_BHW)


@pytest.mark.parametrize("settings", [{"image_size_px": 15}, {"image_size_px": 1025}, {"resize": "crop"}])
def test_impossible_settings_are_rejected(settings: dict) -> None:
    with pytest.raises(ConfigError, match="must"):
        Preprocessing(**settings)


def test_settings_with_other_pixels_have_other_keys() -> None:
    settings = [Preprocessing(), Preprocessing(image_size_px=320), Preprocessing(resize="pad")]

    assert len({each.key() for each in settings}) == len(settings)
