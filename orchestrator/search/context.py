"""What every step after the ingest works with, gathered once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mura_models.data.dataset import DataSet
from mura_models.data.preprocessing import VIEWS
from mura_models.inference.assembly import FROZEN
from mura_models.networks.backbones import Backbone
from orchestrator.cluster.resources import TrialResources
from orchestrator.ingest.decode import Ingested
from orchestrator.ingest.embed import embed_all
from orchestrator.progress import Monitor
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.search.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A run under way: its settings, its data and where it lies."""

    config: RunConfig
    dataset: DataSet
    manifest: pd.DataFrame
    """The rows that are used, with their folds."""
    plan: Plan
    ingested: Ingested
    rundir: RunDir
    share: TrialResources
    monitor: Monitor

    @cached_property
    def backbones(self) -> dict[str, Backbone]:
        """Backbones by key: the frozen one, and each that was trained here and is shipped; grows with the stages."""
        return {FROZEN: self.ingested.backbone}

    @cached_property
    def train(self) -> pd.DataFrame:
        """The train rows of the manifest, in the order that every search counts them by."""
        return self.manifest[self.manifest["split"] == "train"].reset_index(drop=True)

    @cached_property
    def bones(self) -> list[str]:
        """The bones of train, sorted."""
        return sorted(set(self.train["bone"]))

    def embed(self, backbone: str, rows: pd.DataFrame, *, all_views: bool = False) -> np.ndarray:
        """Return the embeddings [len(rows), V, D] of these images by the backbone of this key; V is 1 by default."""
        views = VIEWS if all_views else VIEWS[:1]
        if backbone == FROZEN:
            array = self.ingested.embeddings
        else:
            array, _, _ = embed_all(
                self.ingested.images,
                list(rows["digest"]),
                self.config.preprocessing,
                self.backbones[backbone],
                self.ingested.choice,
                views=views,
                cache=self.rundir.embeddings,
                on_progress=self.monitor.on_progress,
            )
        return np.ascontiguousarray(array.array[array.find_rows(rows["digest"])][:, : len(views)])
