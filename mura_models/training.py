"""Train the heads of one trial on cached embeddings: the epoch loop, the dev rows and early stopping.

Nothing here is drawn from a generator that lives on: what update number u trains on is a function of the seed and u
alone. So a trial's epochs are the same in any order of arrival, and a stopped trial goes on from its checkpoint as if
nothing had happened.

An epoch is a fixed number of updates, the same for every search of a run: a specialist and the baseline it is compared
with are trained by the same number of updates, whatever the number of their images.

Shapes: N rows (images), O outcomes, D features, K folds, B rows a batch, C outputs.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mura_models.calibration import choose_threshold
from mura_models.checkpoints import Checkpoint
from mura_models.errors import ConfigError
from mura_models.heads import Heads, HeadSettings
from mura_models.lr_schedules import LrSchedule
from mura_models.metrics import Scored, macro_f1, score, to_studies
from mura_models.sampling import BatchPlan

DevMetric = Literal["auroc", "kappa", "accuracy", "macro_f1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeData:
    """The rows that one search trains on and is judged by; `features_NOD` is shared by all searches."""

    features_NOD: np.ndarray
    """Every training image's embeddings, float16."""
    rows: np.ndarray
    """Which of them belong to this search: [n] indices into N. The arrays below have one entry a row of these."""
    labels: np.ndarray
    """Class of each row: 0/1, or the bone's number for the router."""
    folds: np.ndarray
    studies: np.ndarray
    patients: np.ndarray
    bones: np.ndarray
    num_folds: int
    bone_classes: tuple[str, ...] | None = None
    """The classes in their order where the target is the bone (the router); None where it is the abnormality."""

    @property
    def is_router(self) -> bool:
        """Whether the target is the bone rather than the abnormality."""
        return self.bone_classes is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSettings:
    """One configuration: everything that decides what the trial's epochs are."""

    recipe: Literal["linear_probe", "mlp_probe"]
    lr: float
    lr_schedule: LrSchedule = field(default_factory=LrSchedule)
    weight_decay: float = 0.0
    num_epochs: int = 16
    updates_per_epoch: int
    batch_size: int = 64
    hidden_size: int = 512
    activation: Literal["relu", "none"] = "relu"
    sampling: Literal["plain", "balanced_bones"] = "plain"
    metric: DevMetric = "auroc"
    grace_epochs: int = 7
    patience_epochs: int | None = 4
    """Epochs without a better dev metric after which the trial ends, counted after grace; None = never."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr}: must be above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay={self.weight_decay}: must not be negative")
        for name in ("num_epochs", "updates_per_epoch", "batch_size", "grace_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """lr, train_loss, train_accuracy, dev_loss, dev_<metric>..."""
    is_last: bool
    failure: str | None = None
    """Why the trial ends as failed, if it does."""


class ProbeTraining:
    """The K heads of one trial while they are trained; iterate over `epochs()`."""

    def __init__(self, data: ProbeData, settings: TrialSettings, *, device: str = "cpu") -> None:
        self.data = data
        self.settings = settings
        self.device = torch.device(device)
        shape = HeadSettings(
            recipe=settings.recipe,
            num_heads=data.num_folds,
            num_features=data.features_NOD.shape[2],
            num_outputs=len(data.bone_classes) if data.bone_classes else 1,
            hidden_size=settings.hidden_size,
            activation=settings.activation,
        )
        self.heads = Heads(shape, seed=settings.seed)
        self.heads.standardise_by(*measure_features(data))
        self.heads.to(self.device)
        self.optimizer = _make_optimizer(self.heads, settings)
        self.batches = BatchPlan(
            data.folds,
            num_folds=data.num_folds,
            num_outcomes=data.features_NOD.shape[1],
            batch_size=settings.batch_size,
            balanced_by=data.bones if settings.sampling == "balanced_bones" else None,
            seed=settings.seed,
        )
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        """Every epoch so far, as plain values."""
        self.best_score = -math.inf
        self.best_epoch = 0
        self.dev_logits = np.zeros((len(data.rows), shape.num_outputs), np.float32)
        """Out-of-fold logits [n, C]: each row's from the head that never saw it."""

    def epochs(self) -> Iterator[Epoch]:
        """Train on, an epoch at a time, until the last one, early stopping or a loss that is not finite."""
        while not (self.history and self.history[-1]["is_last"]):
            yield self.train_epoch()

    def train_epoch(self) -> Epoch:
        """Run the next epoch and judge it on the dev rows."""
        self.epoch += 1
        metrics = self._run_updates()
        self.dev_logits = self.predict_dev()
        metrics |= judge_dev(self.data, self.dev_logits)
        outcome = self._conclude(metrics)
        self.history.append(asdict(outcome))
        return outcome

    def _conclude(self, metrics: dict[str, float]) -> Epoch:
        bad = [name for name in ("train_loss", "dev_loss") if not math.isfinite(metrics[name])]
        if bad:
            failure = f"epoch {self.epoch}: {bad[0]} is {metrics[bad[0]]}"
            return Epoch(epoch=self.epoch, metrics=metrics, is_last=True, failure=failure)
        return Epoch(epoch=self.epoch, metrics=metrics, is_last=self._is_last(metrics))

    def _run_updates(self) -> dict[str, float]:
        settings = self.settings
        loss_sum = torch.zeros((), device=self.device)
        num_right = torch.zeros((), device=self.device)
        num_updates = settings.num_epochs * settings.updates_per_epoch
        first = (self.epoch - 1) * settings.updates_per_epoch
        lr = settings.lr
        for update in range(first, first + settings.updates_per_epoch):
            lr = settings.lr_schedule.rate(settings.lr, update, num_updates)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            features_KBD, labels_KB = self._fetch_batch(update)
            logits_KBC = self.heads(features_KBD)
            loss_K = per_head_loss(logits_KBC, labels_KB)
            self.optimizer.zero_grad(set_to_none=True)
            loss_K.sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            loss_sum += loss_K.detach().mean()
            num_right += (to_classes(logits_KBC.detach()) == labels_KB).float().mean()
        return {
            "lr": lr,
            "train_loss": float(loss_sum) / settings.updates_per_epoch,
            "train_accuracy": float(num_right) / settings.updates_per_epoch,
        }

    def _fetch_batch(self, update: int) -> tuple[Tensor, Tensor]:
        entries_KB, outcomes_KB = self.batches.draw(update)
        features_KBD = self.data.features_NOD[self.data.rows[entries_KB], outcomes_KB]
        labels_KB = torch.from_numpy(self.data.labels[entries_KB].astype(np.int64))
        return torch.from_numpy(features_KBD).to(self.device).float(), labels_KB.to(self.device)

    @torch.no_grad()
    def predict_dev(self) -> np.ndarray:
        """Give the out-of-fold logits [n, C] of the plain outcome."""
        data = self.data
        logits_nC = np.zeros((len(data.rows), self.heads.settings.num_outputs), np.float32)
        for fold in range(data.num_folds):
            entries = np.flatnonzero(data.folds == fold)
            features_BD = torch.from_numpy(data.features_NOD[data.rows[entries], 0]).to(self.device).float()
            logits_nC[entries] = self.heads.forward_one(fold, features_BD).cpu().numpy()
        return logits_nC

    def save(self) -> bytes:
        """Give the trial's checkpoint as it stands."""
        checkpoint = Checkpoint(
            head_settings=self.heads.settings,
            heads=self.heads.state_dict(),
            optimizer=self.optimizer.state_dict()["state"],
            dev_logits=self.dev_logits,
            history=self.history,
            best_score=self.best_score,
            best_epoch=self.best_epoch,
        )
        return checkpoint.to_bytes()

    def restore(self, content: bytes) -> None:
        """Go on from what `save` gave: the next epoch is the one after it."""
        checkpoint = Checkpoint.from_bytes(content)
        self.heads.load_state_dict(checkpoint.heads)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": checkpoint.optimizer})
        self.dev_logits = checkpoint.dev_logits
        self.history = checkpoint.history
        self.epoch = len(self.history)
        self.best_score, self.best_epoch = checkpoint.best_score, checkpoint.best_epoch

    def _is_last(self, metrics: dict[str, float]) -> bool:
        settings = self.settings
        score = metrics[f"dev_{settings.metric}"]
        if score > self.best_score:
            self.best_score, self.best_epoch = score, self.epoch
        if self.epoch >= settings.num_epochs:
            return True
        if settings.patience_epochs is None:
            return False
        return self.epoch - max(self.best_epoch, settings.grace_epochs) >= settings.patience_epochs


def measure_features(data: ProbeData) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation [K, D] of each head's own training rows, plain outcome."""
    features_nD = data.features_NOD[data.rows, 0].astype(np.float32)
    moments = [(f.mean(0), f.std(0)) for f in (features_nD[data.folds != fold] for fold in range(data.num_folds))]
    mean_KD, std_KD = (torch.from_numpy(np.stack(part)) for part in zip(*moments, strict=True))
    return mean_KD, std_KD


def per_head_loss(logits_KBC: Tensor, labels_KB: Tensor) -> Tensor:
    """Give each head's mean loss [K]; summed, every head has the gradient it would have alone."""
    if logits_KBC.shape[2] == 1:
        losses_KB = functional.binary_cross_entropy_with_logits(
            logits_KBC.squeeze(2), labels_KB.float(), reduction="none"
        )
    else:
        losses_KB = functional.cross_entropy(logits_KBC.transpose(1, 2), labels_KB, reduction="none")
    return losses_KB.mean(1)


def to_classes(logits_C: Tensor) -> Tensor:
    """Name the likelier class along the last axis, which has one output for two classes."""
    return (logits_C.squeeze(-1) > 0).long() if logits_C.shape[-1] == 1 else logits_C.argmax(-1)


def judge_dev(data: ProbeData, dev_logits: np.ndarray) -> dict[str, float]:
    """Give loss (image level) and metrics of out-of-fold rows: study level, but macro F1 (image level) for a router."""
    logits_nC = torch.from_numpy(dev_logits)
    labels_n = torch.from_numpy(data.labels.astype(np.int64))
    dev_loss = float(per_head_loss(logits_nC[None], labels_n[None]))
    if data.bone_classes:
        classes = to_classes(logits_nC).numpy()
        return {
            "dev_loss": dev_loss,
            "dev_macro_f1": macro_f1(data.labels, classes, len(data.bone_classes)),
            "dev_accuracy": float((classes == data.labels).mean()),
        }
    if not math.isfinite(dev_loss):
        return {"dev_loss": dev_loss}
    images = Scored(
        labels=data.labels,
        p_abnormal=logits_nC.squeeze(1).double().sigmoid().numpy(),
        thresholds=np.full(len(data.labels), 0.5),
        patients=data.studies,  # no interval is asked for
    )
    studies = to_studies(images, data.studies)
    threshold = choose_threshold(studies.labels, studies.p_abnormal)
    shipped = replace(studies, thresholds=np.full(len(studies.labels), threshold))
    points = score(shipped, ("auroc", "kappa", "accuracy"))
    return {"dev_loss": dev_loss} | {f"dev_{metric}": value for metric, value in points.items()}


def _make_optimizer(heads: Heads, settings: TrialSettings) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, which is the paper's Adam where the decay is 0; biases are not decayed."""
    groups = [
        {"params": list(heads.weights), "weight_decay": settings.weight_decay},
        {"params": list(heads.biases), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
