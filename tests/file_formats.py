"""The file formats that a run may write, recognized by content with readers that execute nothing."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import load


def detect_format(path: Path) -> str | None:
    """Return the format that a file's suffix names if its content is of that format, else None."""
    read = READERS.get(path.suffix)
    try:
        return None if read is None or not read(path.read_bytes()) else path.suffix.removeprefix(".")
    except (ValueError, OSError, ElementTree.ParseError, ReferenceError):
        return None


def is_npy(content: bytes) -> bool:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return not array.dtype.hasobject


def is_csv(content: bytes) -> bool:
    """Return whether this is printable text with a header and rows of as many cells."""
    text = content.decode("utf-8")
    return (
        text.replace("\n", "").isprintable() and text.endswith("\n") and len(pd.read_csv(io.StringIO(text)).columns) > 1
    )


def is_safetensors(content: bytes) -> bool:
    try:
        return bool(load(content))
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise ValueError(str(error)) from error


def is_png(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return image.format == "PNG"


READERS: dict[str, Callable[[bytes], object]] = {
    ".npy": is_npy,
    ".csv": is_csv,
    ".safetensors": is_safetensors,
    ".png": is_png,
    ".json": lambda content: json.loads(content) is not None,
    ".jsonl": lambda content: [json.loads(line) for line in content.splitlines()],
    ".parquet": lambda content: len(pd.read_parquet(io.BytesIO(content)).columns),
    ".svg": lambda content: ElementTree.fromstring(content).tag.endswith("svg"),
    ".html": lambda content: content.decode("utf-8").lstrip().lower().startswith("<!doctype html"),
}
