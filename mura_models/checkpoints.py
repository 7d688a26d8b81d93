"""A trial's checkpoint: one safetensors file with heads, optimizer, dev logits and the history of its epochs."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from mura_models.heads import Heads, HeadSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that resuming exactly needs, and all that the aggregate reads."""

    head_settings: HeadSettings
    heads: dict[str, Tensor]
    """State of the heads."""
    optimizer: dict[int, dict[str, Tensor]]
    """Moments and step count by parameter."""
    dev_logits: np.ndarray
    """Out-of-fold logits [n, C] in the order of the search's rows."""
    history: list[dict[str, Any]]
    """Every epoch so far."""
    best_score: float
    best_epoch: int

    def to_bytes(self) -> bytes:
        """Give the content of the file."""
        tensors = {f"heads.{name}": tensor for name, tensor in self.heads.items()}
        for number, state in self.optimizer.items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        tensors["dev_logits"] = torch.from_numpy(self.dev_logits)
        progress = {"best_score": self.best_score, "best_epoch": self.best_epoch, "history": self.history}
        metadata = {"progress": json.dumps(progress), "head": json.dumps(asdict(self.head_settings))}
        content: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """Read what `to_bytes` gave."""
        tensors, metadata = load(content), _read_metadata(content)
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _pick(tensors, "optimizer.").items():
            number, key = name.split(".", 1)
            optimizer.setdefault(int(number), {})[key] = tensor
        return cls(
            head_settings=HeadSettings(**json.loads(metadata["head"])),
            heads=_pick(tensors, "heads."),
            optimizer=optimizer,
            dev_logits=tensors["dev_logits"].numpy(),
            **json.loads(metadata["progress"]),
        )

    def build_heads(self) -> Heads:
        """Give the trained heads."""
        heads = Heads(self.head_settings)
        heads.load_state_dict(self.heads)
        return heads.eval()


def _read_metadata(content: bytes) -> dict[str, str]:
    """Read the texts in the head of a safetensors file, which safetensors gives for files on disk only."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def _pick(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
