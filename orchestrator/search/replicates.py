"""The replicate of winners: a winner's configuration again under fresh seeds, for what one lucky seed hides.

A winner's own score is the best of many and flatters it; over fresh seeds the mean does not. The median replicate is
shipped, or all of them as an ensemble.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.run.config import RunConfig
from orchestrator.run.journal import Journal
from orchestrator.run.names import TrialId
from orchestrator.search.plan import PlannedTrial
from orchestrator.search.trial import Job
from orchestrator.search.tuner import StageContext, make_job, run_jobs
from orchestrator.search.winners import TrialScore, rank_trials


def run_replicates(stage: StageContext, winners: Mapping[str, TrialScore]) -> None:
    """Train the winner of each search again, under each fresh seed."""
    planned = {trial.trial: trial for trial in stage.plan.trials}
    jobs = [job for standing in winners.values() for job in _list_replicates(stage, planned[standing.trial])]
    run_jobs(stage, jobs, what="replicate")


def _list_replicates(stage: StageContext, trial: PlannedTrial) -> list[Job]:
    job = make_job(stage.config, trial)
    names = name_replicates(stage.config, trial)
    seeds = draw_seeds(trial, len(names))
    return [
        replace(job, trial=name, settings=replace(job.settings, seed=seed))
        for name, seed in zip(names, seeds, strict=True)
    ]


def name_replicates(config: RunConfig, trial: PlannedTrial) -> list[str]:
    """Name the replicates that a trial would have."""
    planned = TrialId.parse(trial.trial)
    return [str(planned.replicate(number)) for number in range(config.replicate_seeds)]


def draw_seeds(trial: PlannedTrial, num: int) -> list[int]:
    """Return fresh seeds that follow from the trial's own."""
    return [int(seed) for seed in np.random.SeedSequence([trial.seed, 1]).generate_state(num) >> 1]


def choose_shipped(stage: StageContext, trial: PlannedTrial) -> list[str]:
    """Name what is shipped of a winner: its median replicate, all replicates, or itself where there are none."""
    standings = _rank_replicates(stage, trial)
    if not standings:
        return [trial.trial]
    if stage.config.ensemble:
        return sorted(standing.trial for standing in standings)
    return [standings[len(standings) // 2].trial]  # of an even number the lower of the two in the middle


def list_shipped(stage: StageContext, trial: PlannedTrial, standing: TrialScore) -> list[tuple[Job, int]]:
    """Return the job of every training that is shipped of a winner, and the epochs that it ran."""
    jobs = {job.trial: job for job in (make_job(stage.config, trial), *_list_replicates(stage, trial))}
    num_epochs = {end.trial: end.num_epochs for end in (standing, *_rank_replicates(stage, trial))}
    return [(jobs[name], num_epochs[name]) for name in choose_shipped(stage, trial)]


def describe_replicates(stage: StageContext, winners: Mapping[str, TrialScore]) -> dict[str, Any]:
    """Return each winner's score over fresh seeds, and what is shipped."""
    planned = {trial.trial: trial for trial in stage.plan.trials}
    found = {}
    for search, standing in winners.items():
        trial = planned[standing.trial]
        replicates = sorted(_rank_replicates(stage, trial), key=lambda replicate: replicate.trial)
        if not replicates:
            continue
        scores = [replicate.score for replicate in replicates]
        seeds = dict(
            zip(name_replicates(stage.config, trial), draw_seeds(trial, stage.config.replicate_seeds), strict=True)
        )
        found[search] = {
            "searched_score": standing.score,
            "seeds": [seeds[replicate.trial] for replicate in replicates],
            "scores": scores,
            "mean": float(np.mean(scores)),
            "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            "shipped": choose_shipped(stage, trial),
        }
    return found


def _rank_replicates(stage: StageContext, trial: PlannedTrial) -> list[TrialScore]:
    names = set(name_replicates(stage.config, trial))
    lines = [line for line in Journal(stage.rundir.replicate_journal).lines if line["trial"] in names]
    metric = f"dev_{trial.settings(stage.config).metric}"
    return rank_trials(lines, trial.search, metric, kept_epoch=stage.config.kept_epoch)
