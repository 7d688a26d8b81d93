"""Between ingest and search: the rows that are left, and their folds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow

from mura_models.data.dataset import DataSet
from mura_models.data.folds import assign_folds
from mura_models.errors import ConfigError, DataError
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import write_table


def finish_manifest(
    config: RunConfig, dataset: DataSet, failures: Mapping[str, str], rundir: RunDir
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Exclude what could not be decoded and cut folds over the rest; write and return manifest and quarantine.

    failures: digest of a file -> why it could not be decoded. Raises DataError if nothing is left of a split,
    ConfigError if the run was begun with other images, another order of them or other folds.
    """
    manifest = dataset.manifest
    reasons = manifest["digest"].map(failures)
    left = manifest[reasons.isna()]
    trained = set(left.loc[left["split"] == "train", "bone"])
    reasons = reasons.mask(reasons.isna() & ~manifest["bone"].isin(trained), "bone not in train")
    failed = pd.DataFrame({"path": manifest["path"], "reason": reasons})[reasons.notna()]
    quarantine = pd.concat([dataset.quarantine, failed], ignore_index=True)
    manifest = manifest[reasons.isna()].reset_index(drop=True)
    before = read_begun(rundir)
    if before is not None and list(before["digest"]) != list(manifest["digest"]):
        raise _other_rows(rundir)
    write_table(rundir.quarantine, quarantine)
    for split in ("train", "test"):
        if not (manifest["split"] == split).any():
            raise DataError(f"no usable {split} image is left: {rundir.quarantine} lists the reasons")
    manifest = manifest.assign(fold=assign_folds(manifest, num_folds=config.num_folds, seed=config.seed))
    if before is not None and not np.array_equal(before["fold"], manifest["fold"]):
        raise _other_rows(rundir)
    write_table(rundir.manifest, manifest)
    return manifest, quarantine


def read_begun(rundir: RunDir) -> pd.DataFrame | None:
    """Return digest and fold of the rows on which trials may have been trained already, if there are any.

    Trials know rows by their position; where the images are stored does not matter.
    """
    if not rundir.plan.exists() or not rundir.manifest.exists():
        return None
    try:
        return pd.read_parquet(rundir.manifest, columns=["digest", "fold"])
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{rundir.manifest}: damaged ({error}); start a new run with --fresh") from error


def _other_rows(rundir: RunDir) -> ConfigError:
    return ConfigError(
        f"{rundir.manifest}: its rows or folds are not those of this command (reordered data, or another version of "
        "this program); start a new run with --fresh"
    )
