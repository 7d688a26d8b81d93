"""The disk that a run needs, forecast before it starts, by config, data, plan and what is there already.

It is an upper bound: checkpoints count twice (the one before is kept while a trial runs), as if every trial of a stage
ran to its end, and images count twice while they are decoded (one that fails makes the store be written anew).
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd

from orchestrator.preflight.findings import Finding, ok, problem, warning
from orchestrator.run.config import RunConfig
from orchestrator.run.names import AUDIT_SUFFIX, REPLICATE_MARK, ROUTER
from orchestrator.search.plan import Plan, PlannedTrial, holds_out_one_fold

GENERATIONS = 2
"""Checkpoints of a trial that lie there at once: the last one and the one before."""
LEAST_SHARE = 0.5
"""Of the upper bound that a run will surely write; with less room it is not started (chosen by us)."""
NUM_VIEWS = 4
PRUNED = "PRUNED"
HEADER_BYTES = 20_000
"""Of a checkpoint: the names and places of its tensors (measured: under 150 a tensor; a network has hundreds)."""
BYTES_PER_NAME = 100
"""Of an image in the index of a cache entry: its digest, with quotation marks."""
BYTES_PER_ROW = 1000
"""Of an image in the manifest, predictions and quarantine together (measured: 300)."""
BYTES_PER_EPOCH = 2000
"""Of an epoch of a trial in journal, trials.parquet, report and checkpoint (measured: 1,100)."""
PAGES_BYTES = 20_000_000
"""Report, its figures and data.html (measured on seven bones: 4 MB)."""
SAMPLES_PER_BONE = 8
RAY_BYTES = 300_000_000
"""What Ray's temporary folder should have for logs and sockets (chosen by us); objects spilt there are not forecast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSize:
    """What a backbone weighs."""

    num_features: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Present:
    """What of a run lies there already."""

    has_images: bool = False
    has_embeddings: bool = False
    image_bytes: int = 0
    """Of a store that is half filled."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Trial, audit or replicate that has ended -> how."""
    checkpoint_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of each trial, audit and replicate."""
    other_bytes: int = 0
    """Of the run directory, save its checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskForecast:
    """Bytes that a run has yet to write, at most."""

    cache: int
    run: int


def forecast_disk(
    config: RunConfig, manifest: pd.DataFrame, plan: Plan, size: BackboneSize, present: Present
) -> DiskForecast:
    """Return what the run would still write into the cache and into its directory, at the highest."""
    num_images = manifest["digest"].nunique()
    return DiskForecast(
        cache=_forecast_cache(config, num_images, size, present),
        run=_forecast_checkpoints(config, manifest, plan, size, present)
        + max(0, _forecast_rest(config, manifest, plan, size) - present.other_bytes),
    )


def _forecast_cache(config: RunConfig, num_images: int, size: BackboneSize, present: Present) -> int:
    index = num_images * BYTES_PER_NAME
    images = 0 if present.has_images else num_images * config.preprocessing.image_size_px**2 + index
    embeddings = 0 if present.has_embeddings else num_images * NUM_VIEWS * size.num_features * 2 + index
    return max(2 * images, images + embeddings) - min(images, present.image_bytes)


def _forecast_checkpoints(
    config: RunConfig, manifest: pd.DataFrame, plan: Plan, size: BackboneSize, present: Present
) -> int:
    """Return the peak over the stages: what earlier ones leave, and every training of the one that runs."""
    num_bones = manifest.loc[manifest["split"] == "train", "bone"].nunique()
    peak = left = 0
    for number in plan.stages:
        stage = plan.of_stage(number)
        weights = {
            trial.search: GENERATIONS * measure_checkpoint(config, trial, size, num_bones) for trial in stage.trials
        }
        ahead = _list_ahead(config, stage, weights, present)
        running = sum(
            num_bytes
            for name, num_bytes in present.checkpoint_bytes.items()
            if name not in present.states and any(name.startswith(f"{search}/") for search in weights)
        )
        new = max(0, sum(num_bytes for _, num_bytes in ahead) - running)
        partial = max((num_bytes for _, num_bytes in ahead), default=0) // GENERATIONS  # until a file is whole
        peak = max(peak, left + new + partial)
        unended = {search for search, _ in ahead}
        left += sum(
            _weigh_left(config, search, num_bytes, present, is_ended=search not in unended)
            for search, num_bytes in weights.items()
        )
    return peak


def _list_ahead(config: RunConfig, stage: Plan, weights: Mapping[str, int], present: Present) -> list[tuple[str, int]]:
    """Return search and bytes of every trial, audit and replicate of a stage that has not ended."""
    states = present.states
    searches = [trial.search for trial in stage.trials if trial.trial not in states]
    for search in weights:
        ended = sum(name.startswith(f"{search}/") and REPLICATE_MARK in name for name in states)
        searches += [search] * (config.replicate_seeds - ended)
    if config.early_stopping:
        stoppable = [trial for trial in stage.trials if states.get(trial.trial, PRUNED) == PRUNED]
        audits = sorted((trial.search for trial in stoppable), key=lambda search: -weights[search])
        ended = sum(trial.trial + AUDIT_SUFFIX in states for trial in stage.trials)
        searches += audits[: config.num_audited][ended:]
    return [(search, weights[search]) for search in searches]


def _weigh_left(config: RunConfig, search: str, num_bytes: int, present: Present, *, is_ended: bool) -> int:
    """Return the change on the disk once a search is over: what it ships stays, all else goes."""
    there = sum(size for name, size in present.checkpoint_bytes.items() if name.startswith(f"{search}/"))
    change = _count_shipped(config) * num_bytes - there
    return min(0, change) if is_ended else change


def _count_shipped(config: RunConfig) -> int:
    return config.replicate_seeds if config.ensemble else 1


def measure_checkpoint(config: RunConfig, trial: PlannedTrial, size: BackboneSize, num_bones: int) -> int:
    """Return the bytes of one checkpoint of a trial: weights, Adam's moments, average and best epoch, dev logits."""
    num_outputs = num_bones if trial.target == ROUTER else 1
    is_network = trial.recipe == "finetune"
    weights = _weigh_heads(config, trial, size, num_outputs) + (size.num_bytes if is_network else 0)
    num_copies = 3 + (is_network and config.finetune.ema_decay > 0) + (config.kept_epoch == "best")
    return num_copies * weights + 4 * trial.num_images * num_outputs + trial.num_epochs * BYTES_PER_EPOCH + HEADER_BYTES


def _weigh_heads(config: RunConfig, trial: PlannedTrial, size: BackboneSize, num_outputs: int) -> int:
    settings = trial.settings(config)
    sizes = [size.num_features, *([settings.hidden_size] if settings.head == "mlp_probe" else []), num_outputs]
    num_weights = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
    num_heads = 1 if holds_out_one_fold(config, trial.recipe) else config.num_folds
    return 4 * num_heads * (num_weights + 2 * size.num_features)  # each feature has a mean and a scale


def _forecast_rest(config: RunConfig, manifest: pd.DataFrame, plan: Plan, size: BackboneSize) -> int:
    """Return what lies beside the checkpoints: bundle, embeddings by networks trained here, tables, images, pages."""
    bones = manifest["bone"].nunique()
    firsts = {trial.search: trial for trial in plan.trials}
    num_networks = _count_shipped(config) * sum(trial.recipe == "finetune" for trial in firsts.values())
    heads = _count_shipped(config) * sum(
        _weigh_heads(config, trial, size, bones if trial.target == ROUTER else 1) for trial in firsts.values()
    )
    embedded = num_networks * len(manifest)  # dev and test, as they are
    if any(trial.depends_on for trial in plan.trials):
        embedded += NUM_VIEWS * len(manifest)
    trainings = [trial.num_epochs for trial in plan.trials] + [
        trial.num_epochs for trial in firsts.values() for _ in range(config.replicate_seeds)
    ]
    return (
        (1 + num_networks) * size.num_bytes
        + heads
        + embedded * (2 * size.num_features + BYTES_PER_NAME)
        + len(manifest) * BYTES_PER_ROW
        + sum(trainings) * BYTES_PER_EPOCH
        + bones * SAMPLES_PER_BONE * config.preprocessing.image_size_px**2
        + PAGES_BYTES
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Bytes that a place must have room for."""

    what: str
    path: Path
    num_bytes: int
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """The file system that a place lies on."""

    device: int
    free_bytes: int


def measure_space(path: Path) -> Space:
    """Look at the file system of a path, or of its nearest parent that exists. Raises OSError."""
    there = find_existing(path)
    return Space(device=there.stat().st_dev, free_bytes=shutil.disk_usage(there).free)


def find_existing(path: Path) -> Path:
    """Return a path, or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def judge_disk(needs: Sequence[tuple[Need, Space]]) -> list[Finding]:
    """Compare what is needed with what is free, a file system at a time."""
    together = defaultdict(list)
    for need, space in needs:
        together[space.device].append((need, space.free_bytes))
    findings = []
    for parts in together.values():
        free_bytes = min(free for _, free in parts)
        told = " and ".join(f"{format_bytes(need.num_bytes)} for {need.what} ({need.path})" for need, _ in parts)
        text = f"needs up to {told}, {format_bytes(free_bytes)} free"
        num_bytes = sum(need.num_bytes for need, _ in parts)
        remedies = dict.fromkeys(need.remedy for need, _ in parts if need.num_bytes)
        remedy = f"make room, or give {' or '.join(remedies)}"
        if num_bytes * LEAST_SHARE > free_bytes:
            findings.append(problem("disk", text, remedy))
        elif num_bytes > free_bytes:
            findings.append(warning("disk", text, remedy))
        else:
            findings.append(ok("disk", text))
    return findings


def format_bytes(num_bytes: int) -> str:
    """Return a size as people say it."""
    if num_bytes < 10**6:
        return f"{math.ceil(num_bytes / 1000)} kB"
    return f"{num_bytes / 10**6:.0f} MB" if num_bytes < 10**9 else f"{num_bytes / 10**9:.1f} GB"
