"""A data set in which everything private carries a mark, and the search for marks in what a run writes.

A mark is a sequence of ASCII letters that occurs in no word, so it is unchanged in UTF-8, Latin-1, JSON, HTML and URLs;
the search also covers UTF-16, hexadecimal and base64 at each of its three alignments. Each mark is surrounded by
letters that need encoding.
"""

import base64
import functools
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from ray_helpers import write_images

KINDS = (
    *("folder", "subfolder", "filename", "patient", "study", "column", "cell", "weights_folder"),
    *("keyword", "png_text", "png_compressed_text", "exif", "exif_utf16", "behind_the_pixels"),
    *("broken_filename", "suffix", "label", "split", "fold"),
)
MARKS = {kind: f"qzx{kind.replace('_', '')}vkjq" for kind in KINDS}
DATA_URI = re.compile(rb"data:[\w/+.-]*;base64,([A-Za-z0-9+/=]+)")
MAX_DEPTH = 4


def write_marked_images(root: Path) -> Path:
    """Write images with marks of every kind and their manifest; return its path."""
    folder = root / name("folder") / "two-bones"
    table = pd.read_csv(write_images(folder), dtype=str)
    paths = []
    for number, path in enumerate(table["path"]):
        marked = f"{name('subfolder')}/{name('filename')} {number}.png"
        (folder / marked).parent.mkdir(exist_ok=True)
        mark_image(folder / path, folder / marked)
        paths.append(marked)
    table = table.assign(path=paths, patient=name("patient") + table["patient"], study=name("study"))
    table[name("column")] = name("cell")
    table["fold"] = ""
    table = pd.concat([table, make_bad_rows(folder, table)], ignore_index=True)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def name(kind: str) -> str:
    """Return a name that contains the mark of this kind."""
    return f"Jöhn {MARKS[kind].title()}"


def mark_image(source: Path, target: Path) -> None:
    """Move an image and put marks wherever a PNG can hold text."""
    info = PngInfo()
    info.add_text("PatientName", name("png_text"))
    info.add_text(MARKS["keyword"], "x")
    info.add_itxt("(0010,0010) PatientName", name("png_text"), "de", "PatientName")
    info.add_itxt("PatientID", name("png_compressed_text"), zip=True)
    info.add_text("InstitutionName", name("png_compressed_text"), zip=True)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = MARKS["exif"]
    exif[ExifTags.Base.Artist] = MARKS["exif"]
    exif[ExifTags.Base.XPAuthor] = name("exif_utf16").encode("utf-16-le")
    with Image.open(source) as image:
        image.save(target, pnginfo=info, exif=exif)
    target.write_bytes(target.read_bytes() + name("behind_the_pixels").encode())
    source.unlink()


def make_bad_rows(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return rows that cannot be used; the reason of each contains a mark."""
    good = table.iloc[0].to_dict()
    broken, other = f"{name('broken_filename')}.png", f"image.{MARKS['suffix']}"
    (folder / broken).write_bytes((folder / good["path"]).read_bytes()[:300])
    (folder / other).write_bytes(b"not an image")
    wrong = [{"path": broken}, {"path": other}, {"path": f"{name('broken_filename')}-gone.png"}]
    cells = ({"label": name("label")}, {"split": name("split")}, {"fold": name("fold")})
    return pd.DataFrame([good | change for change in (*wrong, *cells)])


def find_marks(content: bytes, words: Mapping[str, str] = MARKS) -> set[str]:
    """Return the kinds of the marks in these bytes, or in anything compressed or encoded in them."""
    found = set()
    for part in unpack(content):
        lower = part.lower()
        for kind, word in words.items():
            plain, encoded = list_spellings(word)
            if any(spelling in lower for spelling in plain) or any(spelling in part for spelling in encoded):
                found.add(kind)
    return found


@functools.cache
def list_spellings(word: str) -> tuple[list[bytes], list[bytes]]:
    """Return a word's encodings in lower case, and those in which case matters."""
    plain = [word.lower().encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    encoded = []
    for raw in {spelling.encode() for spelling in (word, word.lower(), word.title())}:
        plain.append(raw.hex().encode())
        for offset in range(3):
            whole = base64.b64encode(b"\0" * offset + raw)
            encoded.append(whole[4 if offset else 0 : len(whole) - 4])  # without letters that depend on neighbors
    return plain, [spelling for spelling in encoded if len(spelling) >= 8]  # shorter ones occur in images by chance


def unpack(content: bytes, depth: int = 0) -> Iterator[bytes]:
    """Return these bytes and all that is packed in them: PNG, gzip, zip, parquet, images in a page."""
    yield content
    if depth < MAX_DEPTH:
        for part in open_packed(content):
            yield from unpack(part, depth + 1)


def open_packed(content: bytes) -> Iterator[bytes]:
    """Return the unpacked parts, if the bytes are in a format that packs others."""
    if content.startswith(b"\x89PNG"):
        yield from list_png_texts(content)
        yield Image.open(io.BytesIO(content)).tobytes()
    elif content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    elif content.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from (archive.read(part) for part in archive.namelist())
    elif content.startswith(b"PAR1"):
        yield pd.read_parquet(io.BytesIO(content)).to_csv(index=False).encode()
    for match in DATA_URI.finditer(content):
        yield base64.b64decode(match[1])


def list_png_texts(content: bytes) -> Iterator[bytes]:
    """Return every chunk of a PNG, and its decompressed content if zlib can decompress it."""
    place = 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        body = content[place + 8 : place + 8 + length]
        yield body
        for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", body[:200]):
            try:
                yield zlib.decompressobj().decompress(body[match.start() :])
            except zlib.error:
                continue
        place += 12 + length
