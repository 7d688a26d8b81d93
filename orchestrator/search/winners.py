"""Trials -> search winners: the best trial on dev, the networks exported of it and its logits on dev rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mura_models.errors import RunError
from mura_models.evaluation.calibration import apply_temperature, calibrate
from mura_models.evaluation.metrics import Scored, macro_f1, to_studies
from mura_models.inference.assembly import AbnormalityModel, Network
from mura_models.training.dev_metrics import predict_class_array
from mura_models.training.search_data import SearchData
from orchestrator.run.journal import JournalLine
from orchestrator.search.plan import PlannedTrial

ENDED = ("COMPLETE", "PRUNED")
"""States of the trials that may win: the others failed or are not over."""


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """The score of a trial that has ended."""

    trial: str
    score: float
    """Dev metric of the epoch whose weights are exported."""
    kept_epoch: int
    num_epochs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DevRows:
    """A search's dev rows: their logits [m, C] and columns."""

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
        """Return the rows of a boolean mask."""
        return DevRows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True, eq=False)
class Winner:
    """A search's best trial and what is exported of it."""

    trial: PlannedTrial
    score: TrialScore
    exported: tuple[str, ...]
    """The trainings whose weights are exported: the trial itself, or replicates of it under other seeds."""
    networks: tuple[Network, ...]
    dev: DevRows
    model: AbnormalityModel | None
    """Calibrated on dev; None for a router."""

    @property
    def search(self) -> str:
        """The search it won."""
        return self.trial.search

    def score_studies(self, folds: Sequence[int], bone: str | None = None) -> Scored:
        """Return its predictions for the studies of these dev folds, of one bone or of all, by study code."""
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
        return macro_f1(rows.labels, predict_class_array(rows.logits), rows.logits.shape[1])


def rank_trials(
    lines: Sequence[JournalLine], search: str, metric: str, *, kept_epoch: str = "last"
) -> list[TrialScore]:
    """Return a search's ended trials, the best first: by score, then fewer epochs, then the plan's order.

    A trial's score is that of its last epoch, or of its best one if that one is exported. Failed trials and those
    without the metric are excluded.
    """
    of_trial: dict[str, list[JournalLine]] = defaultdict(list)
    for line in lines:
        if line.search == search:
            of_trial[line.trial].append(line)
    scores = []
    for trial, epochs in of_trial.items():
        epochs.sort(key=lambda line: line.epoch)
        last = epochs[-1]
        if last.state not in ENDED:
            continue
        candidates = [last] if kept_epoch == "last" else epochs
        values = {line.epoch: value for line in candidates if (value := line.metrics.get(metric)) is not None}
        if values:
            best = max(values, key=lambda epoch: values[epoch])  # the first of equals, as in training
            scores.append(TrialScore(trial=trial, score=values[best], kept_epoch=best, num_epochs=last.epoch))
    return sorted(scores, key=lambda score: (-score.score, score.num_epochs, score.trial))


def select_best_trial(
    lines: Sequence[JournalLine], search: str, metric: str, *, kept_epoch: str = "last"
) -> TrialScore:
    """Return a search's best trial. Raises RunError if every trial failed or none has a score."""
    ranked = rank_trials(lines, search, metric, kept_epoch=kept_epoch)
    if not ranked:
        has_ended = any(line.search == search and line.state in ENDED for line in lines)
        reason = (
            f"{metric} does not exist on its dev rows, as where they have one label"
            if has_ended
            else "every trial failed"
        )
        raise RunError(f"{search}: {reason}")
    return ranked[0]


def make_winner(
    trial: PlannedTrial,
    score: TrialScore,
    data: SearchData,
    *,
    exported: Sequence[str],
    networks: Sequence[Network],
    dev_logits: np.ndarray,
) -> Winner:
    """Return a winner; temperature and threshold come from its own dev rows."""
    dev = DevRows.of(data, dev_logits)
    model = None
    if not data.is_router:
        calibration = calibrate(dev.logits[:, 0].astype(np.float64), dev.labels, dev.studies)
        model = AbnormalityModel(
            target=trial.target, recipe=trial.recipe, networks=tuple(networks), calibration=calibration
        )
    return Winner(trial=trial, score=score, exported=tuple(exported), networks=tuple(networks), dev=dev, model=model)


def find_common_folds(winners: Mapping[str, Winner]) -> list[int]:
    """Return the dev folds common to all of these: only on them can they be compared."""
    folds = [set(np.unique(winner.dev.folds).tolist()) for winner in winners.values()]
    return sorted(set.intersection(*folds)) if folds else []
