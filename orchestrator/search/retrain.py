"""The checkpoint of an exported training; if it was damaged since, trained again from the one before."""

import ray

from mura_models.training.checkpoints import Checkpoint
from orchestrator.search.checkpoint_store import LoadedCheckpoint, read_checkpoint, write_checkpoint
from orchestrator.search.context import StageContext
from orchestrator.search.trial import Job, StageInputs, make_training


def read_exported(stage: StageContext, job: Job, num_epochs: int) -> Checkpoint:
    """Return the checkpoint of a training that ended after this many epochs."""
    kept = read_checkpoint(stage.rundir, job.name)
    if kept.content is not None:
        checkpoint = Checkpoint.from_bytes(kept.content)
        if len(checkpoint.history) == num_epochs:
            return checkpoint
    stage.log(f"{job.name}: {kept.note or 'the checkpoint is missing'}; trained again up to epoch {num_epochs}")
    resources = stage.resources
    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_calls=1)(train_again)
    given = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    content = ray.get(task.remote(job, stage.inputs, kept, num_epochs, **given))
    write_checkpoint(stage.rundir, job.name, content)
    return Checkpoint.from_bytes(content)


def train_again(
    job: Job, inputs: StageInputs, kept: LoadedCheckpoint, num_epochs: int, *, num_cpus: float, num_gpus: float
) -> bytes:
    """Train a job up to an epoch, from its older checkpoint if there is one, and return its checkpoint."""
    training = make_training(job, inputs, num_cpus=num_cpus, num_gpus=num_gpus)
    if kept.content is not None:
        training.restore(kept.content)
    while training.epoch < num_epochs:
        training.train_epoch()
    return training.save()
