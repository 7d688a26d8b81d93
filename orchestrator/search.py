"""Run a stage: one Tuner over all of its searches, one queue, so that no GPU idles while one bone finishes."""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune

from mura_models.errors import RunError
from mura_models.training import ProbeData
from orchestrator.config import RunConfig
from orchestrator.keeper import start_keeper
from orchestrator.plan import Plan, PlannedTrial
from orchestrator.rundir import Journal, RunDir
from orchestrator.scheduling import LadderPerSearch, Line, list_rungs
from orchestrator.trial import ProbeTrial, TrialInputs

MAX_WORKER_FAILURES = 3
"""How often Ray starts a trial again whose worker died; each time it goes on from its last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one trial gets of the cluster, and how many may run at once (None = as many as fit)."""

    num_cpus: float
    num_gpus: float
    max_concurrent: int | None = None


def run_searches(
    config: RunConfig,
    plan: Plan,
    data: dict[str, ProbeData],
    *,
    rundir: RunDir,
    share: Share,
    on_line: Callable[[Line], None],
) -> Journal:
    """Run every trial that the journal does not show as ended; return the journal.

    Raises RunError where trials remain, as after Ctrl-C.
    """
    journal = Journal(rundir.journal)
    waiting = [trial for trial in plan.trials if trial.trial not in journal.final_states()]
    if waiting:
        _fit(config, plan, waiting, data, rundir=rundir, share=share, journal=journal, on_line=on_line)
    left = [trial.trial for trial in plan.trials if trial.trial not in journal.final_states()]
    if left:
        raise RunError(f"stopped with {len(left)} of {len(plan.trials)} trials to go: the same command continues")
    return journal


def _fit(
    config: RunConfig,
    plan: Plan,
    waiting: list[PlannedTrial],
    data: dict[str, ProbeData],
    *,
    rundir: RunDir,
    share: Share,
    journal: Journal,
    on_line: Callable[[Line], None],
) -> None:
    settings = {trial.trial: trial.settings(config) for trial in waiting}
    metrics = {trial.search: f"dev_{trial.settings(config).metric}" for trial in plan.trials}
    inputs = TrialInputs(
        data=data,
        settings=settings,
        keeper=start_keeper(rundir),
        keep_epochs=list_rungs(grace_epochs=config.grace_epochs, num_epochs=config.num_epochs),
    )
    scheduler = LadderPerSearch(
        metrics=metrics,
        grace_epochs=config.grace_epochs,
        num_epochs=config.num_epochs,
        is_stopping=config.early_stopping,
        journal=journal,
        on_line=on_line,
    )
    names = [{"search": trial.search, "trial": trial.trial} for trial in waiting]
    _silence_tune()
    with tempfile.TemporaryDirectory(prefix="mura-tune-") as scratch:
        tuner = tune.Tuner(
            _with_inputs(inputs),
            param_space={
                "trial": tune.grid_search(names),  # in the plan's order
                "num_cpus": share.num_cpus,
                "num_gpus": share.num_gpus,
            },
            tune_config=tune.TuneConfig(
                scheduler=scheduler, reuse_actors=True, max_concurrent_trials=share.max_concurrent
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,  # Ray keeps no state that matters: the journal and the keeper do
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_WORKER_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


def _with_inputs(inputs: TrialInputs) -> Any:
    """Bind the inputs; the class keeps its name, which is what the dashboard shows."""
    trainable = tune.with_parameters(ProbeTrial, inputs=inputs)
    trainable.__name__ = trainable.__qualname__ = ProbeTrial.__name__
    return trainable


def _silence_tune() -> None:
    """Leave the terminal to our own progress, and write none of Tune's logs: the journal has every line."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
