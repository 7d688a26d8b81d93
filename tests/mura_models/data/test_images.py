import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mura_models.data.images import READERS, decode_image, inspect_image
from mura_models.errors import ImageError

rng = np.random.default_rng(0)
GRAY_HW = rng.integers(0, 256, (24, 32), dtype=np.uint8)
DEEP_HW = rng.integers(0, 65536, (24, 32), dtype=np.uint16)
DEEP_HW[0, :4] = 0, 65535, 300, 128  # the ends of the scale, and what clipping would turn white
RGB_HWC = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
ALPHA_HW = rng.integers(0, 256, (24, 32), dtype=np.uint8)


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def luma(rgb_HWC):
    """Return ITU-R 601-2 luma."""
    return rgb_HWC.astype(np.float64) @ [0.299, 0.587, 0.114]


def scale(deep_HW):
    return np.round(deep_HW / 257).astype(np.uint8)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_eight_bits_stay_as_they_are(image_format):
    data = encode(Image.fromarray(GRAY_HW), image_format)
    gray_HW = decode_image(data, f".{image_format.lower()}")
    assert gray_HW.dtype == np.uint8
    assert np.array_equal(gray_HW, GRAY_HW)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(image_format):
    data = encode(Image.fromarray(DEEP_HW), image_format)
    assert np.array_equal(decode_image(data, ".png"), scale(DEEP_HW))


def test_sixteen_bits_of_either_byte_order_and_sign_are_scaled():
    big_endian = Image.frombytes("I;16B", (32, 24), DEEP_HW.astype(">u2").tobytes())
    assert np.array_equal(decode_image(encode(big_endian, "TIFF"), ".tif"), scale(DEEP_HW))
    wide = Image.fromarray(DEEP_HW.astype(np.int32))
    assert wide.mode == "I"
    assert np.array_equal(decode_image(encode(wide, "TIFF"), ".tif"), scale(DEEP_HW))


def test_sixteen_bits_with_white_as_zero_are_inverted():
    data = encode(Image.fromarray(DEEP_HW), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode_image(data, ".tif"), scale(65535 - DEEP_HW))


def test_colors_become_gray_by_luma():
    assert np.abs(decode_image(encode(Image.fromarray(RGB_HWC)), ".png") - luma(RGB_HWC)).max() < 0.51


def test_a_palette_is_looked_up():
    colors = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GRAY_HW)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colors.tobytes())
    assert np.abs(decode_image(encode(image), ".png") - luma(colors[GRAY_HW])).max() < 0.51
    alphas = rng.integers(0, 256, 256, dtype=np.uint8)
    seen = luma(colors[GRAY_HW]) * alphas[GRAY_HW] / 255
    assert np.abs(decode_image(encode(image, transparency=alphas.tobytes()), ".png") - seen).max() < 1.1


@pytest.mark.parametrize("channels", ["LA", "RGBA"])
def test_transparent_pixels_are_blended_with_black(channels):
    colors_HWC = GRAY_HW[..., None] if channels == "LA" else RGB_HWC
    data = encode(Image.fromarray(np.dstack([colors_HWC, ALPHA_HW])))
    opaque = GRAY_HW if channels == "LA" else luma(RGB_HWC)
    assert np.abs(decode_image(data, ".png") - opaque * (ALPHA_HW / 255)).max() < 1.1


def test_a_transparent_value_of_sixteen_bits_is_black():
    data = encode(Image.fromarray(DEEP_HW), transparency=65535)
    assert decode_image(data, ".png")[0, 1] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, image_format):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(Image.fromarray(GRAY_HW), image_format, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    gray_HW = decode_image(data, ".png")
    assert np.array_equal(gray_HW, np.asarray(upright))
    assert inspect_image(data, ".png")[:2] == upright.size


SOURCES = [
    encode(Image.fromarray(RGB_HWC), image_format, **options)
    for image_format, options in [("PNG", {}), ("JPEG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SOURCES), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6), st.data())
def test_any_damage_gives_pixels_or_a_reason(source, changes, data):
    damaged = bytearray(source[: data.draw(st.integers(0, len(source)))])
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    for read in (inspect_image, decode_image):
        try:
            read(bytes(damaged), ".png")
        except ImageError as error:
            assert 0 < len(str(error)) < 100


def test_warnings_of_pillow_do_not_escape_from_threads():
    odd = bytearray(encode(Image.fromarray(GRAY_HW), "TIFF", tiffinfo={270: "a long description"}))
    tag = odd.index(struct.pack("<HH", 270, 2))
    odd[tag + 4 : tag + 8] = struct.pack("<I", 10**6)  # longer than the file
    with pytest.warns(UserWarning, match="Tag data larger than file|Truncated File Read"):
        Image.open(io.BytesIO(odd))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:  # here warnings are errors
        decoded = list(pool.map(decode_image, [bytes(odd), SOURCES[0]] * 50, [".tif", ".png"] * 50))
    assert all(np.array_equal(gray_HW, GRAY_HW) for gray_HW in decoded[::2])
    assert all(np.array_equal(gray_HW, decoded[1]) for gray_HW in decoded[1::2])
    assert warnings.filters == before


def test_a_reader_is_added_by_suffix(monkeypatch):
    monkeypatch.setitem(READERS, ".dcm", lambda data: Image.frombytes("I;16", (32, 24), data))
    assert np.array_equal(decode_image(DEEP_HW.tobytes(), ".dcm"), scale(DEEP_HW))


@pytest.mark.parametrize(
    ("image", "image_format", "mode"),
    [
        (Image.fromarray(GRAY_HW), "PNG", "L"),
        (Image.fromarray(RGB_HWC), "JPEG", "RGB"),
        (Image.fromarray(DEEP_HW), "PNG", "I;16"),
        (Image.fromarray(GRAY_HW).convert("P"), "PNG", "P"),
        (Image.fromarray(GRAY_HW > 127), "TIFF", "1"),
    ],
)
def test_the_header_gives_the_color_mode(image, image_format, mode):
    assert inspect_image(encode(image, image_format), ".png").mode == mode
