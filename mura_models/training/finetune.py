"""Train the whole network on images of the cache, augmented batch by batch on the device.

Fold 0 is held out. If memory runs out, a batch goes through in halves whose gradients are added up, and the epoch's
result notes it; batch normalization, if it is trained, then takes its statistics from the halves. The head works on
standardized features, as a probe's does, so that learning rates are comparable.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from mura_models.data.augmentation import Augmentation, augment
from mura_models.data.preprocessing import normalize
from mura_models.networks.heads import Heads
from mura_models.networks.runtimes import has_native_bfloat16
from mura_models.training.dev_metrics import per_head_loss, predict_class
from mura_models.training.loop import Training, TrialSettings
from mura_models.training.sampling import fit_weights
from mura_models.training.search_data import SearchData, measure_features

WARM_START_C = 0.001
"""Inverse strength of the L2 penalty of the initial head, on standardized features: strong, as there are many."""
DEV_BATCH_SIZE = 64

Result = TypeVar("Result")


class FinetuneTraining(Training):
    """Backbone and head of one trial, trained together. `backbone` is copied, not changed."""

    def __init__(self, data: SearchData, settings: TrialSettings, backbone: nn.Module, *, device: str = "cpu") -> None:
        super().__init__(data, settings, device=device)
        assert settings.finetune is not None and data.images_NHW is not None
        self.finetune = settings.finetune
        self.images_NHW = data.images_NHW
        self.augmentation = Augmentation(
            rotation_degrees=self.finetune.rotation_degrees,
            scale_jitter=self.finetune.scale_jitter,
            brightness_contrast_jitter=self.finetune.brightness_contrast_jitter,
        )
        heads = Heads(self.head_settings, seed=settings.seed)
        heads.standardize_by(*measure_features(data))
        if self.finetune.warm_start_head:
            initialize_head(heads, data, settings)
        self.module = nn.ModuleDict({"backbone": copy.deepcopy(backbone).requires_grad_(True), "heads": heads})
        self.module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.is_bfloat16 = has_native_bfloat16(self.device.type)
        self.optimizer = make_optimizer(self.module, settings)
        if self.finetune.ema_decay:
            self.ema = AveragedModel(self.module, multi_avg_fn=partial(average_weights, decay=self.finetune.ema_decay))

    def train_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Train on one batch, in as many parts as memory requires."""
        entries_1B, views_1B = self.batches.draw(step)
        images_B3HW = self.fetch_images(entries_1B[0], views_1B[0], step)
        is_frozen = step < self.finetune.freeze_backbone_epochs * self.settings.steps_per_epoch
        self._set_mode(is_frozen=is_frozen)
        loss, num_right = self._within_memory(
            partial(self._accumulate, images_B3HW, entries_1B[0], is_frozen=is_frozen)
        )
        self.optimizer.step()
        return loss, num_right / len(images_B3HW)

    def _within_memory(self, action: Callable[[], Result]) -> Result:
        """Run what processes images in parts of `micro_batch_size`; if memory runs out, again in smaller parts."""
        while True:
            try:
                return action()
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.micro_batch_size == 1:
                    raise
            self._halve_batch()

    def fetch_images(self, entries_B: np.ndarray, views_B: np.ndarray, step: int) -> Tensor:
        """Return a batch of images, augmented and normalized: [B, 3, H, W] on the device, channels last."""
        images_BHW = torch.from_numpy(self.images_NHW[self.data.rows[entries_B]]).to(self.device)
        rng = np.random.default_rng([self.settings.seed, step, 2])
        changed_BHW = augment(images_BHW, views_B, self.augmentation, rng)
        return normalize(changed_BHW).contiguous(memory_format=torch.channels_last)

    def _accumulate(self, images_B3HW: Tensor, entries_B: np.ndarray, *, is_frozen: bool) -> tuple[Tensor, Tensor]:
        """Add up the gradients of a batch; return its mean loss and the number of correct rows."""
        self.optimizer.zero_grad(set_to_none=True)
        size = len(images_B3HW)
        labels_B = torch.from_numpy(self.data.labels[entries_B].astype(np.int64)).to(self.device)
        weights_B = None
        if self.row_weights is not None:
            weights_B = torch.from_numpy(self.row_weights[entries_B]).to(self.device)
        loss_sum = torch.zeros((), device=self.device)
        num_right = torch.zeros((), device=self.device)
        for start in range(0, size, self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            labels_1b = labels_B[None, part]
            logits_1bC = self._forward(self.module, images_B3HW[part], is_frozen=is_frozen)[None]
            weights_1b = None if weights_B is None else weights_B[None, part]
            loss = per_head_loss(logits_1bC, labels_1b, weights_1b).sum() * labels_1b.numel() / size
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            num_right += (predict_class(logits_1bC.detach()) == labels_1b).float().sum()
        return loss_sum, num_right

    def _forward(self, module: nn.Module, images_B3HW: Tensor, *, is_frozen: bool = False) -> Tensor:
        """Return logits [B, C] in float32; the backbone runs in bfloat16 if the device is fast in it."""
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bfloat16),
        ):
            features_BD = module["backbone"](images_B3HW).float()  # type: ignore[index]
        logits_BC: Tensor = module["heads"].forward_one(0, features_BD)  # type: ignore[index]
        return logits_BC

    def _set_mode(self, *, is_frozen: bool) -> None:
        self.module.train()
        if is_frozen:
            self.module["backbone"].eval()
        elif self.finetune.freeze_batchnorm:
            for layer in self.module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def _halve_batch(self) -> None:
        self.micro_batch_size = math.ceil(self.micro_batch_size / 2)
        self.note = (
            f"memory ran out: batches of {self.settings.batch_size} go through in parts of {self.micro_batch_size}"
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def predict_dev(self) -> np.ndarray:
        """Return the logits [m, C] of the dev images as they are, by the weights that would be exported."""
        module = self.ema.module if self.ema is not None else self.module
        module.eval()
        return self._within_memory(
            lambda: np.concatenate([self._forward(module, images).cpu().numpy() for images in self._iterate_dev()])
        )

    def _iterate_dev(self) -> Iterator[Tensor]:
        rows = self.data.rows[self.data.dev_entries]
        step = min(DEV_BATCH_SIZE, self.micro_batch_size)
        for start in range(0, len(rows), step):
            images_BHW = torch.from_numpy(self.images_NHW[rows[start : start + step]]).to(self.device)
            yield normalize(images_BHW).contiguous(memory_format=torch.channels_last)


def initialize_head(heads: Heads, data: SearchData, settings: TrialSettings) -> None:
    """Set a linear head to the logistic regression on the frozen backbone's embeddings of the training rows.

    If these are of one class, the head stays as it is.
    """
    entries = np.flatnonzero(~np.isin(data.folds, data.held_out))
    if len(np.unique(data.labels[entries])) < 2:
        return
    features_nD = torch.from_numpy(data.features_NVD[data.rows[entries], 0].astype(np.float32))
    standardized_nD = ((features_nD - heads.mean_KD[0]) * heads.scale_KD[0]).double().numpy()
    weights = fit_weights(settings.sampling, data.bones, None if data.is_router else data.labels)
    found = LogisticRegression(C=WARM_START_C, max_iter=1000).fit(
        standardized_nD, data.labels[entries], sample_weight=None if weights is None else weights[entries]
    )
    weight_DC, bias_C = np.zeros(heads.weights[0].shape[1:]), np.zeros(data.num_outputs)
    if data.is_router and len(found.classes_) > 2:
        weight_DC[:, found.classes_], bias_C[found.classes_] = found.coef_.T, found.intercept_
    elif data.is_router:  # two classes have one row of coefficients: that of the second
        weight_DC[:, found.classes_[1]], bias_C[found.classes_[1]] = found.coef_[0], found.intercept_[0]
    else:
        weight_DC[:], bias_C[:] = found.coef_.T, found.intercept_
    with torch.no_grad():
        heads.weights[0].copy_(torch.from_numpy(weight_DC)[None])
        heads.biases[0].copy_(torch.from_numpy(bias_C)[None, None])


def make_optimizer(module: nn.ModuleDict, settings: TrialSettings) -> torch.optim.Optimizer:
    """Return AdamW with a separate learning rate for the backbone. Norms and biases are not decayed."""
    assert settings.finetune is not None
    groups = []
    for part, factor in (("backbone", settings.finetune.backbone_lr_factor or 1.0), ("heads", 1.0)):
        named = list(module[part].named_parameters())
        plain = [parameter for name, parameter in named if parameter.ndim <= 1 or name.startswith("biases.")]
        decayed = [parameter for name, parameter in named if parameter.ndim > 1 and not name.startswith("biases.")]
        groups.append({"params": decayed, "weight_decay": settings.weight_decay, "lr_factor": factor})
        groups.append({"params": plain, "weight_decay": 0.0, "lr_factor": factor})
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


@torch.no_grad()
def average_weights(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor, *, decay: float) -> None:
    """Move the averages towards the weights, faster at first, so that a short training is not held at its start."""
    num_seen = int(num_averaged)
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + num_seen) / (10 + num_seen)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out: on a GPU, in one of its libraries or in the process."""
    texts = ("can't allocate memory", "ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)
