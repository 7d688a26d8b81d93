"""The data of a command: --data, else $MURA_DATA, else ./MURA-v1.1, else the phantom, which is logged."""

import os
from pathlib import Path

from mura_models.data.cache import cache_root
from mura_models.data.dataset import DataSet, read_dataset
from mura_models.errors import DataError
from mura_models.phantom import write_phantom
from orchestrator.progress import Progress

PHANTOM_SCALE = 0.05
PHANTOM_SEED = 0


def open_dataset(asked: Path | None, progress: Progress, corrections: Path | None = None) -> DataSet:
    """Scan the data of a command and correct its labels. Raises DataError if it cannot be used."""
    path = asked or find_mura() or make_phantom(progress)
    dataset = read_dataset(
        path,
        corrections=corrections,
        on_progress=lambda done, total: progress.on_progress("scan", done, total),
    )
    for note in dataset.notes:
        progress.log(f"note: {note}")
    if (made := dataset.corrections) is not None:
        progress.log(
            f"note: labels corrected by {made.file}: {made.images_changed} images changed, "
            f"{made.images_unchanged} were labeled so already"
        )
    if len(dataset.quarantine):
        progress.log(
            f"{len(dataset.quarantine)} files are excluded: quarantine.csv in the run directory lists the reasons"
        )
    return dataset


def find_mura() -> Path | None:
    """Return MURA's folder: $MURA_DATA, else MURA-v1.1 in the working directory; None if there is none."""
    named = os.environ.get("MURA_DATA")
    if named:
        if not os.path.exists(named):  # noqa: PTH110, a Path raises for a name that is too long
            raise DataError(f"MURA_DATA={named}: no such file or folder; correct the variable, or use --data")
        return Path(named)
    here = Path("MURA-v1.1")
    return here if here.is_dir() else None


def make_phantom(progress: Progress) -> Path:
    """Generate the phantom in the cache, once, and return its folder."""
    progress.log("NO DATA GIVEN: using the phantom, synthetic radiographs. Its results do not apply to patients.")
    progress.log("For real images use --data PATH, $MURA_DATA or a folder MURA-v1.1 here.")
    root = cache_root() / f"phantom-{PHANTOM_SCALE:g}-{PHANTOM_SEED}"
    return write_phantom(
        root,
        scale=PHANTOM_SCALE,
        seed=PHANTOM_SEED,
        on_progress=lambda done, total: progress.on_progress("phantom", done, total),
        on_wait=lambda: progress.log("another run is making the phantom: waiting for it"),
    )
