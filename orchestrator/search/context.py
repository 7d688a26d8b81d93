"""What the stages work with: the train rows, the embeddings of the images, and what the trainings of a stage share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import ray

from mura_models.data.cache import CachedArray
from mura_models.data.dataset import patient_codes, study_codes
from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.inference.assembly import FROZEN
from mura_models.inference.embed import OnProgress
from mura_models.networks.backbones import Backbone
from mura_models.training.search_data import SearchData
from orchestrator.cluster.resources import TrialResources
from orchestrator.ingest.decode import Ingested
from orchestrator.ingest.embed import embed_all
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.journal import JournalLine, JournalWriter
from orchestrator.run.names import SearchId
from orchestrator.search.plan import StagePlan, holds_out_one_fold

STORE_TIMEOUT_S = 120.0
"""How long the checkpoint store may take to answer, its process restarted by Ray if need be (chosen by us)."""

Purpose = Literal["search", "audit", "replicate"]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class TrainData:
    """The train rows of the manifest, in the order by which every search counts them, and their bones, sorted."""

    rows: pd.DataFrame
    bones: tuple[str, ...]

    @classmethod
    def of(cls, manifest: pd.DataFrame) -> "TrainData":
        """Return the train rows of a manifest that has folds."""
        rows = manifest[manifest["split"] == "train"].reset_index(drop=True)
        return cls(rows=rows, bones=tuple(sorted(set(rows["bone"]))))


class EmbeddingStore:
    """The decoded images, and their embeddings by the frozen backbone and by each that was added under a key."""

    def __init__(
        self, ingested: Ingested, preprocessing: Preprocessing, *, cache: Path, on_progress: OnProgress
    ) -> None:
        self.images: CachedArray = ingested.images
        self.backbones: dict[str, Backbone] = {FROZEN: ingested.backbone}
        self._ingested = ingested
        self._preprocessing = preprocessing
        self._cache = cache
        self._on_progress = on_progress

    def add(self, key: str, backbone: Backbone) -> None:
        """Add a backbone that was trained in this run."""
        self.backbones[key] = backbone

    def embed(self, backbone: str, rows: pd.DataFrame, *, all_views: bool = False) -> np.ndarray:
        """Return the embeddings [len(rows), V, D] of these images; V is 1, the plain view, unless all are asked for."""
        views = VIEWS if all_views else VIEWS[:1]
        if backbone == FROZEN:
            array = self._ingested.embeddings
        else:
            array, _, _ = embed_all(
                self.images,
                list(rows["digest"]),
                self._preprocessing,
                self.backbones[backbone],
                self._ingested.choice,
                views=views,
                cache=self._cache,
                on_progress=self._on_progress,
            )
        return np.ascontiguousarray(array.array[array.find_rows(rows["digest"])][:, : len(views)])


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What the trainings of one stage share: those of its searches, of their audit and of the replicates."""

    config: RunConfig
    plan: StagePlan
    rundir: RunDir
    journals: Mapping[Purpose, JournalWriter]
    store: Any
    """The checkpoint store, an actor; it also holds the reference to the stage's inputs."""
    inputs: Any
    """That reference."""
    resources: TrialResources
    on_line: Callable[[Purpose, JournalLine], None]
    """Called with every line that is written to a journal."""
    log: Callable[[str], None]
    """Writes one line for the user."""

    def set_inputs(self) -> None:
        """Set the stage's inputs in the checkpoint store: at the start, and after its process was restarted."""
        ray.get(self.store.set_inputs.remote([self.inputs]), timeout=STORE_TIMEOUT_S)


def open_journals(rundir: RunDir) -> dict[Purpose, JournalWriter]:
    """Open the journals of a run, once, under its lock."""
    return {
        "search": JournalWriter(rundir.journal),
        "audit": JournalWriter(rundir.audit_journal),
        "replicate": JournalWriter(rundir.replicate_journal),
    }


def gather_data(
    config: RunConfig, stage: StagePlan, train: TrainData, embeddings: EmbeddingStore
) -> dict[str, SearchData]:
    """Return the rows of each search of a stage, by its name, over one array of embeddings and one of images."""
    rows = train.rows
    features_NVD = embeddings.embed(stage.base_backbone, rows, all_views=True)
    images_NHW = None
    if stage.kind == "network":
        images_NHW = embeddings.images.array[embeddings.images.find_rows(rows["digest"])]
    bones = rows["bone"].to_numpy(dtype=str)
    columns = {
        "folds": rows["fold"].to_numpy(np.int64),
        "studies": study_codes(rows),
        "patients": patient_codes(rows),
        "bones": bones,
    }
    data = {}
    for name in stage.searches:
        search = SearchId.parse(name)
        places = np.arange(len(rows)) if search.bone is None else np.flatnonzero(bones == search.bone)
        labels = np.searchsorted(train.bones, bones) if search.is_router else rows["label"].to_numpy(np.int64)
        data[name] = SearchData(
            features_NVD=features_NVD,
            images_NHW=images_NHW,
            rows=places,
            labels=labels[places],
            held_out=(0,) if holds_out_one_fold(config, search.recipe) else tuple(range(config.num_folds)),
            bone_classes=train.bones if search.is_router else None,
            **{column: values[places] for column, values in columns.items()},
        )
    return data
