import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mura_models.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OUTCOMES,
    Preprocessing,
    apply_outcome,
    autocontrast_changes,
    normalise,
    resize_image,
)
from mura_models.errors import ConfigError


def make_film(height_px: int, width_px: int, seed: int = 0) -> np.ndarray:
    """Draw smooth grey blobs between 30 and 200, so that autocontrast has something to do."""
    coarse = np.random.default_rng(seed).integers(30, 200, (7, 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(300, 200), (512, 401), (89, 132), (1, 700)])
def test_stretch_is_torchvisions_resize_of_the_rgb_film(shape: tuple[int, int]) -> None:
    film = make_film(*shape)
    expected = v2.Resize((256, 256))(Image.fromarray(film).convert("RGB"))

    resized = resize_image(film, Preprocessing())

    assert np.array_equal(np.repeat(resized[:, :, None], 3, axis=2), np.asarray(expected))


def test_pad_keeps_the_aspect_ratio_on_black() -> None:
    film = make_film(400, 200)

    padded = resize_image(film, Preprocessing(image_size_px=128, resize="pad"))

    assert padded.shape == (128, 128)
    assert not padded[:, :32].any()
    assert not padded[:, 96:].any()
    expected = v2.Resize((128, 64))(Image.fromarray(film))
    assert np.array_equal(padded[:, 32:96], np.asarray(expected))


@pytest.mark.parametrize(("flip", "autocontrast"), OUTCOMES)
def test_each_outcome_is_the_papers_chain_pixel_for_pixel(flip: bool, autocontrast: bool) -> None:
    films = [make_film(300, 200, seed) for seed in range(3)]
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
    expected_B3HW = torch.stack([chain(Image.fromarray(film).convert("RGB")) for film in films])

    resized_BHW = torch.from_numpy(np.stack([resize_image(film, Preprocessing()) for film in films]))
    prepared_B3HW = normalise(apply_outcome(resized_BHW, flip, autocontrast))

    assert torch.equal(prepared_B3HW, expected_B3HW)


def test_autocontrast_changes_nothing_where_a_film_spans_the_range_or_is_flat() -> None:
    full = make_film(64, 64)
    full = full.copy()
    full[0, 0], full[0, 1] = 0, 255
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))  # up to 252
    films_BHW = torch.from_numpy(np.stack([make_film(64, 64), full, np.full((64, 64), 77, np.uint8), ramp]))

    assert autocontrast_changes(films_BHW).tolist() == [True, False, False, True]


def test_films_given_to_the_augmentations_stay_as_they_were() -> None:
    films_BHW = torch.from_numpy(np.stack([make_film(64, 64)]))
    before_BHW = films_BHW.clone()

    normalise(apply_outcome(films_BHW, True, True))

    assert torch.equal(films_BHW, before_BHW)


@pytest.mark.parametrize("settings", [{"image_size_px": 15}, {"image_size_px": 1025}, {"resize": "crop"}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="must"):
        Preprocessing(**settings)


def test_settings_with_other_pixels_have_other_keys() -> None:
    settings = [Preprocessing(), Preprocessing(image_size_px=320), Preprocessing(resize="pad")]

    assert len({each.key() for each in settings}) == len(settings)
