"""Loss per head, the predicted class, and the metrics of the dev rows.

Shapes: K heads, B rows per batch, m dev rows, C outputs (1 for abnormal or not, one per bone for the router).
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mura_models.evaluation.calibration import choose_threshold
from mura_models.evaluation.metrics import Scored, macro_f1, score, to_studies
from mura_models.training.search_data import SearchData


def per_head_loss(logits_KBC: Tensor, labels_KB: Tensor, weights_KB: Tensor | None = None) -> Tensor:
    """Return each head's mean loss [K]. In their sum, every head has the gradient it would have alone."""
    if logits_KBC.shape[2] == 1:
        losses_KB = functional.binary_cross_entropy_with_logits(
            logits_KBC.squeeze(2), labels_KB.float(), reduction="none"
        )
    else:
        losses_KB = functional.cross_entropy(logits_KBC.transpose(1, 2), labels_KB, reduction="none")
    return (losses_KB if weights_KB is None else losses_KB * weights_KB).mean(1)


def predict_class(logits_C: Tensor) -> Tensor:
    """Return the likelier class along the last axis; one output stands for two classes."""
    return (logits_C.squeeze(-1) > 0).long() if logits_C.shape[-1] == 1 else logits_C.argmax(-1)


def predict_class_array(logits: np.ndarray) -> np.ndarray:
    """Return `predict_class` of an array."""
    classes: np.ndarray = predict_class(torch.from_numpy(logits)).numpy()
    return classes


def evaluate_dev(data: SearchData, dev_logits: np.ndarray) -> dict[str, float]:
    """Return metrics of the dev rows: loss, macro F1 and `image_accuracy` (at 0.5) by image, the rest by study."""
    entries = data.dev_entries
    labels = data.labels[entries]
    logits_mC, labels_m = torch.from_numpy(dev_logits), torch.from_numpy(labels.astype(np.int64))
    dev_loss = float(per_head_loss(logits_mC[None], labels_m[None]))
    classes = predict_class(logits_mC).numpy()
    image_accuracy = float((classes == labels).mean())
    if data.bone_classes:
        f1 = macro_f1(labels, classes, len(data.bone_classes))
        return {"dev_loss": dev_loss, "dev_macro_f1": f1, "dev_accuracy": image_accuracy}
    if not math.isfinite(dev_loss):
        return {"dev_loss": dev_loss}
    images = Scored(
        labels=labels,
        p_abnormal=logits_mC.squeeze(1).double().sigmoid().numpy(),
        thresholds=np.full(len(labels), 0.5),
        patients=data.studies[entries],  # no interval is asked for
    )
    studies = to_studies(images, data.studies[entries])
    threshold = choose_threshold(studies.labels, studies.p_abnormal)
    decided = replace(studies, thresholds=np.full(len(studies.labels), threshold))
    points = score(decided, ("auroc", "kappa", "accuracy"))
    measured = {"dev_loss": dev_loss, "dev_image_accuracy": image_accuracy}
    return measured | {f"dev_{metric}": value for metric, value in points.items()}
