"""One image file -> grey pixels, read as its format means them, or the reason why not."""

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
from PIL import ExifTags, Image
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

# By content, since a JPEG called .png is still a picture. `Image.open` would do the same, but it refuses
# large images before it tells their size, and tries formats that no suffix here stands for.
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
# What Pillow has been seen to raise for damaged files.
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
# `warnings.catch_warnings` exchanges the filters of the whole process: one thread at a time.
_WARNINGS_LOCK = threading.Lock()


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Keep quiet about odd metadata, which does not matter here."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_with_pillow(data: bytes) -> Image.Image:
    """Open an image by its content; only its header is read.

    Raises ImageError, or what Pillow raises.
    """
    for magic, open_format in _FORMATS:
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            with _ignore_warnings():
                return open_format(BytesIO(data))
    raise ImageError("not an image")


# The one place where a format joins: a reader takes a file's bytes and may leave the pixels unread.
READERS: dict[str, Callable[[bytes], Image.Image]] = dict.fromkeys(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"), open_with_pillow
)


class ImageHeader(NamedTuple):
    """What an image's header tells."""

    width: int
    """In pixels, after EXIF rotation, as the height."""
    height: int
    mode: str
    """The color mode as Pillow names it: L, RGB, I;16, ..."""


def inspect_image(data: bytes, suffix: str) -> ImageHeader:
    """Return size and color mode from the header alone.

    suffix: of the file's name, with its dot, in either case.

    Raises ImageError with the reason.
    """
    image = _open_image(data, suffix)
    width, height = image.size
    if _read_orientation(image, data) in _TURNED:
        width, height = height, width
    return ImageHeader(width, height, image.mode)


def decode_image(data: bytes, suffix: str) -> NDArray[np.uint8]:
    """Return the pixels of the first frame as grey (height, width), upright as EXIF says.

    16 bits are scaled, not clipped: 65535 becomes 255. What is transparent is laid on black.
    Colours become grey as `Image.convert("L")` weighs them (ITU-R 601-2).

    Raises ImageError with the reason.
    """
    image = _open_image(data, suffix)
    try:
        # Only TIFF reads its metadata again here; the others decode side by side.
        with _ignore_warnings() if isinstance(image, TiffImageFile) else nullcontext():
            image.load()
        gray_HW = _to_gray(image)
    except _DAMAGE as error:
        raise ImageError(_name_damage(error)) from error
    return np.ascontiguousarray(_turn(gray_HW, _read_orientation(image, data)))


def _open_image(data: bytes, suffix: str) -> Image.Image:
    """Open an image of usable size."""
    read = READERS.get(suffix.lower())
    if read is None:
        raise ImageError(f"unsupported suffix '{suffix}'")
    if not data:
        raise ImageError("zero bytes")
    try:
        image = read(data)
    except Image.DecompressionBombError as error:  # a format that must be unpacked to be opened
        raise ImageError(f"too large: more than {MAX_PIXELS} pixels") from error
    except _DAMAGE as error:
        raise ImageError(_name_damage(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"too large: {width} x {height} px (at most {MAX_PIXELS} pixels)")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"too small: {width} x {height} px")
    return image


def _name_damage(error: BaseException) -> str:
    is_short = isinstance(error, EOFError | struct.error) or "truncated" in str(error).lower()
    return "truncated" if is_short else "damaged"


def _to_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Return one channel of 8 bits, not yet turned."""
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
    """Bring 0 to 65535 to 0 to 255, rounded, as the PNG specification (13.12) scales sample depths."""
    deep_HW = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        deep_HW[deep_HW == transparent] = 0
    if isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
        deep_HW = 65535 - deep_HW  # white is zero: Pillow turns 8 bits round, 16 bits not
    return ((deep_HW + 128) // 257).astype(np.uint8)


# EXIF orientation -> the upright image (EXIF 2.3, tag 0x0112).
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda gray_HW: gray_HW[:, ::-1],
    3: lambda gray_HW: gray_HW[::-1, ::-1],
    4: lambda gray_HW: gray_HW[::-1],
    5: lambda gray_HW: gray_HW.T,
    6: lambda gray_HW: gray_HW[::-1].T,
    7: lambda gray_HW: gray_HW[::-1, ::-1].T,
    8: lambda gray_HW: gray_HW.T[::-1],
}
_TURNED = (5, 6, 7, 8)  # width and height change places


def _turn(gray_HW: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    turn = _TURNS.get(orientation)
    return gray_HW if turn is None else turn(gray_HW)


def _read_orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation that is still to be applied; 1 where there is none or EXIF is damaged."""
    if isinstance(image, TiffImageFile):
        return 1  # Pillow turns TIFF itself
    try:
        with _ignore_warnings():
            if isinstance(image, PngImageFile) and b"eXIf" not in data:
                # PngImageFile.getexif decodes all pixels to look for a chunk behind them.
                exif = Image.Image.getexif(image)
            else:
                exif = image.getexif()
            return int(exif.get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1
