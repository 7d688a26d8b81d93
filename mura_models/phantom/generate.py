"""Writes the phantom: the studies in worker processes, then the tables."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import PIL

from mura_models.data.mura_counts import MURA_COUNTS, Split
from mura_models.errors import ConfigError, SettingError
from mura_models.phantom.counts import PlannedStudy, plan_studies
from mura_models.phantom.study import write_study
from mura_models.storage import UNFINISHED, hold_lock

VERSION = 1  # raise it when the same seed gives other images
FINDINGS = ("fracture", "hardware", "lesion", "joint")


def write_phantom(
    root: str | os.PathLike[str],
    *,
    scale: float = 0.05,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Path:
    """Write a synthetic MURA tree and return its path, `root/MURA-v1.1`.

    scale: share of MURA's 40,005 images, above 0 and at most 1; at least 15 test studies per bone and label are kept.
    workers: processes; None = one per core, 1 = only this one. The files are the same for any number.
    on_progress: called after each study with the number of images written and of all images.
    on_wait: called before waiting for another process that is writing there.

    Also writes `root/masks` (255 where a finding shows, else 0, at the path of its image) and `root/phantom.json`.
    A `root` of the same scale, seed and version is kept; a phantom of others is replaced.

    Raises ConfigError for a scale out of range, or a `root` that contains other files than a phantom.
    """
    if not 0 < scale <= 1:
        raise SettingError("scale", scale, "must be above 0 and at most 1; 0.05 is the default")
    if seed < 0:
        raise SettingError("seed", seed, "must not be negative")
    root = Path(root).absolute()
    identity: dict[str, object] = {"version": VERSION, "scale": scale, "seed": seed, "pillow": PIL.__version__}
    if _is_written(root, identity):
        return root / "MURA-v1.1"
    with _lock_root(root, on_wait) as is_alone:
        if _is_written(root, identity):  # by the run that this one waited for
            return root / "MURA-v1.1"
        studies = plan_studies(scale, seed)
        with _replacing(root, is_alone=is_alone) as unfinished:
            kinds = _write_studies(unfinished, studies, seed, workers, on_progress)
            _write_tables(unfinished / "MURA-v1.1", studies)
            (unfinished / "phantom.json").write_text(json.dumps(identity | _count(studies, kinds), indent=2) + "\n")
    return root / "MURA-v1.1"


@contextmanager
def _lock_root(root: Path, on_wait: Callable[[], None] | None) -> Iterator[bool]:
    """Make other runs that write this phantom wait; yield whether they do: not if the disk has no locks."""
    with ExitStack() as stack:
        try:
            if not root.parent.exists():  # if it is a file, the lock gives the better reason
                root.parent.mkdir(parents=True, exist_ok=True)
            is_alone = stack.enter_context(hold_lock(root.with_name(f".{root.name}.lock"), on_wait=on_wait))
        except OSError as error:
            raise ConfigError(f"phantom folder {root} cannot be made ({error.strerror}): name another") from None
        yield is_alone


@contextmanager
def _replacing(root: Path, *, is_alone: bool) -> Iterator[Path]:
    """Yield a folder next to `root` to fill; it replaces `root` if the block succeeds, else it is removed."""
    own = "" if is_alone else f".{os.getpid()}"
    unfinished = root.with_name(f".{root.name}{own}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a generator that was killed
    try:
        unfinished.mkdir()
        yield unfinished
        shutil.rmtree(root, ignore_errors=True)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_written(root: Path, identity: dict[str, object]) -> bool:
    """Return whether the same phantom is there already. Raises ConfigError if other files would be replaced."""
    if not os.path.lexists(root):
        return False
    names = {path.name for path in root.iterdir()} if root.is_dir() else {""}
    if not names:
        return False
    if "phantom.json" not in names or names - {"MURA-v1.1", "masks", "phantom.json"}:
        raise ConfigError(f"phantom folder {root} holds other files: name a new or an empty folder")
    try:
        found = json.loads((root / "phantom.json").read_text())
    except ValueError:
        raise ConfigError(f"phantom folder {root}: its phantom.json is damaged; name another folder") from None
    return {key: found.get(key) for key in identity} == identity


def _write_studies(
    root: Path,
    studies: list[PlannedStudy],
    seed: int,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Draw all studies and return how many show each kind of finding."""
    kinds = dict.fromkeys(FINDINGS, 0)
    done, total = 0, sum(study.num_projections for study in studies)
    drawn = _map_studies(partial(write_study, root, seed), studies, workers)
    for study, kind in zip(studies, drawn, strict=True):
        if kind is not None:
            kinds[kind] += 1
        done += study.num_projections
        if on_progress is not None:
            on_progress(done, total)
    return kinds


def _map_studies(
    draw: Callable[[PlannedStudy], str | None], studies: list[PlannedStudy], workers: int | None
) -> Iterator[str | None]:
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(draw, studies)
        return
    # Spawned, not forked: the caller may hold threads and a GPU.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, studies, chunksize=4)


def _write_tables(tree: Path, studies: list[PlannedStudy]) -> None:
    """Write MURA's four CSVs."""
    for split in MURA_COUNTS:
        folders = [(f"MURA-v1.1/{study.folder}/", study) for study in studies if study.split == split]
        labels = "".join(f"{folder},{study.label}\n" for folder, study in folders)
        paths = "".join(
            f"{folder}image{n + 1}.png\n" for folder, study in folders for n in range(study.num_projections)
        )
        (tree / f"{split}_labeled_studies.csv").write_text(labels)
        (tree / f"{split}_image_paths.csv").write_text(paths)


def _count(studies: list[PlannedStudy], kinds: dict[str, int]) -> dict[str, object]:
    """Count studies, images and findings for `phantom.json`."""

    def count(split: Split) -> dict[str, int]:
        chosen = [study for study in studies if study.split == split]
        return {
            "patients": len({study.patient for study in chosen}),
            "studies": len(chosen),
            "images": sum(study.num_projections for study in chosen),
        }

    return {"synthetic": True, "train": count("train"), "valid": count("valid"), "findings": kinds}
