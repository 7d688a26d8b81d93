"""What a bundle can predict: a folder, a CSV, image files, or a table in memory."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from mura_models.data.csv_manifest import type_for_prediction
from mura_models.data.dataset import DataSet, read_predict_input
from mura_models.data.images import READERS
from mura_models.data.safe_read import NOT_TEXT, is_text, to_text
from mura_models.data.scan import Listing, check_files, summarize_excluded
from mura_models.errors import DataError

FilePath: TypeAlias = str | os.PathLike[str]
Images: TypeAlias = FilePath | Iterable[FilePath] | pd.DataFrame | DataSet


def read_images(images: Images) -> DataSet:
    """Scan images that may have no labels; see `Bundle.predict` for what `images` can be.

    Raises DataError if there is no image that can be read.
    """
    if isinstance(images, DataSet):
        return images
    if isinstance(images, pd.DataFrame):
        listing = _list_table(images)
    elif not isinstance(images, str | os.PathLike):
        listing = list_files(images)
    elif Path(images).suffix.lower() in READERS and not Path(images).is_dir():
        listing = list_files([images])
    else:
        return read_predict_input(Path(images))
    listing = check_files(listing)
    if listing.table.empty:
        raise DataError(f"no image that can be read{summarize_excluded(listing.quarantine)}")
    return DataSet(
        name="images",
        kind="folder",
        is_phantom=False,
        manifest=listing.table,
        quarantine=listing.quarantine,
        notes=listing.notes,
    )


def list_files(paths: Iterable[FilePath]) -> Listing:
    """List image files by their paths, without reading them. A file that was listed before is excluded."""
    given = [os.fspath(path) for path in paths]
    table = pd.DataFrame(
        {"path": [to_text(path) for path in given], "file": [to_text(os.path.abspath(path)) for path in given]},  # noqa: PTH100
        dtype="str",
    )
    is_text_N = [is_text(path) for path in given]
    return Listing(table=table).exclude(
        np.select([~np.array(is_text_N, bool), table["file"].duplicated()], [NOT_TEXT, "duplicate row"], "")
    )


def _list_table(table: pd.DataFrame) -> Listing:
    """List the rows of a table as those of a CSV in the working directory; a column `file` overrides `path`."""
    cells = table.reset_index(drop=True)
    flags = cells.select_dtypes("bool").columns
    cells = cells.astype(dict.fromkeys(flags, "int8"))
    rows = cells.astype("str").where(cells.notna(), "").astype("str")
    if "path" not in rows:
        raise DataError(f"the table has no column path (found: {', '.join(map(str, table.columns))})")
    return type_for_prediction(Listing(table=rows), Path())
