"""Search winners -> the selected model of each bone, the router and the assembly: by dev rows alone.

Fine-tuned networks are evaluated on fold 0 alone, probes on every fold. Models are therefore compared on the folds that
they share, each at the best threshold for the rows compared.
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
from orchestrator.run.report_schema import SelectedModel
from orchestrator.search.winners import Winner, find_common_folds


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The model that answers for one bone, and why."""

    model: str
    reason: str
    dev: dict[str, float]
    """Its study-level metrics on the bone's dev rows."""


def select_models(
    config: RunConfig,
    untrainable: Mapping[str, str],
    winners: Mapping[str, Winner],
    bones: Sequence[str],
    *,
    can_route: bool = True,
) -> dict[str, Selected]:
    """Select a specialist for a bone if its paired dev gain over the best baseline exceeds one standard error.

    Otherwise, and for every bone without `can_route`, select the best baseline. Raises RunError if none was trained.
    """
    best_baseline = select_best_baseline(config, winners)
    selected = {}
    for bone in bones:
        specialists = _of_target(winners, specialist_target(bone))
        if can_route and specialists:
            selected[bone] = _compare(config, best_baseline, specialists, bone)
            continue
        reason = "the best baseline on dev; no specialist can be selected, as no router was trained"
        if can_route:
            reason = f"the best baseline on dev; no specialist: {untrainable.get(bone, 'its trials failed')}"
        folds = find_common_folds({best_baseline.search: best_baseline})
        dev = score(best_baseline.score_studies(folds, bone))
        selected[bone] = Selected(model=best_baseline.search, reason=reason, dev=dev)
    return selected


def _compare(config: RunConfig, baseline: Winner, specialists: Mapping[str, Winner], bone: str) -> Selected:
    """Compare the best specialist of a bone with the best baseline."""
    metric = config.selected_metric
    specialist = _select_best(specialists, metric, bone)
    folds = find_common_folds({specialist.search: specialist, baseline.search: baseline})
    specialist_dev, baseline_dev = (winner.score_studies(folds, bone) for winner in (specialist, baseline))
    measured = _measure_gain(specialist, baseline, metric, bone)
    if measured is None:
        reason = "baseline: too few dev rows for a comparison"
        return Selected(model=baseline.search, reason=reason, dev=score(baseline_dev))
    gain, error = measured
    figures = f"paired dev gain in {metric} over the best baseline {gain:+.4f}, standard error {error:.4f}"
    if len(folds) == 1:
        figures += f", on fold {folds[0]} alone"
    if gain > error:
        return Selected(model=specialist.search, reason=f"specialist: {figures}", dev=score(specialist_dev))
    return Selected(model=baseline.search, reason=f"baseline: {figures}", dev=score(baseline_dev))


def select_best_baseline(config: RunConfig, winners: Mapping[str, Winner]) -> Winner:
    """Return the best baseline on dev, by study. Raises RunError if none was trained.

    It is the best of those with the most dev rows, unless one with fewer is better by more than a standard error.
    """
    baselines = _of_target(winners, BASELINE)
    if not baselines:
        raise RunError("no baseline was trained, so no model can be selected")
    metric = config.selected_metric
    most = max(len(winner.dev.labels) for winner in baselines.values())
    holder = _select_best({name: w for name, w in baselines.items() if len(w.dev.labels) == most}, metric)
    rest = {name: w for name, w in baselines.items() if len(w.dev.labels) < most}
    if not rest:
        return holder
    challenger = _select_best(rest, metric)
    return challenger if _is_clearly_better(challenger, holder, metric) else holder


def _is_clearly_better(challenger: Winner, holder: Winner, metric: str) -> bool:
    """Return whether a model is better than another by more than a standard error on their common folds."""
    measured = _measure_gain(challenger, holder, metric)
    return measured is not None and measured[0] > measured[1]


def _measure_gain(a: Winner, b: Winner, metric: str, bone: str | None = None) -> tuple[float, float] | None:
    """Return the gain of one model over another by study, and its standard error, on their common folds.

    None if too few rows are common: fewer than an interval needs, or a gain that no resample changes.
    """
    folds = find_common_folds({a.search: a, b.search: b})
    of_a, of_b = (_set_thresholds(winner.score_studies(folds, bone)) for winner in (a, b))
    if has_few([of_a]):
        return None
    gain, error = standard_error_of_gain(of_a, of_b, metric)
    is_measured = gain == 0 or error > 0  # two models with the same answers have a gain of 0 without an error
    return (gain, error) if is_measured else None


def _set_thresholds(studies: Scored) -> Scored:
    """Set the best threshold for just these studies.

    The exported threshold is the best for a model's own dev rows: for a specialist the rows compared, for a baseline
    those of all bones and folds. With it, a specialist would win by its threshold alone.
    """
    threshold = choose_threshold(studies.labels, studies.p_abnormal)
    return replace(studies, thresholds=np.full(len(studies.labels), threshold))


def _select_best(winners: Mapping[str, Winner], metric: str, bone: str | None = None) -> Winner:
    """Return the model with the highest score by study on the folds common to all; NaN is the lowest."""
    folds = find_common_folds(winners)
    scores = {name: score(_set_thresholds(w.score_studies(folds, bone)))[metric] for name, w in winners.items()}
    return winners[max(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else scores[name])]


def score_routers(winners: Mapping[str, Winner]) -> dict[str, float]:
    """Return search -> its router's macro F1 by image, on the dev rows common to all routers."""
    routers = _of_target(winners, ROUTER)
    folds = find_common_folds(routers)
    return {name: winner.score_bones(folds) for name, winner in routers.items()}


def select_best_router(winners: Mapping[str, Winner]) -> Winner | None:
    """Return the router with the best macro F1 on dev; in a tie the probe, which needs no backbone of its own."""
    scores = score_routers(winners)
    ranked = sorted(scores, key=lambda name: (-scores[name], winners[name].trial.stage))
    return winners[ranked[0]] if ranked else None


def assemble(winners: Mapping[str, Winner], selected: Mapping[str, str], bones: Sequence[str]) -> Assembly:
    """Put router and models together; `selected` names the model that answers for each bone."""
    router = select_best_router(winners)
    return Assembly(
        classes=tuple(bones),
        router=Router(recipe=router.trial.recipe, networks=router.networks) if router else None,
        models={winner.model.name: winner.model for winner in winners.values() if winner.model},
        selected=dict(selected),
    )


def _of_target(winners: Mapping[str, Winner], target: str) -> dict[str, Winner]:
    return {name: winner for name, winner in winners.items() if winner.trial.target == target}


def list_selected_models(selected: Mapping[str, Selected], winners: Mapping[str, Winner]) -> dict[str, SelectedModel]:
    """Return report.json's `selected`, by bone."""
    return {bone: _make_selected_model(choice, winners[choice.model]) for bone, choice in selected.items()}


def _make_selected_model(choice: Selected, winner: Winner) -> SelectedModel:
    assert winner.model is not None
    return SelectedModel(
        target=winner.trial.target,
        recipe=winner.trial.recipe,
        trial=winner.trial.name,
        lr_schedule=winner.trial.settings.lr_schedule.name,
        lr=winner.trial.settings.lr,
        dev=choice.dev,
        threshold=winner.model.calibration.threshold,
        temperature=winner.model.calibration.temperature,
        reason=choice.reason,
    )


def winners_to_json(winners: Mapping[str, Winner]) -> dict[str, Any]:
    """Return selected.json's `winners`: every search's best trial."""
    return {
        search: {
            "trial": winner.trial.name,
            "score": winner.score.score,
            "num_epochs": winner.score.num_epochs,
            "kept_epoch": winner.score.kept_epoch,
            "lr_schedule": winner.trial.settings.lr_schedule.name,
            "lr": winner.trial.settings.lr,
            "weight_decay": winner.trial.settings.weight_decay,
            "sampling": winner.trial.settings.sampling,
            "shipped": list(winner.exported),
        }
        for search, winner in winners.items()
    }
