"""Between ingest and search: which rows are left, their folds, and the rows of each search."""

import numpy as np
import pandas as pd
import pyarrow

from mura_models.data.dataset import DataSet
from mura_models.data.folds import assign_folds
from mura_models.errors import ConfigError, DataError
from orchestrator.ingest.decode import Ingested
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import write_table


def finish_manifest(config: RunConfig, dataset: DataSet, ingested: Ingested, rundir: RunDir) -> pd.DataFrame:
    """Leave out what could not be decoded, cut folds over the rest, write both down.

    Raises DataError where nothing is left.
    """
    manifest = dataset.manifest
    reasons = manifest["digest"].map(ingested.failures)
    left = manifest[reasons.isna()]
    trained = set(left.loc[left["split"] == "train", "bone"])
    reasons = reasons.mask(reasons.isna() & ~manifest["bone"].isin(trained), "bone not in train")
    failed = pd.DataFrame({"path": manifest["path"], "reason": reasons})[reasons.notna()]
    quarantine = pd.concat([dataset.quarantine, failed], ignore_index=True)
    manifest = manifest[reasons.isna()].reset_index(drop=True)
    if rundir.plan.exists():  # trials may have been trained
        check_same_rows(config, manifest, rundir)
    write_table(rundir.quarantine, quarantine)
    for split in ("train", "test"):
        if not (manifest["split"] == split).any():
            raise DataError(f"no usable {split} image is left: {rundir.quarantine} says why")
    manifest = manifest.assign(fold=cut_folds(config, manifest))
    write_table(rundir.manifest, manifest)
    return manifest


def cut_folds(config: RunConfig, manifest: pd.DataFrame) -> np.ndarray:
    """Return the fold of every row."""
    return assign_folds(manifest, num_folds=config.num_folds, seed=config.seed)


def check_same_rows(config: RunConfig, manifest: pd.DataFrame, rundir: RunDir) -> None:
    """Raise ConfigError where the run was begun with other images, another order of them or other folds.

    Trials know rows by their place. Where the images lie does not count.
    """
    if not rundir.manifest.exists():
        return
    try:
        there = pd.read_parquet(rundir.manifest, columns=["digest", "fold"])
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{rundir.manifest}: damaged ({error}); --fresh starts anew beside it") from error
    same_images = list(there["digest"]) == list(manifest["digest"])
    if not same_images or not np.array_equal(there["fold"], cut_folds(config, manifest)):
        raise ConfigError(
            f"{rundir.manifest}: its rows or folds are not those of this command, by another order of the rows or "
            "another version of this program; --fresh starts anew beside it"
        )
