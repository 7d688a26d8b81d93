"""Disk space: an upper bound of what a run writes, compared with what is free before it starts."""

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd

from mura_models.data.cache import cache_root
from mura_models.data.preprocessing import VIEWS
from mura_models.networks.backbones import measure_backbone
from orchestrator.ingest.decode import find_decoded
from orchestrator.preflight.findings import Finding, format_bytes
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.names import ROUTER
from orchestrator.search.plan import Plan, PlannedTrial, StagePlan, holds_out_one_fold

NUM_CHECKPOINTS = 2
"""Kept of each trial: the last one and the one before."""
HEADER_BYTES = 20_000
"""Of a checkpoint: the names and positions of its tensors (measured: under 150 per tensor; a network has hundreds)."""
ROW_BYTES = 1000
"""Of an image in manifest, predictions, quarantine and cache index together (measured: 300)."""
EPOCH_BYTES = 2000
"""Of a trial's epoch in journal, trials.parquet, report and checkpoint (measured: 1,100)."""
REPORT_BYTES = 20_000_000
"""Pages, figures and sample images (measured on seven bones: 4 MB)."""
RAY_BYTES = 300_000_000
"""Space for the logs and sockets of Ray (chosen by us); spilled objects are not included."""
MIN_FREE_SHARE = 0.5
"""A run is refused if less than this share of the upper bound is free (chosen by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Bytes that a folder must have room for."""

    purpose: str
    path: Path
    num_bytes: int
    remedy: str


def forecast_disk(config: RunConfig, manifest: pd.DataFrame, plan: Plan, rundir: RunDir | None = None) -> list[Need]:
    """Forecast what a run writes: two checkpoints per trial of its largest stage, what it exports, cache and report.

    What `rundir` holds already is subtracted. Raises ConfigError for an unknown backbone.
    """
    backbone = measure_backbone(config.backbone.name)
    num_features, backbone_bytes = backbone
    num_bones = manifest["bone"].nunique()
    sizes = {trial.search: _checkpoint_bytes(config, trial, backbone, num_bones) for trial in plan.trials}
    num_exported = config.replicate_seeds if config.ensemble else 1
    # Exported models keep their checkpoints to the end, and their weights go into the bundle.
    models = max(_stage_bytes(config, stage, sizes) for stage in plan.stages)
    models += (NUM_CHECKPOINTS + 1) * num_exported * sum(sizes.values()) + backbone_bytes
    num_networks = num_exported * len({trial.search for trial in plan.trials if trial.recipe == "finetune"})
    embeddings = len(manifest) * (num_networks + len(VIEWS)) * 2 * num_features if num_networks else 0
    num_epochs = (1 + config.replicate_seeds) * sum(trial.settings.num_epochs for trial in plan.trials)
    tables = len(manifest) * ROW_BYTES + num_epochs * EPOCH_BYTES
    total = models + embeddings + tables + REPORT_BYTES
    present = _measure_folder(rundir.root) if rundir else 0
    cache, run = _cache_bytes(config, manifest, num_features, rundir), max(0, total - present)
    folder = rundir.root if rundir else Path("runs")
    return [
        Need(purpose="the cache", path=cache_root(), num_bytes=cache, remedy="another $XDG_CACHE_HOME"),
        Need(purpose="the run directory", path=folder, num_bytes=run, remedy="another --run-dir"),
    ]


def _stage_bytes(config: RunConfig, stage: StagePlan, sizes: dict[str, int]) -> int:
    """Return the bytes of all checkpoints of a stage's trials, replicates and audits."""
    trials = [sizes[trial.search] for trial in stage.trials]
    replicates = [config.replicate_seeds * sizes[search] for search in stage.searches]
    num_audits = config.num_audited if config.early_stopping else 0
    return NUM_CHECKPOINTS * (sum(trials) + sum(replicates) + num_audits * max(trials))


def _checkpoint_bytes(config: RunConfig, trial: PlannedTrial, backbone: tuple[int, int], num_bones: int) -> int:
    num_features, backbone_bytes = backbone
    num_outputs = num_bones if trial.target == ROUTER else 1
    settings = trial.settings
    widths = [num_features, *([settings.hidden_size] if settings.head == "mlp" else []), num_outputs]
    num_weights = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths)) + 2 * num_features
    num_heads = 1 if holds_out_one_fold(config, trial.recipe) else config.num_folds
    is_network = trial.recipe == "finetune"
    weights = 4 * num_heads * num_weights + is_network * backbone_bytes
    num_copies = 3 + (is_network and config.finetune.ema_decay > 0) + (config.kept_epoch == "best")  # 3: Adam has two
    dev_logits = 4 * trial.num_images * num_outputs
    return num_copies * weights + dev_logits + settings.num_epochs * EPOCH_BYTES + HEADER_BYTES


def _cache_bytes(config: RunConfig, manifest: pd.DataFrame, num_features: int, rundir: RunDir | None) -> int:
    num_images = manifest["digest"].nunique()
    images = num_images * 2 * config.preprocessing.image_size_px**2  # written again if one cannot be decoded
    embeddings = num_images * (len(VIEWS) * num_features * 2 + ROW_BYTES)
    if find_decoded(manifest, config.preprocessing, cache=cache_root()) is None:
        return images + embeddings
    return 0 if rundir and rundir.ingest.exists() else embeddings


def _measure_folder(folder: Path) -> int:
    num_bytes = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            num_bytes += path.stat().st_size if path.is_file() else 0
    return num_bytes


def ray_need() -> Need:
    """Return what a Ray that is started here writes."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # in Ray's own order
    return Need(purpose="Ray", path=Path(folder, "ray"), num_bytes=RAY_BYTES, remedy="another RAY_TMPDIR")


def inspect_disk(needs: Sequence[Need]) -> list[Finding]:
    """Compare needs with what is free, one finding per file system."""
    findings, by_device = [], defaultdict(list)
    for need in needs:
        try:
            device, free_bytes = measure_space(need.path)
        except OSError as error:
            findings.append(Finding.not_checked("disk:", error, f"check that there is room, or use {need.remedy}"))
        else:
            by_device[device].append((need, free_bytes))
    return findings + [_compare(parts) for parts in by_device.values()]


def measure_space(path: Path) -> tuple[int, int]:
    """Return the device number and free bytes of a path's file system. Raises OSError."""
    folder = find_existing(path)
    return folder.stat().st_dev, shutil.disk_usage(folder).free


def find_existing(path: Path) -> Path:
    """Return a path, or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _compare(parts: Sequence[tuple[Need, int]]) -> Finding:
    num_bytes, free_bytes = sum(need.num_bytes for need, _ in parts), min(free for _, free in parts)
    purposes = " and ".join(f"{format_bytes(need.num_bytes)} for {need.purpose} ({need.path})" for need, _ in parts)
    text = f"needs up to {purposes}, {format_bytes(free_bytes)} free"
    if num_bytes <= free_bytes:
        return Finding.ok("disk", text)
    places = " or ".join(dict.fromkeys(need.remedy for need, _ in parts if need.num_bytes))
    finding = Finding.error if num_bytes * MIN_FREE_SHARE > free_bytes else Finding.warning
    return finding("disk", text, f"free some space, or use {places}")
