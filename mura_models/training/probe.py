"""Train heads on cached embeddings: the backbone stays frozen and is not run in any epoch."""

import numpy as np
import torch
from torch import Tensor, nn

from mura_models.networks.heads import Heads
from mura_models.training.dev_metrics import per_head_loss, predict_class
from mura_models.training.loop import Training, TrialSettings
from mura_models.training.search_data import SearchData, measure_features


class ProbeTraining(Training):
    """The K heads of one trial, trained in parallel on embeddings under the four views."""

    def __init__(self, data: SearchData, settings: TrialSettings, *, device: str = "cpu") -> None:
        super().__init__(data, settings, device=device)
        self.heads = Heads(self.head_settings, seed=settings.seed)
        self.heads.standardize_by(*measure_features(data))
        self.module = nn.ModuleDict({"heads": self.heads}).to(self.device)
        self.optimizer = make_head_optimizer(self.heads, settings)

    def train_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Train every head on its own batch."""
        features_KBD, labels_KB, weights_KB = self._fetch_batch(step)
        logits_KBC = self.heads(features_KBD)
        loss_K = per_head_loss(logits_KBC, labels_KB, weights_KB)
        self.optimizer.zero_grad(set_to_none=True)
        loss_K.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        share_right = (predict_class(logits_KBC.detach()) == labels_KB).float().mean()
        return loss_K.detach().mean(), share_right

    def _fetch_batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        entries_KB, views_KB = self.batches.draw(step)
        features_KBD = self.data.features_NVD[self.data.rows[entries_KB], views_KB]
        labels_KB = torch.from_numpy(self.data.labels[entries_KB].astype(np.int64)).to(self.device)
        weights_KB = None
        if self.row_weights is not None:
            weights_KB = torch.from_numpy(self.row_weights[entries_KB]).to(self.device)
        return torch.from_numpy(features_KBD).to(self.device).float(), labels_KB, weights_KB

    @torch.no_grad()
    def predict_dev(self) -> np.ndarray:
        """Return the logits [m, C] of the dev rows under the plain view."""
        data = self.data
        logits_nC = np.zeros((len(data.rows), data.num_outputs), np.float32)
        for head, fold in enumerate(data.held_out):
            entries = np.flatnonzero(data.folds == fold)
            features_BD = torch.from_numpy(data.features_NVD[data.rows[entries], 0]).to(self.device).float()
            logits_nC[entries] = self.heads.forward_one(head, features_BD).cpu().numpy()
        dev_logits: np.ndarray = logits_nC[data.dev_entries]
        return dev_logits


def make_head_optimizer(heads: Heads, settings: TrialSettings) -> torch.optim.Optimizer:
    """Return AdamW, which is the paper's Adam if the decay is 0. Biases are not decayed."""
    groups = [
        {"params": list(heads.weights), "weight_decay": settings.weight_decay},
        {"params": list(heads.biases), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
