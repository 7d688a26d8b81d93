"""Search winners -> what serves each bone, the router and the assembly. Dev rows decide; test stays closed.

Fine-tuned networks are judged on fold 0 alone, probes on every fold: whatever is compared is compared on the folds that
judged both, each model at the best threshold for the rows compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mura_models.errors import RunError
from mura_models.evaluation.bootstrap import has_few, standard_error_of_gain
from mura_models.evaluation.calibration import choose_threshold
from mura_models.evaluation.metrics import Scored, score
from mura_models.inference.assembly import Assembly, Router
from orchestrator.run.config import RunConfig
from orchestrator.run.names import BASELINE, ROUTER, specialist_target
from orchestrator.search.winners import Winner, find_common_folds


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What answers for one bone, and why."""

    model: str
    reason: str
    dev: dict[str, float]
    """Study-level metrics of the served model on the bone's dev rows."""


def choose_selected(
    config: RunConfig,
    untrainable: Mapping[str, str],
    winners: Mapping[str, Winner],
    bones: Sequence[str],
    *,
    can_route: bool = True,
) -> dict[str, Selected]:
    """Choose for each bone: a specialist where its paired dev gain over the best baseline is above one standard error.

    Without `can_route` the best baseline serves all. Raises RunError where no baseline was trained.
    """
    best_baseline = find_best_baseline(config, winners)
    selected = {}
    for bone in bones:
        specialists = _of_target(winners, specialist_target(bone))
        reason = None
        if not can_route:
            reason = "the best baseline on dev; no specialist can be chosen, for no router was trained"
        elif not specialists:
            reason = f"the best baseline on dev; no specialist: {untrainable.get(bone, 'its trials failed')}"
        if reason is None:
            selected[bone] = _compare(config, best_baseline, specialists, bone)
        else:
            folds = find_common_folds({best_baseline.search: best_baseline})
            dev = score(best_baseline.rate_studies(folds, bone))
            selected[bone] = Selected(model=best_baseline.search, reason=reason, dev=dev)
    return selected


def _compare(config: RunConfig, baseline: Winner, specialists: Mapping[str, Winner], bone: str) -> Selected:
    """Hold the best specialist of a bone against the best baseline."""
    metric = config.selected_metric
    specialist = _find_best(specialists, metric, bone)
    folds = find_common_folds({specialist.search: specialist, baseline.search: baseline})
    specialist_dev, baseline_dev = (winner.rate_studies(folds, bone) for winner in (specialist, baseline))
    measured = _measure_gain(specialist, baseline, metric, bone)
    if measured is None:
        return Selected(model=baseline.search, reason="baseline: dev has too few rows to tell", dev=score(baseline_dev))
    gain, error = measured
    figures = f"paired dev gain in {metric} over the best baseline {gain:+.4f}, standard error {error:.4f}"
    if len(folds) == 1:
        figures += f", on fold {folds[0]} alone"
    if gain > error:
        return Selected(model=specialist.search, reason=f"specialist: {figures}", dev=score(specialist_dev))
    return Selected(model=baseline.search, reason=f"baseline: {figures}", dev=score(baseline_dev))


def find_best_baseline(config: RunConfig, winners: Mapping[str, Winner]) -> Winner:
    """Return the best baseline on dev, by study. Raises RunError where none was trained.

    The best of those that most rows judged, unless one that fewer judged is above it by more than a standard error.
    """
    baselines = _of_target(winners, BASELINE)
    if not baselines:
        raise RunError("no baseline was trained: nothing can be served")
    metric = config.selected_metric
    most = max(len(winner.dev.labels) for winner in baselines.values())
    holder = _find_best({name: w for name, w in baselines.items() if len(w.dev.labels) == most}, metric)
    rest = {name: w for name, w in baselines.items() if len(w.dev.labels) < most}
    if not rest:
        return holder
    challenger = _find_best(rest, metric)
    return challenger if _is_clearly_better(challenger, holder, metric) else holder


def _is_clearly_better(challenger: Winner, holder: Winner, metric: str) -> bool:
    """Return whether a model is above another by more than a standard error on the folds that judged both."""
    measured = _measure_gain(challenger, holder, metric)
    return measured is not None and measured[0] > measured[1]


def _measure_gain(a: Winner, b: Winner, metric: str, bone: str | None = None) -> tuple[float, float] | None:
    """Return the gain of one model over another by study, and its standard error, on the folds that judged both.

    None where too few rows judged both: fewer than an interval needs, or a gain that no resample changes.
    """
    folds = find_common_folds({a.search: a, b.search: b})
    of_a, of_b = (_set_thresholds(winner.rate_studies(folds, bone)) for winner in (a, b))
    if has_few([of_a]):
        return None
    gain, error = standard_error_of_gain(of_a, of_b, metric)
    is_told = gain == 0 or error > 0  # two models that answer alike have a gain of 0 without an error
    return (gain, error) if is_told else None


def _set_thresholds(studies: Scored) -> Scored:
    """Set the best threshold for just these studies.

    A model ships the best one for its own dev rows: for a specialist those that it is compared on, for a baseline those
    of all bones and folds. Compared so, a specialist would win by its threshold alone.
    """
    threshold = choose_threshold(studies.labels, studies.p_abnormal)
    return replace(studies, thresholds=np.full(len(studies.labels), threshold))


def _find_best(winners: Mapping[str, Winner], metric: str, bone: str | None = None) -> Winner:
    """Return the highest by study on the folds that judged all; a score that is not a number is the lowest."""
    folds = find_common_folds(winners)
    scores = {name: score(_set_thresholds(w.rate_studies(folds, bone)))[metric] for name, w in winners.items()}
    return winners[max(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else scores[name])]


def rate_routers(winners: Mapping[str, Winner]) -> dict[str, float]:
    """Return each router's macro F1 by image on the dev rows that judged all of them, by search."""
    routers = _of_target(winners, ROUTER)
    folds = find_common_folds(routers)
    return {name: winner.score_bones(folds) for name, winner in routers.items()}


def find_best_router(winners: Mapping[str, Winner]) -> Winner | None:
    """Return the router with the best macro F1 on dev; of equals the probe, which asks for no backbone of its own."""
    scores = rate_routers(winners)
    ranked = sorted(scores, key=lambda name: (-scores[name], winners[name].trial.stage))
    return winners[ranked[0]] if ranked else None


def assemble(winners: Mapping[str, Winner], selected: Mapping[str, str], bones: Sequence[str]) -> Assembly:
    """Put router and models together; `serving` names the model that answers for each bone."""
    router = find_best_router(winners)
    return Assembly(
        classes=tuple(bones),
        router=Router(recipe=router.trial.recipe, networks=router.networks) if router else None,
        models={winner.model.name: winner.model for winner in winners.values() if winner.model},
        selected=dict(selected),
    )


def _of_target(winners: Mapping[str, Winner], target: str) -> dict[str, Winner]:
    return {name: winner for name, winner in winners.items() if winner.trial.target == target}


def describe_selected(
    selected: Mapping[str, Selected], winners: Mapping[str, Winner], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return selected.json: what answers for each bone, every search's winner, and the searches that failed."""
    return {
        "selected": {bone: describe_choice(choice, winners[choice.model]) for bone, choice in selected.items()},
        "winners": {
            search: {
                "trial": winner.trial.trial,
                "score": winner.standing.score,
                "num_epochs": winner.standing.num_epochs,
                "kept_epoch": winner.standing.kept_epoch,
                "lr_schedule": winner.trial.lr_schedule,
                "lr": winner.trial.lr,
                "weight_decay": winner.trial.weight_decay,
                "sampling": winner.trial.sampling,
                "shipped": list(winner.shipped),
            }
            for search, winner in winners.items()
        },
        "failed": dict(failed),
    }


def describe_choice(choice: Selected, winner: Winner) -> dict[str, Any]:
    """Return report.json's entry of one served model."""
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
        "reason": choice.reason,
    }
