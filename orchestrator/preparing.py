"""Between ingest and search: which rows are left, their folds, and the rows of each search."""

import numpy as np
import pandas as pd
import pyarrow

from mura_models.data.folds import assign_folds
from mura_models.data.manifest import DataSet, patient_codes, study_codes
from mura_models.errors import ConfigError, DataError
from mura_models.search_data import SearchData
from orchestrator.config import RunConfig
from orchestrator.ingest import Ingested
from orchestrator.plan import Plan, holds_out_one_fold
from orchestrator.rundir import RunDir, write_table
from orchestrator.targets import ROUTER, find_bone
from orchestrator.work import Work


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
    """Give the fold of every row."""
    return assign_folds(manifest, num_folds=config.num_folds, seed=config.seed)


def check_same_rows(config: RunConfig, manifest: pd.DataFrame, rundir: RunDir) -> None:
    """Raise ConfigError where the run was begun with other films, another order of them or other folds.

    Trials know rows by their place. Where the films lie does not count.
    """
    if not rundir.manifest.exists():
        return
    try:
        there = pd.read_parquet(rundir.manifest, columns=["digest", "fold"])
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{rundir.manifest}: damaged ({error}); --fresh starts anew beside it") from error
    same_films = list(there["digest"]) == list(manifest["digest"])
    if not same_films or not np.array_equal(there["fold"], cut_folds(config, manifest)):
        raise ConfigError(
            f"{rundir.manifest}: its rows or folds are not those of this command, by another order of the rows or "
            "another version of this program; --fresh starts anew beside it"
        )


def gather_data(work: Work, plan: Plan, base: str) -> dict[str, SearchData]:
    """Give each search its rows of the train embeddings, by the backbone of this key, and of the films."""
    train = work.train
    features_NOD = work.embed(base, train, all_outcomes=True)
    films = work.ingested.films
    has_networks = any(trial.recipe == "finetune" for trial in plan.trials)
    films_NHW = films.rows[films.find(train["digest"])] if has_networks else None
    bones = train["bone"].to_numpy(dtype=str)
    columns = {
        "folds": train["fold"].to_numpy(np.int64),
        "studies": study_codes(train),
        "patients": patient_codes(train),
        "bones": bones,
    }
    data = {}
    for name in plan.searches:
        target, recipe = name.rsplit("/", 1)
        bone = find_bone(target)
        rows = np.arange(len(train)) if bone is None else np.flatnonzero(bones == bone)
        is_router = target == ROUTER
        labels = np.searchsorted(work.bones, bones) if is_router else train["label"].to_numpy(np.int64)
        data[name] = SearchData(
            features_NOD=features_NOD,
            films_NHW=films_NHW,
            rows=rows,
            labels=labels[rows],
            held_out=(0,) if holds_out_one_fold(work.config, recipe) else tuple(range(work.config.num_folds)),
            bone_classes=tuple(work.bones) if is_router else None,
            **{column: values[rows] for column, values in columns.items()},
        )
    return data
