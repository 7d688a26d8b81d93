"""Replicates: a winner's configuration trained again under fresh seeds, since one seed may have been lucky.

A winner's own score is the best of many and flatters it; the mean over fresh seeds does not. The median replicate is
exported, or all of them as an ensemble.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.run.config import RunConfig
from orchestrator.run.journal import JournalLine
from orchestrator.search.context import StageContext
from orchestrator.search.plan import PlannedTrial
from orchestrator.search.trial import Job
from orchestrator.search.tuner import make_job, run_jobs
from orchestrator.search.winners import TrialScore, rank_trials


def run_replicates(stage: StageContext, best: Mapping[str, PlannedTrial]) -> None:
    """Train the best trial of each search again, under each fresh seed."""
    jobs = [job for trial in best.values() for job in list_replicates(stage.config, trial)]
    run_jobs(stage, jobs, purpose="replicate")


def list_replicates(config: RunConfig, trial: PlannedTrial) -> list[Job]:
    """Return the jobs of a trial's replicates."""
    job = make_job(config, trial)
    seeds = draw_seeds(trial, config.replicate_seeds)
    return [
        replace(job, id=trial.id.replicate(number), settings=replace(job.settings, seed=seed))
        for number, seed in enumerate(seeds)
    ]


def draw_seeds(trial: PlannedTrial, num: int) -> list[int]:
    """Return fresh seeds that follow from the trial's own."""
    return [int(seed) for seed in np.random.SeedSequence([trial.settings.seed, 1]).generate_state(num) >> 1]


def select_exported(config: RunConfig, trial: PlannedTrial, lines: Sequence[JournalLine]) -> list[str]:
    """Return the trainings exported of a winner: its median replicate, all replicates, or itself if there are none."""
    scores = _rank_replicates(config, trial, lines)
    if not scores:
        return [trial.name]
    if config.ensemble:
        return sorted(score.trial for score in scores)
    return [scores[len(scores) // 2].trial]  # of an even number the lower of the two in the middle


def list_exported(
    config: RunConfig, trial: PlannedTrial, score: TrialScore, lines: Sequence[JournalLine]
) -> list[tuple[Job, int]]:
    """Return the job of every training that is exported of a winner, and the epochs that it ran."""
    jobs = {job.name: job for job in (make_job(config, trial), *list_replicates(config, trial))}
    num_epochs = {end.trial: end.num_epochs for end in (score, *_rank_replicates(config, trial, lines))}
    return [(jobs[name], num_epochs[name]) for name in select_exported(config, trial, lines)]


def report_replicates(
    config: RunConfig, best: Mapping[str, PlannedTrial], scores: Mapping[str, TrialScore], lines: Sequence[JournalLine]
) -> dict[str, Any]:
    """Return each winner's score over fresh seeds, and what is exported."""
    found = {}
    for search, trial in best.items():
        replicates = sorted(_rank_replicates(config, trial, lines), key=lambda replicate: replicate.trial)
        if not replicates:
            continue
        seeds = {job.name: job.settings.seed for job in list_replicates(config, trial)}
        values = [replicate.score for replicate in replicates]
        found[search] = {
            "searched_score": scores[search].score,
            "seeds": [seeds[replicate.trial] for replicate in replicates],
            "scores": values,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "shipped": select_exported(config, trial, lines),
        }
    return found


def _rank_replicates(config: RunConfig, trial: PlannedTrial, lines: Sequence[JournalLine]) -> list[TrialScore]:
    names = {str(trial.id.replicate(number)) for number in range(config.replicate_seeds)}
    mine = [line for line in lines if line.trial in names]
    return rank_trials(mine, trial.search, trial.settings.dev_metric, kept_epoch=config.kept_epoch)
