"""What a winner ships, read from its checkpoint; where that was damaged since, trained again from the one before."""

from typing import Any

import ray

from mura_models.checkpoints import Checkpoint
from orchestrator.keeper import Kept, read_checkpoint
from orchestrator.search import Stage
from orchestrator.trial import Job, make_training


def read_shipped(stage: Stage, job: Job, num_epochs: int) -> Checkpoint:
    """Give the checkpoint of a training that ended after so many epochs."""
    kept = read_checkpoint(stage.rundir, job.trial)
    if kept.content is not None:
        checkpoint = Checkpoint.from_bytes(kept.content)
        if len(checkpoint.history) == num_epochs:
            return checkpoint
    stage.say(f"{job.trial}: {kept.note or 'the checkpoint is missing'}; trained again up to epoch {num_epochs}")
    share = stage.share
    task = ray.remote(num_cpus=share.num_cpus, num_gpus=share.num_gpus, max_calls=1)(train_again)
    shares = {"num_cpus": share.num_cpus, "num_gpus": share.num_gpus}
    return Checkpoint.from_bytes(ray.get(task.remote(stage.keeper, job, kept, num_epochs, **shares)))


def train_again(keeper: Any, job: Job, kept: Kept, num_epochs: int, *, num_cpus: float, num_gpus: float) -> bytes:
    """Train a job up to an epoch, from what is kept of it, and give its checkpoint, which is then kept."""
    (reference,) = ray.get(keeper.find_inputs.remote())
    training = make_training(job, ray.get(reference), num_cpus=num_cpus, num_gpus=num_gpus)
    if kept.content is not None:
        training.restore(kept.content)
    while training.epoch < num_epochs:
        training.train_epoch()
    content = training.save()
    ray.get(keeper.keep.remote(job.trial, content))
    return content
