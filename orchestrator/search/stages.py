"""The stages in their order: search, audit, replicates, then the winners' networks, on which later stages may build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import ray

from mura_models.errors import RunError
from mura_models.inference.assembly import FROZEN, Network, mean_logit
from mura_models.networks.backbones import fill_backbone
from mura_models.training.search_data import SearchData
from orchestrator.cluster.resources import TrialResources
from orchestrator.progress import Progress
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.search.audit import run_audit
from orchestrator.search.checkpoint_store import remove_checkpoints, start_checkpoint_store
from orchestrator.search.context import EmbeddingStore, StageContext, TrainData, gather_data, open_journals
from orchestrator.search.plan import Plan, PlannedTrial, StagePlan
from orchestrator.search.progress import SearchProgress
from orchestrator.search.replicates import list_exported, list_replicates, report_replicates, run_replicates
from orchestrator.search.retrain import read_exported
from orchestrator.search.trial import StageInputs
from orchestrator.search.tuner import run_search
from orchestrator.search.winners import TrialScore, Winner, make_winner, select_best_trial


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """The results of the searches of one stage, or of all."""

    winners: Mapping[str, Winner] = field(default_factory=dict)
    """By search."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Search -> why it has no winner."""
    audit: tuple[dict[str, Any], ...] = ()
    replicates: Mapping[str, Any] = field(default_factory=dict)

    def __or__(self, later: "SearchResults") -> "SearchResults":
        """Return these results and those of a later stage."""
        return SearchResults(
            winners={**self.winners, **later.winners},
            failed={**self.failed, **later.failed},
            audit=self.audit + later.audit,
            replicates={**self.replicates, **later.replicates},
        )


def train_stages(
    config: RunConfig,
    plan: Plan,
    train: TrainData,
    embeddings: EmbeddingStore,
    *,
    rundir: RunDir,
    resources: TrialResources,
    progress: Progress,
) -> SearchResults:
    """Run the trials of every stage that have not ended, and add the networks of its winners to `embeddings`.

    Raises RunError if trials remain, as after Ctrl-C.
    """
    search_progress = SearchProgress(plan, progress)
    journals = open_journals(rundir)
    search_progress.begin(journals["search"].lines)
    store = start_checkpoint_store(rundir)
    results = SearchResults()
    for planned in plan.stages:
        stage_plan, blocked = drop_blocked_trials(planned, results.failed)
        results |= SearchResults(failed=blocked)
        if stage_plan.trials:
            inputs = put_inputs(config, stage_plan, train, embeddings)
            stage = StageContext(
                config=config,
                plan=stage_plan,
                rundir=rundir,
                journals=journals,
                store=store,
                inputs=inputs,
                resources=resources,
                on_line=search_progress.on_line,
                log=progress.log,
            )
            results |= train_stage(stage, train, embeddings)
            del inputs, stage  # the rows of a stage are released before the next one's are gathered
    return results


def put_inputs(config: RunConfig, stage: StagePlan, train: TrainData, embeddings: EmbeddingStore) -> Any:
    """Put what the trials of a stage need into Ray's object store; return the reference."""
    backbone = embeddings.backbones[FROZEN] if stage.kind == "network" else None
    return ray.put(StageInputs(data=gather_data(config, stage, train, embeddings), backbone=backbone))


def drop_blocked_trials(stage: StagePlan, failed: Mapping[str, str]) -> tuple[StagePlan, dict[str, str]]:
    """Return a stage without the trials that need a search that failed, and why each of their searches failed."""
    if stage.depends_on is None or str(stage.depends_on) not in failed:
        return stage, {}
    blocked = {search: f"{search}: needs {stage.depends_on}, which failed" for search in stage.searches}
    return stage.without(blocked), blocked


def train_stage(stage: StageContext, train: TrainData, embeddings: EmbeddingStore) -> SearchResults:
    """Run the trials of one stage; keep no checkpoint but those that are exported."""
    config = stage.config
    data = ray.get(stage.inputs).data  # in the one copy that there is
    stage.set_inputs()
    run_search(stage)
    audit = run_audit(stage) if config.early_stopping else []
    scores, failed = _select_best_trials(stage)
    planned = {trial.name: trial for trial in stage.plan.trials}
    best = {search: planned[score.trial] for search, score in scores.items()}
    replicates = {}
    if config.replicate_seeds:
        run_replicates(stage, best)
        replicates = report_replicates(config, best, scores, stage.journals["replicate"].lines)
    winners = {
        search: _export_winner(stage, trial, scores[search], data[search], train=train, embeddings=embeddings)
        for search, trial in best.items()
    }
    delete_unselected_checkpoints(stage, winners)
    return SearchResults(winners=winners, failed=failed, audit=tuple(audit), replicates=replicates)


def _select_best_trials(stage: StageContext) -> tuple[dict[str, TrialScore], dict[str, str]]:
    """Return the best trial of each search, and why a search has none.

    The shortest search comes first: of equal winners the first is selected later on.
    """
    scores, failed = {}, {}
    for search, first in reversed(stage.plan.searches.items()):
        try:
            scores[search] = select_best_trial(
                stage.journals["search"].lines,
                search,
                first.settings.dev_metric,
                kept_epoch=stage.config.kept_epoch,
            )
        except RunError as error:
            failed[search] = str(error)
    return scores, failed


def _export_winner(
    stage: StageContext,
    trial: PlannedTrial,
    score: TrialScore,
    data: SearchData,
    *,
    train: TrainData,
    embeddings: EmbeddingStore,
) -> Winner:
    """Read what is exported of a winner; whole networks are added to `embeddings` and predict dev as when deployed."""
    jobs = list_exported(stage.config, trial, score, stage.journals["replicate"].lines)
    exported = [job.name for job, _ in jobs]
    checkpoints = [read_exported(stage, job, num_epochs) for job, num_epochs in jobs]
    networks = []
    for number, (name, checkpoint) in enumerate(zip(exported, checkpoints, strict=True)):
        key = stage.plan.base_backbone
        if stage.plan.kind == "network":
            key = trial.id.search.backbone_key(number)
            frozen = embeddings.backbones[FROZEN]
            embeddings.add(key, fill_backbone(frozen, checkpoint.backbone_state(), source=f"trained here: {name}"))
        networks.append(Network(backbone=key, heads=checkpoint.build_heads()))
    if stage.plan.kind == "network":
        dev_logits = predict_dev(networks, train.rows.iloc[data.rows[data.dev_entries]], embeddings)
    else:
        dev_logits = np.mean([checkpoint.dev_logits for checkpoint in checkpoints], axis=0)
    return make_winner(trial, score, data, exported=exported, networks=networks, dev_logits=dev_logits)


def predict_dev(networks: Sequence[Network], rows: pd.DataFrame, embeddings: EmbeddingStore) -> np.ndarray:
    """Return the mean logits of networks for dev rows."""
    features = {network.backbone: embeddings.embed(network.backbone, rows)[:, 0] for network in networks}
    return mean_logit(networks, lambda key, at: features[key][at], np.arange(len(rows)))


def delete_unselected_checkpoints(stage: StageContext, winners: Mapping[str, Winner]) -> None:
    """Delete the checkpoints of a stage that are not exported."""
    exported = {name for winner in winners.values() for name in winner.exported}
    for trial in stage.plan.trials:
        replicates = (job.name for job in list_replicates(stage.config, trial))
        for name in {trial.name, str(trial.id.audit()), *replicates} - exported:
            remove_checkpoints(stage.rundir, name)
