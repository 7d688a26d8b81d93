"""Run the trials of a stage: one Tuner over all of its searches, one queue: no GPU idles while one bone ends."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from mura_models.errors import RunError
from orchestrator.config import RunConfig
from orchestrator.plan import Plan, PlannedTrial
from orchestrator.rundir import Journal, Line, RunDir
from orchestrator.scheduling import LadderPerSearch, LadderRule, list_rungs
from orchestrator.trial import FinetuneTrial, Job, ProbeTrial, TrialInputs

MAX_WORKER_FAILURES = 3
"""How often Ray starts a trial again whose worker died; each time it goes on from its last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one trial gets of the cluster, and how many may run at once (None = as many as fit)."""

    num_cpus: float
    num_gpus: float
    max_concurrent: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the trainings of one stage share: the search itself, its audit and its refits."""

    config: RunConfig
    plan: Plan
    """The trials of this stage."""
    rundir: RunDir
    keeper: Any
    """The actor that keeps checkpoints, and holds the reference to the stage's inputs."""
    share: Share
    on_line: Callable[[str, Line], None]
    """Told every line of a journal, and what it belongs to: search, audit or refit."""


def run_search(stage: Stage) -> None:
    """Run every trial that the journal does not show as ended. Raises RunError where trials remain."""
    run_jobs(stage, [make_job(stage.config, trial) for trial in stage.plan.trials], what="search")


def make_job(config: RunConfig, trial: PlannedTrial) -> Job:
    """Give a planned trial as a job, its checkpoint kept wherever the ladder may stop it."""
    rule = make_rule(config, trial)
    rungs = list_rungs(grace_epochs=rule.grace_epochs, num_epochs=rule.num_epochs)
    return Job(
        search=trial.search,
        trial=trial.trial,
        settings=trial.settings(config),
        keep_epochs=rungs | {trial.grace_epochs},
    )


def make_rules(config: RunConfig, plan: Plan) -> dict[str, LadderRule]:
    """Give each search its ladder, which all of its trials stand on alike."""
    firsts = {trial.search: trial for trial in reversed(plan.trials)}
    return {search: make_rule(config, trial) for search, trial in firsts.items()}


def make_rule(config: RunConfig, trial: PlannedTrial) -> LadderRule:
    """Give the ladder of a trial's search: the horizon is the search's maximum."""
    return LadderRule(
        metric=f"dev_{trial.settings(config).metric}",
        grace_epochs=config.count_grace_epochs(trial.num_epochs),
        num_epochs=trial.num_epochs,
    )


def run_jobs(stage: Stage, jobs: Sequence[Job], *, what: str) -> Journal:
    """Train whatever of these the journal of `what` does not show as ended; only a search stops trials early.

    Raises RunError where some remain, as after Ctrl-C.
    """
    paths = {"search": stage.rundir.journal, "audit": stage.rundir.audit_journal, "refit": stage.rundir.refit_journal}
    journal = Journal(paths[what])
    waiting = [job for job in jobs if job.trial not in journal.final_states()]
    if waiting:
        scheduler = LadderPerSearch(
            rules=make_rules(stage.config, stage.plan),
            grace_epochs={trial.trial: trial.grace_epochs for trial in stage.plan.trials},
            is_stopping=stage.config.early_stopping and what == "search",
            journal=journal,
            on_line=lambda line: stage.on_line(what, line),
        )
        _fit(stage, waiting, scheduler)
    left = [job.trial for job in jobs if job.trial not in journal.final_states()]
    if left:
        raise RunError(f"stopped with {len(left)} of {len(jobs)} trials to go: the same command continues")
    return journal


def _fit(stage: Stage, jobs: Sequence[Job], scheduler: LadderPerSearch) -> None:
    inputs = TrialInputs(jobs={job.trial: job for job in jobs}, keeper=stage.keeper)
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
                storage_path=scratch,  # Ray keeps no state that matters: the journal and the keeper do
                verbose=0,
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
    """Leave the terminal to our own progress, and write none of Tune's logs: the journal has every line."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
