"""A trial's checkpoint, a safetensors file with a checksum: weights, optimizer, dev logits and history of epochs."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from mura_models.networks.heads import Heads, HeadSettings
from mura_models.training.checksums import add_checksum, reserve_checksum

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that exact resuming needs, and all that the evaluation reads."""

    head_settings: HeadSettings
    state: Tensors
    """Of what is trained: `heads.*`, and `backbone.*` if the whole network is."""
    optimizer: dict[int, Tensors]
    """Moments and step count by parameter."""
    ema: Tensors | None
    """The moving average of the weights, if there is one."""
    best_state: Tensors | None
    """Weights of the best epoch, if that one is exported."""
    dev_logits: np.ndarray
    """Logits [m, C] of the search's dev rows by the exported weights."""
    history: list[dict[str, Any]]
    """Every epoch so far."""
    best_score: float
    best_epoch: int
    micro_batch_size: int

    @property
    def exported(self) -> Tensors:
        """The weights that become a model: the best epoch's, else the average's, else the last."""
        if self.best_state is not None:
            return self.best_state
        return self.state if self.ema is None else _pick(self.ema, "module.")

    def to_bytes(self) -> bytes:
        """Return the content of the file, with its checksum."""
        parts = {"state": self.state, "ema": self.ema or {}, "best": self.best_state or {}}
        parts |= {f"optimizer.{number}": state for number, state in self.optimizer.items()}
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        tensors["dev_logits"] = torch.from_numpy(self.dev_logits)
        progress = {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "micro_batch_size": self.micro_batch_size,
            "history": self.history,
        }
        metadata = reserve_checksum({"progress": json.dumps(progress), "head": json.dumps(asdict(self.head_settings))})
        return add_checksum(
            save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """Read the content that `to_bytes` returned."""
        tensors, metadata = load(content), _read_metadata(content)
        optimizer: dict[int, Tensors] = {}
        for name, tensor in _pick(tensors, "optimizer.").items():
            number, key = name.split(".", 1)
            optimizer.setdefault(int(number), {})[key] = tensor
        return cls(
            head_settings=HeadSettings(**json.loads(metadata["head"])),
            state=_pick(tensors, "state."),
            optimizer=optimizer,
            ema=_pick(tensors, "ema.") or None,
            best_state=_pick(tensors, "best.") or None,
            dev_logits=tensors["dev_logits"].numpy(),
            **json.loads(metadata["progress"]),
        )

    def build_heads(self) -> Heads:
        """Return the trained heads."""
        heads = Heads(self.head_settings)
        heads.load_state_dict(_pick(self.exported, "heads."))
        return heads.eval()

    def backbone_state(self) -> Tensors:
        """Return the trained backbone's weights; empty if it was frozen."""
        return _pick(self.exported, "backbone.")


def _read_metadata(content: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file; the library reads them from files on disk only."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def _pick(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
