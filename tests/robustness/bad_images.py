"""Bad images: name -> a function that adds the image to the clinic; returns what must be excluded, path -> reason."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from robustness.bad_input import Clinic, encode

from mura_models.data.images import MAX_PIXELS

rng = np.random.default_rng(1)
GRAY_HW = rng.integers(0, 256, (24, 32), dtype=np.uint8)
DEEP_HW = rng.integers(0, 65536, (24, 32), dtype=np.uint16)
RGB_HWC = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
ALPHA_HW = rng.integers(0, 256, (24, 32), dtype=np.uint8)
GRAY, NEGATIVE = Image.fromarray(GRAY_HW), Image.fromarray(255 - GRAY_HW)
PNG = encode(GRAY)
BOMB = zlib.compress(bytes(200_000_000))
"""200 MB in 0.2 MB."""


def to_luma(rgb_HWC: np.ndarray) -> np.ndarray:
    """Convert to gray values: ITU-R 601-2 luma."""
    return np.asarray(rgb_HWC.astype(np.float64) @ [0.299, 0.587, 0.114])


def make_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def make_png(
    width: int, height: int, packed: bytes, *, depth: int = 8, color: int = 0, adam7: int = 0, extra: bytes = b""
) -> bytes:
    """Assemble a PNG: `packed` holds its compressed rows, `extra` the chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, adam7)
    chunks = make_chunk(b"IHDR", header) + extra + make_chunk(b"IDAT", packed) + make_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def pack_rows(rows: list[bytes]) -> bytes:
    """Compress the rows of a PNG, each unfiltered."""
    return zlib.compress(b"".join(b"\0" + row for row in rows))


def interlace(gray_HW: np.ndarray) -> bytes:
    """Return an interlaced PNG: Adam7's seven passes, as listed in its specification (8.2)."""
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [gray_HW[y::dy, x::dx] for y, x, dy, dx in starts]
    rows = [row.tobytes() for part in passes for row in part]
    return make_png(gray_HW.shape[1], gray_HW.shape[0], pack_rows(rows), adam7=1)


def bad(content: bytes, reason: str, path: str = "bad.png") -> Callable[[Clinic], dict[str, str]]:
    """Return a case of a file with this content."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.add(path, content)
        return {path: reason}

    return make


def read_as(
    content: bytes, expected_HW: np.ndarray, path: str = "odd.png", off_by: float = 0
) -> Callable[[Clinic], dict[str, str]]:
    """Return a case of an unusual but valid file."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.add(path, content, expected_HW, off_by=off_by)
        return {}

    return make


def placed(place: Callable[[Path], object], reason: str, path: str = "bad.png") -> Callable[[Clinic], dict[str, str]]:
    """Return a case of something other than a file at the path of an image."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.add(path, None)
        place(clinic.folder / path)
        return {path: reason}

    return make


def bind_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def write_sparse(path: Path) -> None:
    """Make a file of 100 GB that uses no disk space."""
    path.write_bytes(PNG)
    os.truncate(path, 100 * 10**9)


def turn(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encode(GRAY, exif=exif)


def make_palette() -> tuple[bytes, np.ndarray]:
    """Return a palette image with one alpha value per color, and how it looks on black."""
    colors = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    alphas = rng.integers(0, 256, 256, dtype=np.uint8)
    image = Image.frombytes("P", GRAY.size, GRAY_HW.tobytes())
    image.putpalette(colors.tobytes())
    seen_HW = to_luma(colors[GRAY_HW]) * alphas[GRAY_HW] / 255
    return encode(image, transparency=alphas.tobytes()), seen_HW


def too_large(side_px: int) -> str:
    return f"too large: {side_px} x {side_px} px (at most {MAX_PIXELS} pixels)"


INK = (30, 60, 90, 20)
INK_SEEN_HW = np.full((24, 32), to_luma((255 - np.array(INK[:3])) * (255 - INK[3]) / 255))
HALF_PNG = PNG[: len(PNG) // 2]
ANIMATED = {"save_all": True, "append_images": [NEGATIVE]}
BLACK_HW = np.zeros((24, 32), np.uint8)

IMAGES: dict[str, Callable[[Clinic], dict[str, str]]] = {
    "PNG cut in half": bad(HALF_PNG, "truncated"),
    "PNG header alone": bad(PNG[:20], "truncated"),
    "JPEG short of three bytes": bad(encode(GRAY, "JPEG")[:-3], "truncated", "bad.jpg"),
    "GIF cut in half": bad(encode(GRAY, "GIF")[:-200], "truncated", "bad.gif"),
    "BMP cut in half": bad(encode(GRAY, "BMP")[:1300], "truncated", "bad.bmp"),
    "TIFF cut in half": bad(encode(GRAY, "TIFF")[:-300], "truncated", "bad.tif"),
    "zero bytes": bad(b"", "zero bytes"),
    "text as .png": bad(b"these are not pixels", "not an image"),
    "a page of HTML as .png": bad(b"<!DOCTYPE html><title>404</title>", "not an image"),
    "SVG as .png": bad(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "PDF as .png": bad(b"%PDF-1.4\n", "not an image"),
    "DICOM as .png": bad(bytes(128) + b"DICM", "not an image"),
    "pointer of Git LFS as .png": bad(b"version https://git-lfs.github.com/spec/v1\n", "not an image"),
    "sound as .webp": bad(b"RIFF\0\0\0\0WAVEfmt ", "not an image", "bad.webp"),
    "DICOM": bad(bytes(128) + b"DICM", "unsupported suffix '.dcm'", "bad.dcm"),
    "no suffix": bad(PNG, "unsupported suffix ''", "bad"),
    "1 x 1": bad(encode(Image.new("L", (1, 1))), "too small: 1 x 1 px"),
    "15 x 400": bad(encode(Image.new("L", (15, 400))), "too small: 15 x 400 px"),
    "0 x 0": bad(make_png(0, 0, pack_rows([])), "damaged"),
    "20,000 x 20,000 of one bit": bad(encode(Image.new("1", (20_000, 20_000))), too_large(20_000)),
    "20,000 x 20,000 in the header, almost no data": bad(make_png(20_000, 20_000, BOMB[:100]), too_large(20_000)),
    "12,000 x 12,000 of one bit": bad(encode(Image.new("1", (12_000, 12_000))), too_large(12_000)),
    "sides beyond 32 bits": bad(make_png(2**32 - 1, 2**32 - 1, b""), too_large(2**32 - 1)),
    "9,000 x 9,000 in the header, almost no data": bad(make_png(9000, 9000, zlib.compress(b"\0")), "truncated"),
    "bomb in a PNG's text": bad(make_png(32, 24, b"", extra=make_chunk(b"zTXt", b"k\0\0" + BOMB)), "damaged"),
    "bomb in a PNG's color profile": bad(make_png(32, 24, b"", extra=make_chunk(b"iCCP", b"k\0\0" + BOMB)), "damaged"),
    "a byte changed in a PNG's header": bad(PNG[:20] + b"\xff" + PNG[21:], "damaged"),
    "pixels overwritten with zeros": bad(PNG[:60] + bytes(60) + PNG[120:], "damaged"),
    "floating point": bad(
        encode(Image.fromarray(GRAY_HW.astype(np.float32)), "TIFF"),
        "unsupported pixels: floating point has no full scale",
        "bad.tif",
    ),
    "missing file": placed(lambda path: None, "missing file"),
    "folder in place of a file": placed(lambda path: path.mkdir(), "not a file"),
    "pipe in place of a file": placed(os.mkfifo, "not a file"),
    "socket in place of a file": placed(bind_socket, "not a file"),
    "link to an endless device": placed(lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "link to nothing": placed(lambda path: path.symlink_to("nowhere.png"), "missing file"),
    "link to itself": placed(lambda path: path.symlink_to(path), "missing file"),
    "link to a process's memory": placed(lambda path: path.symlink_to("/proc/self/mem"), "zero bytes"),
    "a name too long for the system": placed(
        lambda path: None, "file cannot be read: File name too long", "x" * 300 + ".png"
    ),
    "a file of 100 GB": placed(write_sparse, "file cannot be read: 100000000000 bytes, at most 1073741824 are read"),
    "PNG short of its end mark": read_as(PNG[:-12], GRAY_HW),
    "PNG with more pixels than its header declares": read_as(make_png(32, 24, BOMB), BLACK_HW),
    "PNG with a text of 2 MB": read_as(PNG[:33] + make_chunk(b"tEXt", b"k\0" + b"a" * 2_000_000) + PNG[33:], GRAY_HW),
    "PNG with damaged EXIF": read_as(encode(GRAY, exif=b"Exif\0\0MM\0\x2aabsurd"), GRAY_HW),
    "interlaced PNG": read_as(interlace(GRAY_HW), GRAY_HW),
    "16 bits": read_as(encode(Image.fromarray(DEEP_HW)), np.round(DEEP_HW / 257)),
    "16 bits of color": read_as(
        make_png(
            32,
            24,
            pack_rows([row.astype(">u2").tobytes() for row in RGB_HWC.astype(np.uint16) * 257]),
            depth=16,
            color=2,
        ),
        to_luma(RGB_HWC),
        off_by=0.51,
    ),
    "one bit": read_as(encode(Image.fromarray(GRAY_HW > 127)), (GRAY_HW > 127) * 255),
    "palette with transparency": read_as(*make_palette(), off_by=1.1),
    "gray with alpha": read_as(
        encode(Image.fromarray(np.dstack([GRAY_HW, ALPHA_HW]))), GRAY_HW * (ALPHA_HW / 255), off_by=1.1
    ),
    "CMYK JPEG": read_as(encode(Image.new("CMYK", (32, 24), INK), "JPEG", quality=100), INK_SEEN_HW, "odd.jpg", 1.6),
    "CMYK TIFF": read_as(encode(Image.new("CMYK", (32, 24), INK), "TIFF"), INK_SEEN_HW, "odd.tif", 1.6),
    "rotated by EXIF": read_as(turn(6), np.rot90(GRAY_HW, -1)),
    "animated GIF": read_as(encode(GRAY, "GIF", **ANIMATED), GRAY_HW, "odd.gif"),
    "animated PNG": read_as(encode(GRAY, "PNG", **ANIMATED), GRAY_HW),
    "animated WebP": read_as(encode(GRAY.convert("RGB"), "WEBP", lossless=True, **ANIMATED), GRAY_HW, "odd.webp"),
    "TIFF of two pages": read_as(encode(GRAY, "TIFF", **ANIMATED), GRAY_HW, "odd.tif"),
    "BMP named .png": read_as(encode(GRAY, "BMP"), GRAY_HW),
    "PNG named .JPG": read_as(PNG, GRAY_HW, "odd.JPG"),
}
"""Links and folders in a MURA folder are tested in test_mura.py."""

if os.geteuid() != 0:  # root can read every file
    IMAGES["a file that may not be read"] = placed(
        lambda path: (path.write_bytes(PNG), path.chmod(0)), "file cannot be read: Permission denied"
    )
