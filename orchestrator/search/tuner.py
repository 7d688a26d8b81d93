"""Run the trials of a stage: one Tuner and one queue over all of its searches, so that no GPU idles."""

import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from ray import tune

from mura_models.errors import RunError
from orchestrator.run.config import RunConfig
from orchestrator.search.context import Purpose, StageContext
from orchestrator.search.plan import PlannedTrial
from orchestrator.search.scheduler import MAX_WORKER_FAILURES, BracketSettings, PerSearchAsha, list_rungs
from orchestrator.search.trial import FinetuneTrial, Job, ProbeTrial, TrialInputs
from orchestrator.search.watchdog import Watchdog


def run_search(stage: StageContext) -> None:
    """Run every trial that the journal does not show as ended. Raises RunError if trials remain."""
    run_jobs(stage, [make_job(stage.config, trial) for trial in stage.plan.trials], purpose="search")


def make_job(config: RunConfig, trial: PlannedTrial) -> Job:
    """Return a planned trial as a job whose checkpoint is written wherever the bracket may stop it."""
    bracket = make_bracket_settings(config, trial)
    rungs = list_rungs(grace_epochs=bracket.grace_epochs, num_epochs=bracket.num_epochs)
    return Job(id=trial.id, settings=trial.settings, keep_epochs=rungs | {trial.settings.grace_epochs})


def make_bracket_settings(config: RunConfig, trial: PlannedTrial) -> BracketSettings:
    """Return the bracket of a trial's search, the same for all of its trials."""
    settings = trial.settings
    return BracketSettings(
        metric=settings.dev_metric,
        grace_epochs=config.count_grace_epochs(settings.num_epochs),
        num_epochs=settings.num_epochs,
    )


def run_jobs(stage: StageContext, jobs: Sequence[Job], *, purpose: Purpose) -> None:
    """Train those of these that the journal of `purpose` does not show as ended; only a search stops trials early.

    A trial that Tune gave up before its restarts are used up goes into another Tuner. Raises StorageError if a journal
    or a checkpoint cannot be written, RunError if trials remain.
    """
    journal = stage.journals[purpose]
    scheduler = PerSearchAsha(
        rules={search: make_bracket_settings(stage.config, trial) for search, trial in stage.plan.searches.items()},
        grace_epochs={trial.name: trial.settings.grace_epochs for trial in stage.plan.trials},
        is_stopping=stage.config.early_stopping and purpose == "search",
        journal=journal,
        on_line=lambda line: stage.on_line(purpose, line),
        on_failure=stage.set_inputs,
    )
    left = [job for job in jobs if not journal.has_ended(job.name)]
    for _ in range(1 + MAX_WORKER_FAILURES):
        if left:
            _fit(stage, left, scheduler)
            left = [job for job in jobs if not journal.has_ended(job.name)]
        if scheduler.halted:
            raise scheduler.halted
    if left:
        raise RunError(
            f"stopped with {len(left)} of {len(jobs)} trials to go; continue with --run-dir {stage.rundir.root}"
        )


def _fit(stage: StageContext, jobs: Sequence[Job], scheduler: PerSearchAsha) -> None:
    inputs = TrialInputs(jobs={job.name: job for job in jobs}, store=stage.store)
    trains_networks = stage.plan.kind == "network"
    names = [{"search": job.search, "trial": job.name} for job in jobs]
    resources = stage.resources
    _silence_tune()
    with tempfile.TemporaryDirectory(prefix="mura-tune-") as scratch:
        tuner = tune.Tuner(
            _with_inputs(FinetuneTrial if trains_networks else ProbeTrial, inputs),
            param_space={
                "trial": tune.grid_search(names),  # in the plan's order
                "num_cpus": resources.num_cpus,
                "num_gpus": resources.num_gpus,
            },
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                reuse_actors=not trains_networks,  # a fresh process gives back all of a GPU's memory
                max_concurrent_trials=resources.max_concurrent,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,  # Ray keeps no state that matters: the journal and the checkpoint store do
                verbose=0,
                stop=Watchdog(scheduler, stage.rundir, resources, stage.log),
                failure_config=tune.FailureConfig(max_failures=MAX_WORKER_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


def _with_inputs(kind: type[tune.Trainable], inputs: TrialInputs) -> Any:
    """Bind the inputs; the class keeps its name, which is what the dashboard shows."""
    trainable = tune.with_parameters(kind, inputs=inputs)
    trainable.__name__ = trainable.__qualname__ = kind.__name__
    return trainable


def _silence_tune() -> None:
    """Leave terminal and Ctrl-C to us, and write none of Tune's logs: the journal has every line."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the run, not one Tuner of it
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
