"""The audit of early stopping: a seeded handful of stopped trials is run to the end, to learn how often it was wrong.

The audit changes nothing: it has a journal of its own, and what it finds out chooses no winner.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.run.journal import Journal, Line
from orchestrator.run.names import AUDIT_SUFFIX
from orchestrator.search.plan import PlannedTrial
from orchestrator.search.tuner import StageContext, make_job, run_jobs
from orchestrator.search.winners import pick_winner, rank_trials


def run_audit(stage: StageContext) -> None:
    """Run the audited trials of a stage on from where they were stopped."""
    audited = choose_audited(stage, Journal(stage.rundir.journal).lines)
    jobs = [make_job(stage.config, trial) for trial in audited]
    run_jobs(stage, [replace(job, trial=job.trial + AUDIT_SUFFIX, starts_from=job.trial) for job in jobs], what="audit")


def choose_audited(stage: StageContext, lines: Sequence[Line]) -> list[PlannedTrial]:
    """Draw some of the trials that the bracket stopped; the same for the same stops."""
    stopped = {line["trial"] for line in lines if line["state"] == "PRUNED"}
    candidates = [trial for trial in stage.plan.trials if trial.trial in stopped]
    rng = np.random.default_rng([stage.config.seed, *stage.plan.stages, 7])
    drawn = rng.permutation(len(candidates))[: stage.config.num_audited]
    return [candidates[number] for number in sorted(drawn)]


def describe_audit(stage: StageContext) -> list[dict[str, Any]]:
    """Say of each audited trial how it would have stood at its end beside its search's winner."""
    lines, audited = Journal(stage.rundir.journal).lines, Journal(stage.rundir.audit_journal).lines
    found = []
    for trial in choose_audited(stage, lines):
        metric = f"dev_{trial.settings(stage.config).metric}"
        kept_epoch = stage.config.kept_epoch
        stopped = next(s for s in rank_trials(lines, trial.search, metric) if s.trial == trial.trial)
        ends = rank_trials(audited, trial.search, metric, kept_epoch=kept_epoch)
        end = next((s for s in ends if s.trial == trial.trial + AUDIT_SUFFIX), None)
        if end is None:  # it failed on the way
            continue
        winner = pick_winner(lines, trial.search, metric, kept_epoch=kept_epoch)
        found.append(
            {
                "search": trial.search,
                "trial": trial.trial,
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
