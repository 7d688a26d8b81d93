"""The last layers, K of them in parallel: one head per fold, all trained by the same matrix products.

Shapes: K heads (folds), B rows, D features, C outputs (1 for abnormal or not, one per bone for the router).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mura_models.errors import ConfigError

HeadKind = Literal["linear", "mlp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSettings:
    """The shape of K heads."""

    kind: HeadKind
    """One layer, or two with a hidden one."""
    num_heads: int
    num_features: int
    num_outputs: int = 1
    hidden_size: int = 512
    """Width of the hidden layer of an mlp (paper 3.2: 512)."""
    activation: Literal["relu", "none"] = "relu"
    """Between the two layers of an mlp; the paper names none, which makes the two one linear map."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise ConfigError(f"kind={self.kind!r}: must be linear or mlp")
        for name in ("num_heads", "num_features", "num_outputs", "hidden_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.activation not in ("relu", "none"):
            raise ConfigError(f"activation={self.activation!r}: must be relu or none")


MIN_STD = 1e-5
"""Features with a smaller standard deviation are zeroed: division would amplify noise."""


class Heads(nn.Module):
    """K heads over standardized features; head k never sees the rows of fold k."""

    mean_KD: Tensor
    scale_KD: Tensor

    def __init__(self, settings: HeadSettings, *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        generator = torch.Generator().manual_seed(seed)
        sizes = [settings.num_features, settings.num_outputs]
        if settings.kind == "mlp":
            sizes.insert(1, settings.hidden_size)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)  # as torch.nn.Linear starts
            for parameters, shape in ((self.weights, (fan_in, fan_out)), (self.biases, (1, fan_out))):
                start = torch.empty(settings.num_heads, *shape).uniform_(-bound, bound, generator=generator)
                parameters.append(nn.Parameter(start))
        self.register_buffer("mean_KD", torch.zeros(settings.num_heads, settings.num_features))
        self.register_buffer("scale_KD", torch.ones(settings.num_heads, settings.num_features))

    def standardize_by(self, mean_KD: Tensor, std_KD: Tensor) -> None:
        """Set each head's feature mean and standard deviation, which come from its own training rows."""
        self.mean_KD.copy_(mean_KD)
        is_varying_KD = std_KD > MIN_STD
        self.scale_KD.copy_(torch.where(is_varying_KD, 1 / std_KD.clamp(min=MIN_STD), 0.0))

    def forward(self, features_KBD: Tensor) -> Tensor:
        """Return each head's logits [K, B, C] for its own rows."""
        hidden_KBD = (features_KBD - self.mean_KD[:, None]) * self.scale_KD[:, None]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer and self.settings.activation == "relu":
                hidden_KBD = hidden_KBD.relu()
            hidden_KBD = torch.baddbmm(bias, hidden_KBD, weight)
        return hidden_KBD

    def forward_one(self, head: int, features_BD: Tensor) -> Tensor:
        """Return the logits [B, C] of head number `head`."""
        hidden_BD = (features_BD - self.mean_KD[head]) * self.scale_KD[head]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer and self.settings.activation == "relu":
                hidden_BD = hidden_BD.relu()
            hidden_BD = torch.addmm(bias[head], hidden_BD, weight[head])
        return hidden_BD

    @torch.no_grad()
    def mean_logit(self, features_BD: Tensor) -> Tensor:
        """Return the exported model's logits [B, C]: the mean over the K heads."""
        total_BC = self.forward_one(0, features_BD)
        for head in range(1, self.settings.num_heads):
            total_BC = total_BC + self.forward_one(head, features_BD)
        return total_BC / self.settings.num_heads
