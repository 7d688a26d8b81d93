"""Between ingest and search: which rows are left, their folds, and the rows of each search."""

import numpy as np
import pandas as pd

from mura_models.data.folds import assign_folds
from mura_models.data.manifest import DataSet, patient_codes, study_codes
from mura_models.errors import DataError
from mura_models.training import ProbeData
from orchestrator.config import RunConfig
from orchestrator.ingest import Ingested
from orchestrator.plan import Plan
from orchestrator.rundir import RunDir, write_table


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
    write_table(rundir.quarantine, quarantine)
    manifest = manifest[reasons.isna()].reset_index(drop=True)
    for split in ("train", "test"):
        if not (manifest["split"] == split).any():
            raise DataError(f"no usable {split} image is left: {rundir.quarantine} says why")
    folds = assign_folds(manifest, num_folds=config.num_folds, seed=config.seed)
    manifest = manifest.assign(fold=folds)
    write_table(rundir.manifest, manifest)
    return manifest


def gather_data(config: RunConfig, plan: Plan, manifest: pd.DataFrame, ingested: Ingested) -> dict[str, ProbeData]:
    """Give each search its rows of the train embeddings, which all share."""
    train = manifest[manifest["split"] == "train"].reset_index(drop=True)
    features_NOD = np.ascontiguousarray(ingested.embeddings.rows[ingested.embeddings.find(train["digest"])])
    bones = train["bone"].to_numpy(dtype=str)
    classes = tuple(sorted(set(bones)))
    columns = {
        "folds": train["fold"].to_numpy(np.int64),
        "studies": study_codes(train),
        "patients": patient_codes(train),
        "bones": bones,
    }
    data = {}
    for name in plan.searches:
        target = name.rsplit("/", 1)[0]
        is_specialist = target.startswith("specialist:")
        rows = np.flatnonzero(bones == target.removeprefix("specialist:")) if is_specialist else np.arange(len(train))
        is_router = target == "router"
        labels = np.searchsorted(classes, bones) if is_router else train["label"].to_numpy(np.int64)
        data[name] = ProbeData(
            features_NOD=features_NOD,
            rows=rows,
            labels=labels[rows],
            num_folds=config.num_folds,
            bone_classes=classes if is_router else None,
            **{column: values[rows] for column, values in columns.items()},
        )
    return data
