"""Router and selected models together: embeddings -> bone, probability of an abnormality, prediction.

A model is one network or several whose logits are averaged (an ensemble of seeds); a network is a backbone, named by
its key, and heads on its embeddings. Probes share the frozen backbone; a fine-tuned network has its own.

Shapes: N images, D features, C bones (classes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from mura_models.evaluation.calibration import Calibration, apply_temperature
from mura_models.networks.heads import Heads

FROZEN = "frozen"
"""Key of the backbone that was never trained here."""


class Features(Protocol):
    """A function that returns the embeddings [len(rows), D] of some of the images by the backbone of this key."""

    def __call__(self, backbone: str, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone and the heads on it."""

    backbone: str
    """Its key."""
    heads: Heads


def mean_logit(networks: Sequence[Network], features: Features, rows: np.ndarray) -> np.ndarray:
    """Return the logits [len(rows), C]: the mean over networks, each the mean over its heads."""
    parts = [
        network.heads.mean_logit(torch.from_numpy(features(network.backbone, rows).astype(np.float32))).numpy()
        for network in networks
    ]
    logits_NC: np.ndarray = parts[0] if len(parts) == 1 else np.mean(parts, axis=0)
    return logits_NC


@dataclass(frozen=True, kw_only=True)
class AbnormalityModel:
    """A specialist or a baseline with its calibration."""

    target: str
    recipe: str
    networks: tuple[Network, ...]
    calibration: Calibration

    @property
    def name(self) -> str:
        """Name of its search; its key in the assembly."""
        return f"{self.target}/{self.recipe}"

    def predict_proba(self, features: Features, rows: np.ndarray) -> np.ndarray:
        """Return `p_abnormal` [len(rows)], calibrated."""
        return apply_temperature(mean_logit(self.networks, features, rows)[:, 0], self.calibration.temperature)


@dataclass(frozen=True, kw_only=True)
class Router:
    """The networks that predict the bone."""

    recipe: str
    networks: tuple[Network, ...]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The bone predicted for each image, the same for all images of a study."""

    bones: np.ndarray
    """Class number [N]."""
    p_bone: np.ndarray
    """Probability [N] of that bone, the mean over the study's images."""
    image_bones: np.ndarray
    """Class number [N] predicted from each image alone."""


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Router, models and which of them answers for which bone."""

    classes: tuple[str, ...]
    router: Router | None
    """None if the data has one bone only, or if no router was trained."""
    models: Mapping[str, AbnormalityModel]
    """By name."""
    selected: Mapping[str, str]
    """Bone -> name of the model that answers for it."""

    @property
    def can_route(self) -> bool:
        """Whether the bone of an image can be predicted, or there is only one."""
        return self.router is not None or len(self.classes) == 1

    @property
    def networks(self) -> list[Network]:
        """Every network of router and models, in their order."""
        of_models = (network for model in self.models.values() for network in model.networks)
        return [*(self.router.networks if self.router else ()), *of_models]

    @property
    def backbones(self) -> list[str]:
        """Keys of the backbones of router and models, in their order."""
        return list(dict.fromkeys(network.backbone for network in self.networks))

    def keep_selected(self) -> "Assembly":
        """Drop the models that answer for no bone."""
        models = {name: model for name, model in self.models.items() if name in self.selected.values()}
        return replace(self, models=models)

    def route(self, features: Features, studies: np.ndarray) -> Routing:
        """Predict each study's bone from the mean of its images' probabilities; NaN probabilities without a router."""
        if self.router is None:
            nothing = np.zeros(len(studies), np.int64)
            p_N = np.full(len(studies), 1.0 if len(self.classes) == 1 else np.nan)
            return Routing(bones=nothing, p_bone=p_N, image_bones=nothing)
        logits_NC = mean_logit(self.router.networks, features, np.arange(len(studies)))
        p_NC = torch.from_numpy(logits_NC).double().softmax(1).numpy()
        _, study_of_image = np.unique(studies, return_inverse=True)
        sums_SC = np.zeros((study_of_image.max(initial=-1) + 1, p_NC.shape[1]))
        np.add.at(sums_SC, study_of_image, p_NC)
        mean_NC = (sums_SC / np.bincount(study_of_image)[:, None])[study_of_image]
        return Routing(bones=mean_NC.argmax(1), p_bone=mean_NC.max(1), image_bones=p_NC.argmax(1))

    def decode_bones(self, bones: np.ndarray, p_bone: np.ndarray) -> np.ndarray:
        """Return the names [N] of class numbers; None without a router."""
        names: np.ndarray = np.array(self.classes, dtype=object)[bones]
        names[np.isnan(p_bone)] = None
        return names

    def predict_from_probabilities(
        self, probabilities: Mapping[str, np.ndarray], bones: np.ndarray, selected: Mapping[str, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return `p_abnormal` and threshold [N] of the models in `selected` for these `bones` (class numbers).

        probabilities: each model's `p_abnormal` for all images.
        """
        p_N = np.empty(len(bones))
        threshold_N = np.empty(len(bones))
        for number, bone in enumerate(self.classes):
            is_bone_N = bones == number
            p_N[is_bone_N] = probabilities[selected[bone]][is_bone_N]
            threshold_N[is_bone_N] = self.models[selected[bone]].calibration.threshold
        return p_N, threshold_N

    def predict(self, features: Features, studies: np.ndarray) -> pd.DataFrame:
        """Return `bone_predicted, p_bone, p_abnormal, prediction`, one row per image; a model sees only its own images.

        studies: [N] codes; images of one code are routed together.
        """
        routing = self.route(features, studies)
        p_N = np.empty(len(studies))
        threshold_N = np.empty(len(studies))
        for name, model in self.models.items():
            numbers = [number for number, bone in enumerate(self.classes) if self.selected[bone] == name]
            rows = np.flatnonzero(np.isin(routing.bones, numbers))
            if len(rows):
                p_N[rows] = model.predict_proba(features, rows)
                threshold_N[rows] = model.calibration.threshold
        return pd.DataFrame(
            {
                "bone_predicted": self.decode_bones(routing.bones, routing.p_bone),
                "p_bone": routing.p_bone,
                "p_abnormal": p_N,
                "prediction": (p_N >= threshold_N).astype(np.int8),
            }
        )
