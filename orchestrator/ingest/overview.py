"""The overview of the data before anything is trained: exploration.json and sample images."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from mura_models.data.cache import CachedArray
from mura_models.data.dataset import DataSet, study_codes
from mura_models.data.scan import count_reasons
from mura_models.data.statistics import Exploration, explore
from mura_models.storage import atomic_directory
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import write_json
from orchestrator.run.report_schema import SCHEMA, Corrections, DataCounts, DataSummary, Quarantined, SplitCounts


def explore_data(
    config: RunConfig, data: DataSummary, manifest: pd.DataFrame, images: CachedArray, rundir: RunDir
) -> None:
    """Write exploration.json and its images, unless they exist."""
    if not rundir.exploration.exists():
        exploration = explore(manifest, images, config.preprocessing, seed=config.seed)
        with atomic_directory(rundir.samples) as partial:
            for number, sample in enumerate(exploration.samples):
                (partial / sample_file_name(number)).write_bytes(sample.png)
        write_json(rundir.exploration, {"schema": SCHEMA, "data": asdict(data)} | exploration_to_json(exploration))


def exploration_to_json(exploration: Exploration) -> dict[str, Any]:
    """Return an exploration as JSON; a sample names the file of its image."""
    plain = asdict(exploration)
    for number, sample in enumerate(plain["samples"]):
        del sample["png"]
        sample["file"] = sample_file_name(number)
    return plain


def sample_file_name(number: int) -> str:
    """Return the file name of a sample image: it holds nothing of patient or path."""
    return f"{number:03d}.png"


def summarize_data(dataset: DataSet, manifest: pd.DataFrame, quarantine: pd.DataFrame) -> DataSummary:
    """Count images, studies and patients by split, bone and label, and the excluded files by reason."""
    return DataSummary(
        name=dataset.name,
        kind=dataset.kind,
        is_phantom=dataset.is_phantom,
        notes=dataset.notes,
        splits={
            str(split): SplitCounts(
                **count_rows(part),
                by_bone={str(bone): DataCounts(**count_rows(rows)) for bone, rows in part.groupby("bone")},
            )
            for split, part in manifest.groupby("split")
        },
        corrections=Corrections(**asdict(dataset.corrections)) if dataset.corrections else None,
        quarantined=Quarantined(total=len(quarantine), by_reason=count_reasons(quarantine)),
    )


def count_rows(part: pd.DataFrame) -> dict[str, int]:
    """Return the fields of DataCounts: the images, studies and patients of some rows, by label."""
    studies = part.assign(code=study_codes(part)).drop_duplicates("code")
    return {
        "num_images": len(part),
        "num_images_abnormal": int(part["label"].sum()),
        "num_studies": len(studies),
        "num_studies_abnormal": int(studies["label"].sum()),
        "num_patients": int(part["patient"].nunique()),
    }
