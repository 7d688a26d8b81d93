"""One trial on one worker: a training of `mura_models`, one epoch per step, and its checkpoints."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune

from mura_models.errors import StorageError
from mura_models.networks.backbones import Backbone
from mura_models.training.finetune import FinetuneTraining
from mura_models.training.loop import Epoch, Training, TrialSettings
from mura_models.training.probe import ProbeTraining
from mura_models.training.search_data import SearchData
from orchestrator.run.names import TrialId

KEEP_EVERY_S = 10.0
"""A trial that dies loses at most about this much work (chosen by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training to run: a planned trial, its audit or a replicate of it."""

    id: TrialId
    settings: TrialSettings
    keep_epochs: frozenset[int] = frozenset()
    """Epochs at which the bracket may stop it: its checkpoint is written before they are compared."""
    starts_from: TrialId | None = None
    """The trial whose checkpoint it resumes if it has none of its own."""

    @property
    def search(self) -> str:
        """The name of its search."""
        return str(self.id.search)

    @property
    def name(self) -> str:
        """The name of the training in every file."""
        return str(self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochResult:
    """What a worker reports of one epoch: one opaque value in Tune's result, which Tune would otherwise flatten."""

    epoch: int
    metrics: Mapping[str, float]
    failure: str | None = None
    """Why the trial ends as failed, if it does."""
    note: str | None = None
    worker: Mapping[str, Any] | None = None
    """Where the epoch was trained."""
    storage_error: StorageError | None = None
    """The disk did not return or take the checkpoint: the run ends, and the same command continues."""


EPOCH_RESULT = "epoch_result"
"""The key of the EpochResult in Tune's result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageInputs:
    """The large part of what the trials of a stage need: in Ray's object store once, and once on each node."""

    data: Mapping[str, SearchData]
    """By the name of the search; all share one array of embeddings, and one of images."""
    backbone: Backbone | None = None
    """What whole networks start from; None if heads are trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialInputs:
    """What the trials of one search, audit or replicate need."""

    jobs: Mapping[str, Job]
    """By the name of the training."""
    store: Any
    """The checkpoint store, an actor; it also holds the reference to the StageInputs."""


def make_training(job: Job, stage: StageInputs, *, num_cpus: float, num_gpus: float) -> Training:
    """Make a job's training in this process, on its share of the machine."""
    torch.set_num_threads(max(1, int(num_cpus)))
    device = "cuda" if torch.cuda.is_available() and num_gpus else "cpu"
    data = stage.data[job.search]
    if job.settings.finetune is None:
        return ProbeTraining(data, job.settings, device=device)
    assert stage.backbone is not None
    return FinetuneTraining(data, job.settings, stage.backbone.module, device=device)


class TunedTrial(tune.Trainable):  # type: ignore[misc]
    """Tune's view of a trial: `config` names it (`trial`: search and plan id) and its share; the plan has the rest."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the trial's share of CPUs and GPUs."""
        share = {"CPU": config["num_cpus"], "GPU": config["num_gpus"]}
        return tune.PlacementGroupFactory([{name: amount for name, amount in share.items() if amount}])

    def setup(self, config: dict[str, Any], inputs: TrialInputs) -> None:
        """Start the trial, or resume it from its last checkpoint."""
        self.inputs = inputs
        (reference,) = ray.get(inputs.store.get_inputs.remote())  # raises in a store just restarted: Tune retries
        self.stage: StageInputs = ray.get(reference)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Run the next trial in the same process: starting one costs ten times a small trial."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.job = self.inputs.jobs[config["trial"]["trial"]]
        self.training = make_training(self.job, self.stage, num_cpus=config["num_cpus"], num_gpus=config["num_gpus"])
        self.kept_at = time.monotonic()
        self.replay: list[dict[str, Any]] = []
        self.note: str | None = None
        self.storage_error: StorageError | None = None
        starts_from = str(self.job.starts_from or "")
        try:
            checkpoint, self.note = ray.get(self.inputs.store.load.remote(self.job.name, starts_from))
        except StorageError as error:
            self.storage_error = _get_cause(error)
            return
        if checkpoint is not None:
            self.training.restore(checkpoint)
            self.replay = list(self.training.history)

    def step(self) -> dict[str, Any]:
        """Train one epoch; epochs that the checkpoint already has are reported again, not trained again.

        If the disk does not return or take the checkpoint, the trial ends; the next command resumes it.
        """
        if self.storage_error:
            return self._report(Epoch(epoch=0, metrics={}, is_last=True))
        if self.replay:
            return self._report(Epoch(**self.replay.pop(0)))
        epoch = self.training.train_epoch()
        if self._is_to_keep(epoch):
            try:
                ray.get(self.inputs.store.keep.remote(self.job.name, self.training.save()))
            except StorageError as error:
                self.storage_error = _get_cause(error)
                return self._report(epoch)
            self.kept_at = time.monotonic()
        note, self.note = self.note, None
        return self._report(epoch, note=note)

    def _is_to_keep(self, epoch: Epoch) -> bool:
        is_due = time.monotonic() - self.kept_at > KEEP_EVERY_S
        return epoch.is_last or epoch.epoch in self.job.keep_epochs or is_due

    def _report(self, epoch: Epoch, *, note: str | None = None) -> dict[str, Any]:
        worker = {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "device": self.training.device.type,
            "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        result = EpochResult(
            epoch=epoch.epoch,
            metrics=epoch.metrics,
            failure=epoch.failure,
            note=epoch.note or note,
            worker=worker,
            storage_error=self.storage_error,
        )
        return {EPOCH_RESULT: result, "done": epoch.is_last or self.storage_error is not None}


def _get_cause(error: StorageError) -> StorageError:
    """Return the checkpoint store's own error, without the traceback that Ray adds on its way."""
    cause: StorageError = getattr(error, "cause", error)
    return cause


class ProbeTrial(TunedTrial):
    """A trial of heads on embeddings, as the dashboard names it."""


class FinetuneTrial(TunedTrial):
    """A trial of a whole network on images."""
