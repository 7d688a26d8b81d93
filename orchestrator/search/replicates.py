"""The refit of winners: a winner's configuration again under fresh seeds, for what one lucky seed hides.

A winner's own score is the best of many and flatters it; over fresh seeds the mean does not. The median refit is
shipped, or all of them as an ensemble.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.run.config import RunConfig
from orchestrator.run.journal import Journal
from orchestrator.search.plan import PlannedTrial
from orchestrator.search.trial import Job
from orchestrator.search.tuner import Stage, make_job, run_jobs
from orchestrator.search.winners import Standing, rank_trials

REFIT_MARK = "/seed"
"""Between a winner's name and the number of its refit."""


def run_refits(stage: Stage, winners: Mapping[str, Standing]) -> None:
    """Train the winner of each search again, under each fresh seed."""
    planned = {trial.trial: trial for trial in stage.plan.trials}
    jobs = [job for standing in winners.values() for job in _list_refits(stage, planned[standing.trial])]
    run_jobs(stage, jobs, what="refit")


def _list_refits(stage: Stage, trial: PlannedTrial) -> list[Job]:
    job = make_job(stage.config, trial)
    names = name_refits(stage.config, trial)
    seeds = draw_seeds(trial, len(names))
    return [
        replace(job, trial=name, settings=replace(job.settings, seed=seed))
        for name, seed in zip(names, seeds, strict=True)
    ]


def name_refits(config: RunConfig, trial: PlannedTrial) -> list[str]:
    """Name the refits that a trial would have."""
    return [f"{trial.trial}{REFIT_MARK}{number}" for number in range(config.refit_seeds)]


def draw_seeds(trial: PlannedTrial, num: int) -> list[int]:
    """Give fresh seeds that follow from the trial's own."""
    return [int(seed) for seed in np.random.SeedSequence([trial.seed, 1]).generate_state(num) >> 1]


def choose_shipped(stage: Stage, trial: PlannedTrial) -> list[str]:
    """Name what is shipped of a winner: its median refit, all refits, or itself where there are none."""
    standings = _rank_refits(stage, trial)
    if not standings:
        return [trial.trial]
    if stage.config.ensemble:
        return sorted(standing.trial for standing in standings)
    return [standings[len(standings) // 2].trial]  # of an even number the lower of the two in the middle


def list_shipped(stage: Stage, trial: PlannedTrial, standing: Standing) -> list[tuple[Job, int]]:
    """Give the job of every training that is shipped of a winner, and the epochs that it ran."""
    jobs = {job.trial: job for job in (make_job(stage.config, trial), *_list_refits(stage, trial))}
    num_epochs = {end.trial: end.num_epochs for end in (standing, *_rank_refits(stage, trial))}
    return [(jobs[name], num_epochs[name]) for name in choose_shipped(stage, trial)]


def describe_refits(stage: Stage, winners: Mapping[str, Standing]) -> dict[str, Any]:
    """Give each winner's score over fresh seeds, and what is shipped."""
    planned = {trial.trial: trial for trial in stage.plan.trials}
    found = {}
    for search, standing in winners.items():
        trial = planned[standing.trial]
        refits = sorted(_rank_refits(stage, trial), key=lambda refit: refit.trial)
        if not refits:
            continue
        scores = [refit.score for refit in refits]
        seeds = dict(zip(name_refits(stage.config, trial), draw_seeds(trial, stage.config.refit_seeds), strict=True))
        found[search] = {
            "searched_score": standing.score,
            "seeds": [seeds[refit.trial] for refit in refits],
            "scores": scores,
            "mean": float(np.mean(scores)),
            "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            "shipped": choose_shipped(stage, trial),
        }
    return found


def _rank_refits(stage: Stage, trial: PlannedTrial) -> list[Standing]:
    names = set(name_refits(stage.config, trial))
    lines = [line for line in Journal(stage.rundir.refit_journal).lines if line["trial"] in names]
    metric = f"dev_{trial.settings(stage.config).metric}"
    return rank_trials(lines, trial.search, metric, kept_epoch=stage.config.kept_epoch)
