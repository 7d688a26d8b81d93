"""`mura predict`: write a bundle's predictions for images into a file."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mura_models.errors import DataError, SettingError, to_one_line
from mura_models.inference.bundle_files import load_bundle
from mura_models.storage import atomic_write

WRITERS = (".csv", ".parquet", ".json")


def predict_files(bundle_dir: Path, data: Path, out: Path, *, split: str | None = None) -> None:
    """Write the table of `Bundle.predict` to `out` and print the excluded files.

    Raises BundleError, DataError or SettingError.
    """
    check_out(out)
    try:
        table = load_bundle(bundle_dir).predict(data, split=split)
    except DataError as error:
        print_excluded(error.excluded)
        raise
    print_excluded(table.attrs.pop("excluded"))
    write_predictions(table, out)
    print(f"{len(table)} images: {out}")


def print_excluded(excluded: Sequence[Mapping[Any, Any]]) -> None:
    """Print one line per excluded file."""
    for file in excluded:
        print(to_one_line(f"excluded: {file['path']}: {file['reason']}"))


def check_out(out: Path) -> None:
    """Raise SettingError if `out` cannot be written, before hours are spent on its content."""
    if out.suffix not in WRITERS:
        raise SettingError("out", out, f"must end in {', '.join(WRITERS)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise SettingError("out", out, "is a folder; name a file")
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise SettingError("out", out, f"cannot be written ({error.strerror}); name another file") from None


def write_predictions(predictions: pd.DataFrame, out: Path) -> None:
    """Write a table in the format of the file's suffix, atomically."""
    with atomic_write(out) as partial:
        if out.suffix == ".csv":
            predictions.to_csv(partial, index=False)
        elif out.suffix == ".parquet":
            predictions.to_parquet(partial, index=False)
        else:
            predictions.to_json(partial, orient="records", indent=2)
