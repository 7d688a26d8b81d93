"""How fast whole networks are trained from the store, against the same step on a batch that is already in memory.

    python -m benchmarks.finetune_throughput --image-size 128 --steps 30

Both kinds of step take turns, so that a busy machine slows both; the ratio is the median over the pairs. Ends with exit
code 1 where it is below 0.95, be it without augmentation or with all of it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.training.finetune import FinetuneTraining
from mura_models.training.finetune_settings import FinetuneSettings
from mura_models.training.loop import TrialSettings
from mura_models.training.search_data import SearchData

MIN_RATIO = 0.95
NUM_IMAGES = 1024
NUM_WARM_UP = 2
AUGMENTED = {"rotation_degrees": 30.0, "scale_jitter": 0.1, "brightness_contrast_jitter": 0.1}


class InMemory(FinetuneTraining):
    """The same training on one batch that was fetched once."""

    kept: Tensor | None = None

    def fetch_images(self, entries_B: np.ndarray, views_B: np.ndarray, step: int) -> Tensor:
        """Return the first batch again."""
        if self.kept is None:
            self.kept = super().fetch_images(entries_B, views_B, step)
        return self.kept


def main() -> int:
    """Measure and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images_NHW = _write_images(Path(folder) / "images.npy", args.image_size)
        ratios = [_compare(images_NHW, args, name, changes) for name, changes in (("none", {}), ("all", AUGMENTED))]
    if min(ratios) < MIN_RATIO:
        print(f"below {MIN_RATIO}", file=sys.stderr)
        return 1
    return 0


def _write_images(path: Path, size: int) -> np.ndarray:
    """Write a store of noise, as large in memory as a real one, and map it."""
    images_NHW = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, size, size), np.uint8)
    np.save(path, images_NHW)
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def _compare(images_NHW: np.ndarray, args: argparse.Namespace, name: str, augmentation: dict[str, float]) -> float:
    """Time both kinds of step in turns and print one line; return the time in memory over that from the store."""
    stored, in_memory = (_make_training(kind, images_NHW, args, augmentation) for kind in (FinetuneTraining, InMemory))
    pairs = []
    for step in range(NUM_WARM_UP + args.steps):
        order = (stored, in_memory) if step % 2 else (in_memory, stored)
        seconds = {id(training): _time_step(training, step) for training in order}
        pairs.append((seconds[id(stored)], seconds[id(in_memory)]))
    stored_s, in_memory_s = (np.array(times) for times in zip(*pairs[NUM_WARM_UP:], strict=True))
    ratio = float(np.median(in_memory_s / stored_s))
    print(
        f"{args.backbone}, {args.image_size} px, batches of {args.batch_size}, {args.device}, augmentation {name}: "
        f"{args.batch_size / np.median(stored_s):.1f} images/s from the store, "
        f"{args.batch_size / np.median(in_memory_s):.1f} in memory, ratio {ratio:.3f}",
        flush=True,
    )
    return ratio


def _make_training(
    kind: type[FinetuneTraining], images_NHW: np.ndarray, args: argparse.Namespace, augmentation: dict[str, float]
) -> FinetuneTraining:
    backbone = load_backbone(BackboneSpec(name=args.backbone, weights="random"))
    entries = np.arange(NUM_IMAGES)
    data = SearchData(
        features_NVD=np.zeros((NUM_IMAGES, 4, backbone.num_features), np.float16),
        rows=entries,
        labels=entries % 2,
        folds=entries % 5,
        studies=entries,
        patients=entries,
        bones=np.full(NUM_IMAGES, "bone"),
        held_out=(0,),
        images_NHW=images_NHW,
    )
    settings = TrialSettings(
        head="linear",
        lr=1e-4,
        steps_per_epoch=args.steps + NUM_WARM_UP,
        batch_size=args.batch_size,
        finetune=FinetuneSettings(warm_start_head=False, **augmentation),  # type: ignore[arg-type]
    )
    return kind(data, settings, backbone.module, device=args.device)


def _time_step(training: FinetuneTraining, step: int) -> float:
    """Return the seconds that a step takes, to its last kernel."""
    start = time.perf_counter()
    training.train_step(step)
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
