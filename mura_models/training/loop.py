"""What all trainings share: a trial's settings, the epoch loop, the kept epoch, early stopping, checkpoints.

Training uses no stateful random generator: each batch depends only on the seed and the step number. A trial's epochs
are therefore the same in any order of trials, and a stopped trial resumes from its checkpoint exactly.

An epoch is a fixed number of steps, the same for every search of a recipe: a specialist and the baseline it is
compared with are trained for the same number of steps, whatever the number of their images.

Shapes: m dev rows, C outputs of a head.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mura_models.errors import ConfigError
from mura_models.networks.heads import HeadKind, HeadSettings
from mura_models.training.checkpoints import Checkpoint
from mura_models.training.dev_metrics import evaluate_dev
from mura_models.training.finetune_settings import FinetuneSettings
from mura_models.training.lr_schedules import LrSchedule
from mura_models.training.sampling import BatchPlan, label_weights, sampling_strata
from mura_models.training.sampling_modes import Sampling
from mura_models.training.search_data import SearchData

DevMetric = Literal["auroc", "kappa", "accuracy", "image_accuracy", "macro_f1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSettings:
    """One configuration: everything that decides what the trial's epochs are."""

    head: HeadKind
    """The last layers' shape: one layer or two."""
    lr: float
    """Of the heads."""
    lr_schedule: LrSchedule = field(default_factory=LrSchedule)
    weight_decay: float = 0.0
    num_epochs: int = 16
    steps_per_epoch: int
    batch_size: int = 64
    hidden_size: int = 512
    activation: Literal["relu", "none"] = "relu"
    sampling: Sampling = "plain"
    metric: DevMetric = "auroc"
    grace_epochs: int = 7
    """Epochs that the trial runs before anything may stop it."""
    patience_epochs: int | None = 4
    """Epochs without a better dev metric after which the trial ends, counted after grace; None: never."""
    kept_epoch: Literal["last", "best"] = "last"
    """Whose weights are exported: the last epoch's, or those of the best dev metric (as in the paper)."""
    finetune: FinetuneSettings | None = None
    """None if the backbone stays frozen."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr}: must be above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay={self.weight_decay}: must not be negative")
        for name in ("num_epochs", "steps_per_epoch", "batch_size", "grace_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def dev_metric(self) -> str:
        """The name of `metric` among the metrics of an epoch."""
        return f"dev_{self.metric}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """The metrics of one epoch, and whether it was the last."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """lr, train_loss, train_accuracy, dev_loss, dev_<metric>..."""
    is_last: bool
    failure: str | None = None
    """Why the trial failed, if it did."""
    note: str | None = None
    """A remark on this epoch for the user."""


class Training(ABC):
    """One trial while it is trained; iterate over `epochs()`.

    A subclass makes `module` (what is trained and exported, with its heads under "heads") and `optimizer`, runs a
    step and predicts the dev rows.
    """

    module: nn.ModuleDict
    optimizer: torch.optim.Optimizer

    def __init__(self, data: SearchData, settings: TrialSettings, *, device: str = "cpu") -> None:
        self.data = data
        self.settings = settings
        self.device = torch.device(device)
        self.head_settings = HeadSettings(
            kind=settings.head,
            num_heads=len(data.held_out),
            num_features=data.features_NVD.shape[2],
            num_outputs=data.num_outputs,
            hidden_size=settings.hidden_size,
            activation=settings.activation,
        )
        self.batches = BatchPlan(
            data.folds,
            held_out=data.held_out,
            num_views=data.features_NVD.shape[1],
            batch_size=settings.batch_size,
            strata=sampling_strata(settings.sampling, data.bones, None if data.is_router else data.labels),
            seed=settings.seed,
        )
        self.row_weights = label_weights(settings.sampling, data.bones, None if data.is_router else data.labels)
        self.ema: AveragedModel | None = None
        self.micro_batch_size = settings.batch_size
        """Rows that go through the network at once; fewer than a batch if memory ran out."""
        self.note: str | None = None
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        """Every epoch so far, as plain values."""
        self.best_score = -math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] | None = None
        self.dev_logits = np.zeros((len(data.dev_entries), data.num_outputs), np.float32)
        """Logits [m, C] of the dev rows, each from a head that never saw it; of the exported epoch."""

    @abstractmethod
    def train_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Train on batch number `step`; return the loss and the accuracy, both means over heads."""

    @abstractmethod
    def predict_dev(self) -> np.ndarray:
        """Return the logits [m, C] of the dev rows as they are, without augmentation."""

    def set_learning_rates(self, step: int) -> float:
        """Set the learning rate of every group of parameters for one step; return the heads'."""
        settings = self.settings
        lr = settings.lr_schedule.rate(settings.lr, step, settings.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        return lr

    def epochs(self) -> Iterator[Epoch]:
        """Train and yield one epoch at a time, until the last one, early stopping or a loss that is not finite."""
        while not (self.history and self.history[-1]["is_last"]):
            yield self.train_epoch()

    def train_epoch(self) -> Epoch:
        """Run the next epoch and evaluate it on the dev rows."""
        self.epoch += 1
        self.note = None
        metrics = self._run_steps()
        dev_logits = self.predict_dev()
        metrics |= evaluate_dev(self.data, dev_logits)
        result = self._finish_epoch(metrics, dev_logits)
        self.history.append(asdict(result))
        return result

    def _finish_epoch(self, metrics: dict[str, float], dev_logits: np.ndarray) -> Epoch:
        bad = [name for name in ("train_loss", "dev_loss") if not math.isfinite(metrics[name])]
        if bad:
            failure = f"epoch {self.epoch}: {bad[0]} is {metrics[bad[0]]}"
            return Epoch(epoch=self.epoch, metrics=metrics, is_last=True, failure=failure)
        score = metrics[self.settings.dev_metric]
        is_best = score > self.best_score
        if is_best:
            self.best_score, self.best_epoch = score, self.epoch
        if self.settings.kept_epoch == "last":
            self.dev_logits = dev_logits
        elif is_best or self.best_state is None:
            self.dev_logits = dev_logits
            self.best_state = {name: tensor.detach().clone() for name, tensor in self.exported_state().items()}
        return Epoch(epoch=self.epoch, metrics=metrics, is_last=self._is_last(), note=self.note)

    def _run_steps(self) -> dict[str, float]:
        num_steps = self.settings.steps_per_epoch
        loss_sum = torch.zeros((), device=self.device)
        accuracy_sum = torch.zeros((), device=self.device)
        first = (self.epoch - 1) * num_steps
        lr = self.settings.lr
        for step in range(first, first + num_steps):
            lr = self.set_learning_rates(step)
            loss, accuracy = self.train_step(step)
            if self.ema is not None:
                self.ema.update_parameters(self.module)
            loss_sum += loss
            accuracy_sum += accuracy
        return {
            "lr": lr,
            "train_loss": float(loss_sum) / num_steps,
            "train_accuracy": float(accuracy_sum) / num_steps,
        }

    def _is_last(self) -> bool:
        settings = self.settings
        if self.epoch >= settings.num_epochs:
            return True
        if settings.patience_epochs is None:
            return False
        return self.epoch - max(self.best_epoch, settings.grace_epochs) >= settings.patience_epochs

    def exported_state(self) -> dict[str, Tensor]:
        """Return the weights that would be exported if this epoch were the last."""
        state: dict[str, Tensor] = (self.ema.module if self.ema else self.module).state_dict()
        return state

    def save(self) -> bytes:
        """Return the content of a checkpoint of the trial."""
        checkpoint = Checkpoint(
            head_settings=self.head_settings,
            state=self.module.state_dict(),
            optimizer=self.optimizer.state_dict()["state"],
            ema=self.ema.state_dict() if self.ema else None,
            best_state=self.best_state,
            dev_logits=self.dev_logits,
            history=self.history,
            best_score=self.best_score,
            best_epoch=self.best_epoch,
            micro_batch_size=self.micro_batch_size,
        )
        return checkpoint.to_bytes()

    def restore(self, content: bytes) -> None:
        """Continue from the content that `save` returned: the next epoch is the one after it."""
        checkpoint = Checkpoint.from_bytes(content)
        self.module.load_state_dict(checkpoint.state)
        self._restore_optimizer(checkpoint.optimizer)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.load_state_dict(checkpoint.ema)
        self.best_state = checkpoint.best_state
        self.dev_logits = checkpoint.dev_logits
        self.history = checkpoint.history
        self.epoch = len(self.history)
        self.best_score, self.best_epoch = checkpoint.best_score, checkpoint.best_epoch
        self.micro_batch_size = checkpoint.micro_batch_size

    def _restore_optimizer(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Restore the optimizer's moments in the memory layout of its parameters, which a fused step relies on."""
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for parameter, moments in self.optimizer.state.items():
            for name, tensor in moments.items():
                if tensor.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
