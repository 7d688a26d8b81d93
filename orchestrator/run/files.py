"""JSON files and tables of a run, written whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from mura_models.errors import ConfigError
from mura_models.storage import atomic_write


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises ConfigError if it is damaged or of another program."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); give another --run-dir, or --fresh") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not written by this program; give another --run-dir, or --fresh")
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all; NaN and infinity become null, as JSON has neither."""
    with atomic_write(path) as partial:
        text = json.dumps(to_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table whole or not at all, as CSV or parquet by its suffix."""
    with atomic_write(path) as partial:
        if path.suffix == ".csv":
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, index=False)


def to_plain(content: Any) -> Any:
    """Return content with numpy scalars as Python's and numbers that are not finite as None, at every depth."""
    if isinstance(content, dict):
        return {str(key): to_plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [to_plain(value) for value in content]
    if hasattr(content, "item"):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
