"""The stages in their order: search, audit, replicate, then the winners' networks, on which later stages may stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from mura_models.errors import RunError
from mura_models.inference.assembly import FROZEN, Network, mean_logit
from mura_models.networks.backbones import fill_backbone
from mura_models.training.search_data import SearchData
from orchestrator.run.journal import Journal
from orchestrator.run.names import AUDIT_SUFFIX, SearchId
from orchestrator.search.audit import describe_audit, run_audit
from orchestrator.search.checkpoint_store import remove_checkpoints
from orchestrator.search.context import RunContext
from orchestrator.search.plan import Plan, PlannedTrial
from orchestrator.search.progress import SearchMonitor
from orchestrator.search.replicates import describe_replicates, list_shipped, name_replicates, run_replicates
from orchestrator.search.retrain import read_shipped
from orchestrator.search.search_data import gather_data
from orchestrator.search.trial import StageInputs
from orchestrator.search.tuner import StageContext, make_rules, run_search
from orchestrator.search.winners import TrialScore, Winner, make_winner, pick_winner


@dataclass(kw_only=True)
class SearchResults:
    """What the searches came to."""

    winners: dict[str, Winner] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Search -> why it has no winner."""
    audit: list[dict[str, Any]] = field(default_factory=list)
    replicates: dict[str, Any] = field(default_factory=dict)


def train_stages(work: RunContext, store: Any) -> SearchResults:
    """Run whatever is left of every stage. Raises RunError where trials remain, as after Ctrl-C."""
    follower = SearchMonitor(work.config, work.plan, work.monitor)
    follower.begin(Journal(work.rundir.journal).lines)
    trained = SearchResults()
    for number in work.plan.stages:
        plan = _leave_orphans(work.plan.of_stage(number), trained)
        if plan.trials:
            _train_stage(work, plan, trained, store, follower)
    return trained


def _leave_orphans(plan: Plan, trained: SearchResults) -> Plan:
    """Leave out the trials of searches that stand on one that failed, and say so."""
    orphans = {trial.search: trial.depends_on for trial in plan.trials if trial.depends_on in trained.failed}
    trained.failed |= {search: f"{search}: stands on {needed}, which failed" for search, needed in orphans.items()}
    return Plan(
        trials=tuple(trial for trial in plan.trials if trial.search not in orphans), untrainable=plan.untrainable
    )


def _train_stage(work: RunContext, plan: Plan, trained: SearchResults, store: Any, follower: SearchMonitor) -> None:
    first = plan.trials[0]
    base = trained.winners[first.depends_on].networks[0].backbone if first.depends_on else FROZEN
    backbone = work.backbones[FROZEN] if first.recipe == "finetune" else None
    inputs = ray.put(StageInputs(data=gather_data(work, plan, base), backbone=backbone))
    data = ray.get(inputs).data  # in the one copy that there is
    stage = StageContext(
        config=work.config,
        plan=plan,
        rundir=work.rundir,
        store=store,
        inputs=inputs,
        share=work.share,
        on_line=follower.on_line,
        say=work.monitor.say,
    )
    stage.hold_inputs()
    run_search(stage)
    if work.config.early_stopping:
        run_audit(stage)
        trained.audit += describe_audit(stage)
    standings = _pick_winners(stage, trained)
    if work.config.replicate_seeds:
        run_replicates(stage, standings)
        trained.replicates |= describe_replicates(stage, standings)
    planned = {trial.trial: trial for trial in plan.trials}
    for search, standing in standings.items():
        trial = planned[standing.trial]
        trained.winners[search] = _build_winner(work, stage, trial, standing, data[search], base=base)
    _remove_losers(work, trained, plan)


def _pick_winners(stage: StageContext, trained: SearchResults) -> dict[str, TrialScore]:
    lines = Journal(stage.rundir.journal).lines
    standings = {}
    for search, rule in make_rules(stage.config, stage.plan).items():
        try:
            standings[search] = pick_winner(lines, search, rule.metric, kept_epoch=stage.config.kept_epoch)
        except RunError as error:
            trained.failed[search] = str(error)
    return standings


def _build_winner(
    work: RunContext, stage: StageContext, trial: PlannedTrial, standing: TrialScore, data: SearchData, *, base: str
) -> Winner:
    """Read what a winner ships; a network that was trained whole answers for dev as it will when it is deployed."""
    jobs = list_shipped(stage, trial, standing)
    shipped = [job.trial for job, _ in jobs]
    checkpoints = [read_shipped(stage, job, num_epochs) for job, num_epochs in jobs]
    networks = []
    for number, checkpoint in enumerate(checkpoints):
        key = base
        if trial.recipe == "finetune":
            key = SearchId.parse(trial.search).backbone_key(number)
            state = checkpoint.backbone_state()
            work.backbones[key] = fill_backbone(
                work.backbones[FROZEN], state, source=f"trained here: {shipped[number]}"
            )
        networks.append(Network(backbone=key, heads=checkpoint.build_heads()))
    if trial.recipe == "finetune":
        dev_logits = _answer_dev(work, data, networks)
    else:
        dev_logits = np.mean([checkpoint.dev_logits for checkpoint in checkpoints], axis=0)
    return make_winner(trial, standing, data, shipped=shipped, networks=networks, dev_logits=dev_logits)


def _answer_dev(work: RunContext, data: SearchData, networks: list[Network]) -> np.ndarray:
    rows = work.train.iloc[data.rows[data.dev_entries]]
    features: Mapping[str, np.ndarray] = {n.backbone: work.embed(n.backbone, rows)[:, 0] for n in networks}
    return mean_logit(networks, lambda key, at: features[key][at], np.arange(len(rows)))


def _remove_losers(work: RunContext, trained: SearchResults, plan: Plan) -> None:
    """Delete the checkpoints of this stage that no winner ships."""
    shipped = {name for winner in trained.winners.values() for name in winner.shipped}
    for trial in plan.trials:
        for name in {trial.trial, trial.trial + AUDIT_SUFFIX, *name_replicates(work.config, trial)} - shipped:
            remove_checkpoints(work.rundir, name)
