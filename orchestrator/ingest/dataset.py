"""Which data a command means: --data, else $MURA_DATA, else ./MURA-v1.1, else the phantom, said loudly."""

import os
from pathlib import Path

from mura_models.data.dataset import DataSet, read_dataset
from mura_models.errors import DataError
from mura_models.phantom import write_phantom
from orchestrator.progress import Monitor

PHANTOM_SCALE = 0.05
PHANTOM_SEED = 0


def cache_root() -> Path:
    """Return the folder of images, embeddings and phantoms."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mura"


def open_dataset(asked: Path | None, monitor: Monitor, corrections: Path | None = None) -> DataSet:
    """Scan the data that the command means, its labels corrected. Raises DataError where it cannot be used."""
    path = asked or find_mura() or make_phantom(monitor)
    dataset = read_dataset(
        path,
        corrections=corrections,
        on_progress=lambda done, total: monitor.on_progress("scan", done, total),
    )
    for note in dataset.notes:
        monitor.say(f"note: {note}")
    if (made := dataset.corrections) is not None:
        monitor.say(
            f"note: labels corrected by {made.file}: {made.images_changed} images changed, "
            f"{made.images_unchanged} were labelled so already"
        )
    if len(dataset.quarantine):
        monitor.say(f"{len(dataset.quarantine)} files are left out: quarantine.csv in the run directory says why")
    return dataset


def find_mura() -> Path | None:
    """Look where MURA is expected: $MURA_DATA, then the working directory."""
    named = os.environ.get("MURA_DATA")
    if named:
        if not os.path.exists(named):  # noqa: PTH110, a Path raises for a name that is too long
            raise DataError(f"MURA_DATA={named}: no such file or folder; correct the variable, or give --data")
        return Path(named)
    here = Path("MURA-v1.1")
    return here if here.is_dir() else None


def make_phantom(monitor: Monitor) -> Path:
    """Generate the phantom, once, in the cache."""
    monitor.say("NO DATA GIVEN: using the phantom, synthetic radiographs that say nothing about patients.")
    monitor.say("For real images: --data PATH, or $MURA_DATA, or a folder MURA-v1.1 here.")
    root = cache_root() / f"phantom-{PHANTOM_SCALE:g}-{PHANTOM_SEED}"
    return write_phantom(
        root,
        scale=PHANTOM_SCALE,
        seed=PHANTOM_SEED,
        on_progress=lambda done, total: monitor.on_progress("phantom", done, total),
        on_wait=lambda: monitor.say("another run is making the phantom: waiting for it"),
    )
