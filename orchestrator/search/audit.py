"""The audit of early stopping: a seeded sample of stopped trials is run to the end, to learn how often it was wrong.

The audit changes nothing: it has its own journal, and its results select no winner.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.run.config import RunConfig
from orchestrator.run.journal import JournalLine
from orchestrator.search.context import StageContext
from orchestrator.search.plan import PlannedTrial, StagePlan
from orchestrator.search.tuner import make_job, run_jobs
from orchestrator.search.winners import rank_trials, select_best_trial


def run_audit(stage: StageContext) -> list[dict[str, Any]]:
    """Run the audited trials of a stage on from where they were stopped; return report.json's entry of each."""
    searched = stage.journals["search"].lines
    audited = choose_audited(stage.config, stage.plan, searched)
    jobs = [replace(make_job(stage.config, trial), id=trial.id.audit(), starts_from=trial.id) for trial in audited]
    run_jobs(stage, jobs, purpose="audit")
    return report_audit(audited, searched, stage.journals["audit"].lines)


def choose_audited(config: RunConfig, stage: StagePlan, lines: Sequence[JournalLine]) -> list[PlannedTrial]:
    """Draw some of the trials that the bracket stopped; the same for the same stops."""
    stopped = {line.trial for line in lines if line.state == "PRUNED"}
    candidates = [trial for trial in stage.trials if trial.name in stopped]
    rng = np.random.default_rng([config.seed, stage.number, 7])
    drawn = rng.permutation(len(candidates))[: config.num_audited]
    return [candidates[number] for number in sorted(drawn)]


def report_audit(
    audited: Sequence[PlannedTrial], searched: Sequence[JournalLine], finished: Sequence[JournalLine]
) -> list[dict[str, Any]]:
    """Return for each audited trial its score at the end next to that of its search's winner."""
    found = []
    for trial in audited:
        metric, kept_epoch = trial.settings.dev_metric, trial.settings.kept_epoch
        stopped = next(score for score in rank_trials(searched, trial.search, metric) if score.trial == trial.name)
        ends = rank_trials(finished, trial.search, metric, kept_epoch=kept_epoch)
        end = next((score for score in ends if score.trial == str(trial.id.audit())), None)
        if end is None:  # it failed on the way
            continue
        winner = select_best_trial(searched, trial.search, metric, kept_epoch=kept_epoch)
        found.append(
            {
                "search": trial.search,
                "trial": trial.name,
                "stopped_epoch": stopped.num_epochs,
                "score_at_stop": stopped.score,
                "last_epoch": end.num_epochs,
                "final_score": end.score,
                "winner_score": winner.score,
                "gain": end.score - winner.score,
                "is_wrong": end.score > winner.score,
            }
        )
    return found
