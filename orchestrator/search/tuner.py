"""Run the trials of a stage: one Tuner over all of its searches, one queue: no GPU idles while one bone ends."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from mura_models.errors import RunError, StorageError
from orchestrator.cluster.resources import TrialResources
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.journal import Journal, Line
from orchestrator.search.plan import Plan, PlannedTrial
from orchestrator.search.scheduler import MAX_WORKER_FAILURES, BracketSettings, PerSearchAsha, list_rungs
from orchestrator.search.trial import FinetuneTrial, Job, ProbeTrial, TrialInputs
from orchestrator.search.watchdog import Watch

STORE_TIMEOUT_S = 120.0
"""How long the checkpoint store may take to answer, its process started anew by Ray if need be (chosen by us)."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What the trainings of one stage share: the search itself, its audit and its replicates."""

    config: RunConfig
    plan: Plan
    """The trials of this stage."""
    rundir: RunDir
    store: Any
    """The actor that keeps checkpoints, and holds the reference to the stage's inputs."""
    inputs: Any
    """That reference."""
    share: TrialResources
    on_line: Callable[[str, Line], None]
    """Told every line of a journal, and what it belongs to: search, audit or replicate."""
    say: Callable[[str], None]
    """Writes one line for the user."""

    def hold_inputs(self) -> None:
        """Pass the stage's inputs to the checkpoint store: at the start, and when its process was restarted."""
        ray.get(self.store.hold_inputs.remote([self.inputs]), timeout=STORE_TIMEOUT_S)


def run_search(stage: StageContext) -> None:
    """Run every trial that the journal does not show as ended. Raises RunError where trials remain."""
    run_jobs(stage, [make_job(stage.config, trial) for trial in stage.plan.trials], what="search")


def make_job(config: RunConfig, trial: PlannedTrial) -> Job:
    """Return a planned trial as a job, its checkpoint kept wherever the bracket may stop it."""
    rule = make_rule(config, trial)
    rungs = list_rungs(grace_epochs=rule.grace_epochs, num_epochs=rule.num_epochs)
    return Job(
        search=trial.search,
        trial=trial.trial,
        settings=trial.settings(config),
        keep_epochs=rungs | {trial.grace_epochs},
    )


def make_rules(config: RunConfig, plan: Plan) -> dict[str, BracketSettings]:
    """Return each search its bracket, which all of its trials stand on alike."""
    firsts = {trial.search: trial for trial in reversed(plan.trials)}
    return {search: make_rule(config, trial) for search, trial in firsts.items()}


def make_rule(config: RunConfig, trial: PlannedTrial) -> BracketSettings:
    """Return the bracket of a trial's search: the horizon is the search's maximum."""
    return BracketSettings(
        metric=f"dev_{trial.settings(config).metric}",
        grace_epochs=config.count_grace_epochs(trial.num_epochs),
        num_epochs=trial.num_epochs,
    )


def run_jobs(stage: StageContext, jobs: Sequence[Job], *, what: str) -> Journal:
    """Train whatever of these the journal of `what` does not show as ended; only a search stops trials early.

    A trial that Tune gave up before its failures are up goes into another Tuner. Raises StorageError where a journal or
    a checkpoint cannot be written.
    """
    paths = {
        "search": stage.rundir.journal,
        "audit": stage.rundir.audit_journal,
        "replicate": stage.rundir.replicate_journal,
    }
    journal = Journal(paths[what])
    scheduler = PerSearchAsha(
        rules=make_rules(stage.config, stage.plan),
        grace_epochs={trial.trial: trial.grace_epochs for trial in stage.plan.trials},
        is_stopping=stage.config.early_stopping and what == "search",
        journal=journal,
        on_line=lambda line: stage.on_line(what, line),
        on_failure=stage.hold_inputs,
    )
    left = _list_open(jobs, journal)
    for _ in range(1 + MAX_WORKER_FAILURES):
        if left:
            _fit(stage, left, scheduler)
            left = _list_open(jobs, journal)
        if scheduler.halted:
            raise StorageError(scheduler.halted)
    if left:
        raise RunError(f"stopped with {len(left)} of {len(jobs)} trials to go: the same command continues")
    return journal


def _list_open(jobs: Sequence[Job], journal: Journal) -> list[Job]:
    ended = journal.final_states()
    return [job for job in jobs if job.trial not in ended]


def _fit(stage: StageContext, jobs: Sequence[Job], scheduler: PerSearchAsha) -> None:
    inputs = TrialInputs(jobs={job.trial: job for job in jobs}, store=stage.store)
    trains_networks = any(job.settings.finetune for job in jobs)
    names = [{"search": job.search, "trial": job.trial} for job in jobs]
    share = stage.share
    _silence_tune()
    with tempfile.TemporaryDirectory(prefix="mura-tune-") as scratch:
        tuner = tune.Tuner(
            _with_inputs(FinetuneTrial if trains_networks else ProbeTrial, inputs),
            param_space={
                "trial": tune.grid_search(names),  # in the plan's order
                "num_cpus": share.num_cpus,
                "num_gpus": share.num_gpus,
            },
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                reuse_actors=not trains_networks,  # a fresh process gives back all of a GPU's memory
                max_concurrent_trials=share.max_concurrent,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,  # Ray keeps no state that matters: the journal and the checkpoint store do
                verbose=0,
                stop=Watch(scheduler, stage.rundir, share, stage.say),
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
