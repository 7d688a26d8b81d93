"""One trial on one worker: the training of `mura_models`, an epoch a step, its checkpoints and its last words."""

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

KEEP_EVERY_S = 10.0
"""A trial that dies loses at most about this much work (chosen by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training to do, under a name of its own."""

    search: str
    trial: str
    settings: TrialSettings
    starts_from: str = ""
    """The trial whose checkpoint it takes up where it has none of its own."""
    keep_epochs: frozenset[int] = frozenset()
    """Epochs at which the bracket may stop it: its checkpoint is kept before it is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageInputs:
    """The large part of what the trials of a stage need: in Ray's object store once, and once on each node."""

    data: Mapping[str, SearchData]
    """By search; all share one array of embeddings, and one of images."""
    backbone: Backbone | None = None
    """Where whole networks are trained: what they start from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialInputs:
    """What the trials of one search, audit or replicate need."""

    jobs: Mapping[str, Job]
    """By trial."""
    store: Any
    """The actor that keeps checkpoints, and has the reference to the StageInputs."""


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
        """Ask for the trial's share of CPUs and GPUs."""
        share = {"CPU": config["num_cpus"], "GPU": config["num_gpus"]}
        return tune.PlacementGroupFactory([{name: amount for name, amount in share.items() if amount}])

    def setup(self, config: dict[str, Any], inputs: TrialInputs) -> None:
        """Start the trial, or take it up at its last checkpoint."""
        self.inputs = inputs
        (reference,) = ray.get(
            inputs.store.find_inputs.remote()
        )  # none in a checkpoint store just restarted: tried again
        self.stage: StageInputs = ray.get(reference)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve the next trial in the same process: starting one costs ten times a small trial."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.job = self.inputs.jobs[config["trial"]["trial"]]
        self.training = make_training(self.job, self.stage, num_cpus=config["num_cpus"], num_gpus=config["num_gpus"])
        self.kept_at = time.monotonic()
        self.replay: list[dict[str, Any]] = []
        self.storage_error: str | None = None
        try:
            checkpoint, self.note = ray.get(self.inputs.store.load.remote(self.job.trial, self.job.starts_from))
        except StorageError as error:
            self.storage_error = _tell_cause(error)
            return
        if checkpoint is not None:
            self.training.restore(checkpoint)
            self.replay = list(self.training.history)

    def step(self) -> dict[str, Any]:
        """Run one epoch; epochs that the checkpoint already has are told again, not run again.

        Where the disk does not give or take the checkpoint, the trial ends there, to go on with the next command.
        """
        if self.storage_error:
            return {"epoch": 0, "metrics": {}, "done": True, "storage_error": self.storage_error}
        if self.replay:
            return self._tell(Epoch(**self.replay.pop(0)))
        epoch = self.training.train_epoch()
        if self._is_to_keep(epoch):
            try:
                ray.get(self.inputs.store.keep.remote(self.job.trial, self.training.save()))
            except StorageError as error:
                return self._tell(epoch) | {"done": True, "storage_error": _tell_cause(error)}
            self.kept_at = time.monotonic()
        note, self.note = self.note, None
        return self._tell(epoch, note=note)

    def _is_to_keep(self, epoch: Epoch) -> bool:
        is_due = time.monotonic() - self.kept_at > KEEP_EVERY_S
        return epoch.is_last or epoch.epoch in self.job.keep_epochs or is_due

    def _tell(self, epoch: Epoch, *, note: str | None = None) -> dict[str, Any]:
        worker = {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "device": self.training.device.type,
            "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        return {
            "epoch": epoch.epoch,
            "metrics": epoch.metrics,
            "failure": epoch.failure,
            "note": epoch.note or note,
            "done": epoch.is_last,
            "worker": worker,
        }


def _tell_cause(error: StorageError) -> str:
    """Return the line of the checkpoint store's own error, without the traceback that Ray adds on its way."""
    return str(getattr(error, "cause", error))


class ProbeTrial(TunedTrial):
    """A trial of heads on embeddings, as the dashboard names it."""


class FinetuneTrial(TunedTrial):
    """A trial of a whole network on images."""
