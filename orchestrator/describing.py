"""The parts of report.json that say what went in: ingest, data and training."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from mura_models.data.manifest import DataSet, study_codes
from mura_models.data.scan import count_reasons
from mura_models.errors import ConfigError
from mura_models.runtimes import RuntimeChoice
from orchestrator.ingest import Ingested
from orchestrator.rundir import Journal, RunDir, read_json, write_json
from orchestrator.stages import Trained
from orchestrator.work import Work


def record_ingest(ingested: Ingested, rundir: RunDir) -> None:
    """Write ingest.json; a continued run adds to what its first start had decoded and embedded."""
    before = read_json(rundir.ingest) if rundir.ingest.exists() else {}
    content = {
        "images_decoded": ingested.num_decoded + before.get("images_decoded", 0),
        "images_embedded": ingested.num_embedded + before.get("images_embedded", 0),
        "backbone": ingested.backbone.name,
        "weights": ingested.backbone.weights_source,
        "runtime": asdict(ingested.choice),
    }
    write_json(rundir.ingest, content)


def read_runtime(rundir: RunDir) -> RuntimeChoice | None:
    """Say what made the embeddings that trials of this run may have been given; None where none were planned yet."""
    if not rundir.plan.exists() or not rundir.ingest.exists():
        return None
    try:
        return RuntimeChoice(**read_json(rundir.ingest)["runtime"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{rundir.ingest}: not written by this program; give another --run-dir, or --fresh"
        ) from error


def describe_data(dataset: DataSet, manifest: pd.DataFrame, quarantine: pd.DataFrame) -> dict[str, Any]:
    """Count images, studies and patients by split, bone and label, and what was left out and why."""
    counts = {}
    for split, part in manifest.groupby("split"):
        counts[split] = count_rows(part) | {
            "by_bone": {bone: count_rows(rows) for bone, rows in part.groupby("bone")},
        }
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "is_phantom": dataset.is_phantom,
        "notes": list(dataset.notes),
        "splits": counts,
        "corrections": asdict(dataset.corrections) if dataset.corrections else None,
        "quarantined": {
            "total": len(quarantine),
            "by_reason": count_reasons(quarantine),
        },
    }


def count_rows(part: pd.DataFrame) -> dict[str, int]:
    """Count the images, studies and patients of some rows, by label."""
    studies = part.assign(code=study_codes(part)).drop_duplicates("code")
    return {
        "images": len(part),
        "images_abnormal": int(part["label"].sum()),
        "studies": len(studies),
        "studies_abnormal": int(studies["label"].sum()),
        "patients": int(part["patient"].nunique()),
    }


def describe_training(work: Work, journal: Journal, trained: Trained) -> dict[str, Any]:
    """Say what was searched: trials by search and state, epochs run, bones without a specialist and why."""
    plan, ends = work.plan, journal.final_states()
    searches = {}
    for search in plan.searches:
        trials = plan.of_search(search)
        mine = [ends[trial.trial] for trial in trials if trial.trial in ends]  # none where its stage never ran
        states = pd.Series([line["state"] for line in mine]).value_counts()
        searches[search] = {
            "trials": len(mine),
            "epochs": sum(line["epoch"] for line in mine),
            "max_epochs": trials[0].num_epochs,
            "updates_per_epoch": trials[0].updates_per_epoch,
            "states": {state: int(n) for state, n in states.items()},
        }
    return {
        "searches": searches,
        "failed_searches": trained.failed,
        "bones_without_specialist": plan.untrainable,
        "files_not_decoded": len(work.ingested.failures),
        "audit": {"asked": work.config.num_audited, "trials": trained.audit} if work.config.early_stopping else None,
        "refits": trained.refits,
    }
