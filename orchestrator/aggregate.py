"""Trials -> search winners -> calibrated models -> what serves each bone. Dev rows decide; test stays closed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mura_models.assembly import AbnormalityModel, Assembly
from mura_models.calibration import apply_temperature, calibrate
from mura_models.checkpoints import Checkpoint
from mura_models.errors import RunError
from mura_models.heads import Heads
from mura_models.intervals import standard_error_of_gain
from mura_models.metrics import Scored, score, to_studies
from mura_models.training import ProbeData
from orchestrator.config import RunConfig
from orchestrator.plan import Plan, PlannedTrial

Line = dict[str, Any]

ROUTER = "router/linear_probe"
"""The search whose winner names the bone."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A search's best trial and its model."""

    trial: PlannedTrial
    heads: Heads
    score: float
    """Dev metric at the last epoch it ran."""
    num_epochs: int
    model: AbnormalityModel | None
    """None for the router."""
    dev: Scored | None
    """Its out-of-fold image rows, calibrated; in the order of the search's rows."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What answers for one bone, and why."""

    model: str
    why: str
    dev: dict[str, float]
    """Study-level metrics of the served model on the bone's dev rows."""


def pick_winner(lines: Sequence[Line], search: str, metric: str) -> Line:
    """Choose a search's best trial by its score at the last epoch it ran; ties: fewer epochs, then the plan's order.

    Raises RunError where every trial failed.
    """
    ended = [line for line in lines if line["search"] == search and line["state"] in ("COMPLETE", "PRUNED")]
    usable = [line for line in ended if line["metrics"].get(metric) is not None]
    if not usable:
        raise RunError(f"{search}: every trial failed")
    return min(usable, key=lambda line: (-line["metrics"][metric], line["epoch"], line["trial"]))


def crown_winners(
    config: RunConfig,
    plan: Plan,
    lines: Sequence[Line],
    data: Mapping[str, ProbeData],
    load_checkpoint: Callable[[str], bytes],
) -> tuple[dict[str, Winner], dict[str, str]]:
    """Give every search's winner with its calibrated model, and why a search has none."""
    winners, failed = {}, {}
    for search in plan.searches:
        trials = {trial.trial: trial for trial in plan.of_search(search)}
        metric = f"dev_{next(iter(trials.values())).settings(config).metric}"
        try:
            line = pick_winner(lines, search, metric)
        except RunError as error:
            failed[search] = str(error)
            continue
        winners[search] = _build_winner(
            trials[line["trial"]], line, metric, data[search], Checkpoint.from_bytes(load_checkpoint(line["trial"]))
        )
    return winners, failed


def _build_winner(trial: PlannedTrial, line: Line, metric: str, data: ProbeData, checkpoint: Checkpoint) -> Winner:
    model, dev, heads = None, None, checkpoint.build_heads()
    if not data.is_router:
        logits = checkpoint.dev_logits[:, 0].astype(np.float64)
        calibration = calibrate(logits, data.labels, data.studies)
        model = AbnormalityModel(target=trial.target, recipe=trial.recipe, heads=heads, calibration=calibration)
        dev = Scored(
            labels=data.labels,
            p_abnormal=apply_temperature(logits, calibration.temperature),
            thresholds=np.full(len(logits), calibration.threshold),
            patients=data.patients,
        )
    return Winner(
        trial=trial,
        heads=heads,
        score=line["metrics"][metric],
        num_epochs=line["epoch"],
        model=model,
        dev=dev,
    )


def choose_serving(
    config: RunConfig,
    plan: Plan,
    winners: Mapping[str, Winner],
    data: Mapping[str, ProbeData],
    bones: Sequence[str],
    *,
    can_route: bool = True,
) -> dict[str, Served]:
    """Choose for each bone: a specialist where its paired dev gain over the best baseline is above one standard error.

    Without `can_route` the best baseline serves all. Raises RunError where no baseline was trained.
    """
    best_baseline = find_best_baseline(winners)
    served = {}
    for bone in bones:
        specialists = [winner for winner in winners.values() if winner.trial.target == f"specialist:{bone}"]
        baseline_dev = _dev_studies(best_baseline, data, bone)
        if not can_route:
            why = "the best baseline on dev; no specialist can be chosen, for no router was trained"
            served[bone] = Served(model=best_baseline.trial.search, why=why, dev=score(baseline_dev))
            continue
        if not specialists:
            why = f"the best baseline on dev; no specialist: {plan.untrainable.get(bone, 'its trials failed')}"
            served[bone] = Served(model=best_baseline.trial.search, why=why, dev=score(baseline_dev))
            continue
        specialist = max(specialists, key=lambda winner: winner.score)
        specialist_dev = _dev_studies(specialist, data, bone)
        gain, error = standard_error_of_gain(specialist_dev, baseline_dev, config.metric)
        figures = f"paired dev gain in {config.metric} over the best baseline {gain:+.4f}, standard error {error:.4f}"
        if gain > error:
            served[bone] = Served(
                model=specialist.trial.search, why=f"specialist: {figures}", dev=score(specialist_dev)
            )
        else:
            served[bone] = Served(model=best_baseline.trial.search, why=f"baseline: {figures}", dev=score(baseline_dev))
    return served


def find_best_baseline(winners: Mapping[str, Winner]) -> Winner:
    """Give the baseline with the best dev score. Raises RunError where none was trained."""
    baselines = [winner for winner in winners.values() if winner.trial.target == "baseline"]
    if not baselines:
        raise RunError("no baseline was trained: nothing can be served")
    return max(baselines, key=lambda winner: winner.score)


def _dev_studies(winner: Winner, data: Mapping[str, ProbeData], bone: str) -> Scored:
    """Give a winner's dev rows of one bone by study, in an order that is the same for all winners."""
    assert winner.dev is not None
    mine = data[winner.trial.search].bones == bone
    return to_studies(winner.dev.subset(mine), data[winner.trial.search].studies[mine])


def assemble(winners: Mapping[str, Winner], serving: Mapping[str, str], bones: Sequence[str]) -> Assembly:
    """Put router and models together; `serving` names the model that answers for each bone."""
    router = winners.get(ROUTER)
    return Assembly(
        classes=tuple(bones),
        router=router.heads if router else None,
        models={winner.model.name: winner.model for winner in winners.values() if winner.model},
        serving=dict(serving),
    )


def describe_served(
    served: Mapping[str, Served], winners: Mapping[str, Winner], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Give served.json: what answers for each bone, every search's winner, and the searches that failed."""
    return {
        "served": {bone: describe_choice(choice, winners[choice.model]) for bone, choice in served.items()},
        "winners": {
            search: {
                "trial": winner.trial.trial,
                "score": winner.score,
                "num_epochs": winner.num_epochs,
                "lr_schedule": winner.trial.lr_schedule,
                "lr": winner.trial.lr,
                "weight_decay": winner.trial.weight_decay,
            }
            for search, winner in winners.items()
        },
        "failed": dict(failed),
    }


def describe_choice(choice: Served, winner: Winner) -> dict[str, Any]:
    """Give report.json's entry of one served model."""
    assert winner.model is not None
    return {
        "target": winner.trial.target,
        "recipe": winner.trial.recipe,
        "trial": winner.trial.trial,
        "lr_schedule": winner.trial.lr_schedule,
        "lr": winner.trial.lr,
        "dev": choice.dev,
        "threshold": winner.model.calibration.threshold,
        "temperature": winner.model.calibration.temperature,
        "why": choice.why,
    }
