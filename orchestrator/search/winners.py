"""Trials -> search winners: the best trial on dev, the networks it ships and its calibrated answers on dev rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mura_models.errors import RunError
from mura_models.evaluation.calibration import apply_temperature, calibrate
from mura_models.evaluation.metrics import Scored, macro_f1, to_studies
from mura_models.inference.assembly import AbnormalityModel, Network
from mura_models.training.dev_metrics import to_classes_array
from mura_models.training.search_data import SearchData
from orchestrator.run.journal import Line
from orchestrator.search.plan import PlannedTrial

ENDED = ("COMPLETE", "PRUNED")
"""States of the trials that may win: the others failed or go on."""


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """How a trial that has ended stands in its search."""

    trial: str
    score: float
    """Dev metric of the epoch whose weights are shipped."""
    kept_epoch: int
    num_epochs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DevRows:
    """A search's dev rows: logits [m, C] and what is known of each row."""

    logits: np.ndarray
    labels: np.ndarray
    studies: np.ndarray
    patients: np.ndarray
    bones: np.ndarray
    folds: np.ndarray

    @classmethod
    def of(cls, data: SearchData, logits: np.ndarray) -> "DevRows":
        """Return the dev rows of a search with the logits of its winner."""
        entries = data.dev_entries
        names = ("labels", "studies", "patients", "bones", "folds")
        return cls(logits=logits, **{name: getattr(data, name)[entries] for name in names})

    def subset(self, mask: np.ndarray) -> "DevRows":
        """Keep the rows of a boolean mask."""
        return DevRows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True, eq=False)
class Winner:
    """A search's best trial and what is shipped of it."""

    trial: PlannedTrial
    standing: TrialScore
    shipped: tuple[str, ...]
    """The trainings whose weights are shipped: the trial itself, or replicates of it under other seeds."""
    networks: tuple[Network, ...]
    dev: DevRows
    model: AbnormalityModel | None
    """Calibrated on dev; None for a router."""

    @property
    def search(self) -> str:
        """The search it won."""
        return self.trial.search

    def rate_studies(self, folds: Sequence[int], bone: str | None = None) -> Scored:
        """Return its answers on the studies of these dev folds, of one bone or of all, by study code."""
        assert self.model is not None
        mask = np.isin(self.dev.folds, folds)
        rows = self.dev.subset(mask if bone is None else mask & (self.dev.bones == bone))
        calibration = self.model.calibration
        images = Scored(
            labels=rows.labels,
            p_abnormal=apply_temperature(rows.logits[:, 0].astype(np.float64), calibration.temperature),
            thresholds=np.full(len(rows.labels), calibration.threshold),
            patients=rows.patients,
        )
        return to_studies(images, rows.studies)

    def score_bones(self, folds: Sequence[int]) -> float:
        """Return a router's macro F1 by image on these dev folds."""
        rows = self.dev.subset(np.isin(self.dev.folds, folds))
        return macro_f1(rows.labels, to_classes_array(rows.logits), rows.logits.shape[1])


def rank_trials(lines: Sequence[Line], search: str, metric: str, *, kept_epoch: str = "last") -> list[TrialScore]:
    """Return a search's ended trials, the best first: by score, then fewer epochs, then the plan's order.

    A trial's score is that of its last epoch, or of its best one where that is the one shipped. Failed trials and
    those whose metric does not exist are left out.
    """
    of_trial: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line["search"] == search:
            of_trial[line["trial"]].append(line)
    standings = []
    for trial, epochs in of_trial.items():
        last = max(epochs, key=lambda line: line["epoch"])
        if last["state"] not in ENDED:
            continue
        judged = [last] if kept_epoch == "last" else sorted(epochs, key=lambda line: line["epoch"])
        judged = [line for line in judged if line["metrics"].get(metric) is not None]
        if judged:
            best = max(judged, key=lambda line: line["metrics"][metric])  # the first of equals, as in training
            standings.append(
                TrialScore(
                    trial=trial, score=best["metrics"][metric], kept_epoch=best["epoch"], num_epochs=last["epoch"]
                )
            )
    return sorted(standings, key=lambda standing: (-standing.score, standing.num_epochs, standing.trial))


def pick_winner(lines: Sequence[Line], search: str, metric: str, *, kept_epoch: str = "last") -> TrialScore:
    """Choose a search's best trial. Raises RunError where every trial failed or none has a score."""
    ranked = rank_trials(lines, search, metric, kept_epoch=kept_epoch)
    if not ranked:
        has_ended = any(line["search"] == search and line["state"] in ENDED for line in lines)
        reason = (
            f"{metric} does not exist on its dev rows, as where they have one label"
            if has_ended
            else "every trial failed"
        )
        raise RunError(f"{search}: {reason}")
    return ranked[0]


def make_winner(
    trial: PlannedTrial,
    standing: TrialScore,
    data: SearchData,
    *,
    shipped: Sequence[str],
    networks: Sequence[Network],
    dev_logits: np.ndarray,
) -> Winner:
    """Put a winner together: temperature and threshold come from its own dev rows."""
    dev = DevRows.of(data, dev_logits)
    model = None
    if not data.is_router:
        calibration = calibrate(dev.logits[:, 0].astype(np.float64), dev.labels, dev.studies)
        model = AbnormalityModel(
            target=trial.target, recipe=trial.recipe, networks=tuple(networks), calibration=calibration
        )
    return Winner(
        trial=trial, standing=standing, shipped=tuple(shipped), networks=tuple(networks), dev=dev, model=model
    )


def find_common_folds(winners: Mapping[str, Winner]) -> list[int]:
    """Return the dev folds that judged every one of these: only on them can all be compared."""
    folds = [set(np.unique(winner.dev.folds).tolist()) for winner in winners.values()]
    return sorted(set.intersection(*folds)) if folds else []
