"""Decodes one image file to gray pixels, or gives the reason why it cannot be used."""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mura_models.errors import ImageError

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs: 256 MiB of RGB
MIN_SIDE_PX = 16  # chosen by us: MURA's smallest side is 89 px

# By content, since a JPEG called .png is still an image. `Image.open` with `formats` does the same, but raises for a
# large image before its width and height are known, which the reason in quarantine.csv gives.
_FORMATS: tuple[tuple[bytes, Callable[[BytesIO], ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"II\x2a\x00", TiffImageFile),
    (b"MM\x00\x2a", TiffImageFile),
    (b"II\x2b\x00", TiffImageFile),  # BigTIFF
    (b"MM\x00\x2b", TiffImageFile),
    (b"RIFF", WebPImageFile),
)
# What Pillow raises for damaged files, as observed.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# `warnings.catch_warnings` replaces the filters of the whole process: one thread at a time.
_WARNINGS_LOCK = threading.Lock()


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Suppress warnings on odd metadata, which does not matter here."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_with_pillow(data: bytes) -> Image.Image:
    """Open an image by its content, reading only its header.

    Raises ImageError or one of Pillow's errors.
    """
    for magic, open_format in _FORMATS:
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            with _ignore_warnings():
                return open_format(BytesIO(data))
    raise ImageError("not an image")


# To add a format, add it here: a reader takes a file's bytes and may leave the pixels unread.
READERS: dict[str, Callable[[bytes], Image.Image]] = dict.fromkeys(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"), open_with_pillow
)


class ImageHeader(NamedTuple):
    """Size and color mode of an image."""

    width: int
    """In pixels, after EXIF rotation, as the height."""
    height: int
    mode: str
    """The color mode as Pillow names it: L, RGB, I;16, ..."""


def inspect_image(data: bytes, suffix: str) -> ImageHeader:
    """Return size and color mode from the header, without decoding pixels.

    suffix: of the file's name, with its dot, in either case.

    Raises ImageError with the reason.
    """
    image = _open_image(data, suffix)
    width, height = image.size
    if _read_orientation(image, data) in _TURNED:
        width, height = height, width
    return ImageHeader(width, height, image.mode)


def decode_image(data: bytes, suffix: str) -> NDArray[np.uint8]:
    """Return the pixels of the first frame as gray levels, [height, width], upright by EXIF orientation.

    16 bits are scaled, not clipped: 65535 becomes 255. Transparent pixels are blended with black.
    Colors become gray by the weights of `Image.convert("L")` (ITU-R 601-2).

    suffix: of the file's name, with its dot, in either case.

    Raises ImageError with the reason.
    """
    image = _open_image(data, suffix)
    try:
        # Only TIFF reads its metadata again here; the other formats decode in parallel.
        with _ignore_warnings() if isinstance(image, TiffImageFile) else nullcontext():
            image.load()
        gray_HW = _to_gray(image)
    except _DAMAGE as error:
        raise ImageError(_damage_reason(error)) from error
    upright = Image.fromarray(gray_HW)
    upright.getexif()[ExifTags.Base.Orientation] = _read_orientation(image, data)
    return np.ascontiguousarray(ImageOps.exif_transpose(upright))


def _open_image(data: bytes, suffix: str) -> Image.Image:
    """Open an image and check its size."""
    read = READERS.get(suffix.lower())
    if read is None:
        raise ImageError(f"unsupported suffix '{suffix}'")
    if not data:
        raise ImageError("zero bytes")
    try:
        image = read(data)
    except Image.DecompressionBombError as error:  # a format that is unpacked to be opened
        raise ImageError(f"too large: more than {MAX_PIXELS} pixels") from error
    except _DAMAGE as error:
        raise ImageError(_damage_reason(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"too large: {width} x {height} px (at most {MAX_PIXELS} pixels)")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"too small: {width} x {height} px")
    return image


def _damage_reason(error: BaseException) -> str:
    is_short = isinstance(error, EOFError | struct.error) or "truncated" in str(error).lower()
    return "truncated" if is_short else "damaged"


def _to_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Return one channel of 8 bits, before EXIF rotation."""
    if image.mode == "F":
        raise ImageError("unsupported pixels: floating point has no full scale")
    if image.mode.startswith("I"):
        return _scale_16_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size)
        image.paste(rgba, mask=rgba.getchannel("A"))
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # palettes, CMYK, YCbCr
    return np.asarray(image.convert("L"))


def _scale_16_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 0..65535 to 0..255, rounded, as the PNG specification (13.12) scales sample depths."""
    deep_HW = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        deep_HW[deep_HW == transparent] = 0
    if isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
        deep_HW = 65535 - deep_HW  # white is zero: Pillow inverts 8 bits but not 16
    return ((deep_HW + 128) // 257).astype(np.uint8)


_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height (EXIF 2.3, tag 0x0112)."""


def _read_orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation that is still to be applied: 1 if there is none or EXIF is damaged."""
    if isinstance(image, TiffImageFile):
        return 1  # Pillow rotates TIFF itself
    try:
        with _ignore_warnings():
            if isinstance(image, PngImageFile) and b"eXIf" not in data:
                # PngImageFile.getexif decodes all pixels to look for a chunk after them.
                exif = Image.Image.getexif(image)
            else:
                exif = image.getexif()
            return int(exif.get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1
