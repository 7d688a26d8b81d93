"""What of a run lies on the disk already, what it would still write, and whether there is room."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pandas as pd

from mura_models.data.cache import open_cached
from mura_models.errors import UserError
from mura_models.networks.backbones import find_download, load_backbone, measure_backbone
from mura_models.networks.embeddings import embedding_key
from mura_models.networks.runtimes import Device, Precision, RuntimeChoice
from mura_models.storage import UNFINISHED
from orchestrator.ingest.dataset import cache_root
from orchestrator.ingest.decode import name_images
from orchestrator.ingest.embed import name_embeddings
from orchestrator.preflight.disk_forecast import (
    RAY_BYTES,
    BackboneSize,
    DiskForecast,
    Need,
    Present,
    forecast_disk,
    judge_disk,
    measure_space,
)
from orchestrator.preflight.findings import Finding, not_checked
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.search.plan import Plan

CHOICES = (
    RuntimeChoice(runtime="onnxruntime", precision="float32", device="cpu"),
    *(
        RuntimeChoice(runtime="torch", precision=precision, device=device)
        for precision, device in product(get_args(Precision), get_args(Device))
    ),
)
"""All that may have run the backbone."""


def examine_disk(
    config: RunConfig, manifest: pd.DataFrame, plan: Plan, rundir: RunDir, *, starts_ray: bool
) -> list[Finding]:
    """Return whether there is room for what the run would still write."""
    forecast = forecast_run(config, manifest, plan, rundir)
    needs = [
        Need(what="the cache", path=cache_root(), num_bytes=forecast.cache, remedy="another $XDG_CACHE_HOME"),
        Need(what="the run directory", path=rundir.root, num_bytes=forecast.run, remedy="another --run-dir"),
    ]
    return weigh([*needs, *([need_of_ray()] if starts_ray else [])])


def need_of_ray() -> Need:
    """Return what a Ray that is started here writes beside the run."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # in Ray's own order
    return Need(what="Ray", path=Path(folder, "ray"), num_bytes=RAY_BYTES, remedy="another RAY_TMPDIR")


def weigh(needs: list[Need]) -> list[Finding]:
    """Compare needs with the file systems they lie on."""
    spaces, findings = [], []
    for need in needs:
        try:
            spaces.append((need, measure_space(need.path)))
        except OSError as error:
            findings.append(not_checked("disk:", error, f"see that there is room, or give {need.remedy}"))
    return findings + judge_disk(spaces)


def forecast_run(config: RunConfig, manifest: pd.DataFrame, plan: Plan, rundir: RunDir | None) -> DiskForecast:
    """Return what the run would still write. Raises ConfigError for an unknown backbone."""
    num_features, num_bytes = measure_backbone(config.backbone.name)
    size = BackboneSize(num_features=num_features, num_bytes=num_bytes)
    return forecast_disk(config, manifest, plan, size, find_present(config, manifest, rundir))


def find_present(config: RunConfig, manifest: pd.DataFrame, rundir: RunDir | None) -> Present:
    """Look at what lies in the cache and in the run directory."""
    store = name_images(cache_root(), config.preprocessing, sorted(set(manifest["digest"])))
    images = open_cached(store)
    has_embeddings = images is not None and _has_embeddings(config, images.digests)
    checkpoint_bytes, other_bytes = _measure_files(rundir) if rundir else ({}, 0)
    return Present(
        has_images=images is not None,
        has_embeddings=has_embeddings,
        image_bytes=_measure_unfinished(store),
        states=_read_states(rundir) if rundir else {},
        checkpoint_bytes=checkpoint_bytes,
        other_bytes=other_bytes,
    )


def _has_embeddings(config: RunConfig, digests: Sequence[str]) -> bool:
    folder = cache_root() / "embeddings"
    try:
        if not folder.exists() or find_download(config.backbone):
            return False
        backbone = load_backbone(config.backbone)
    except UserError:
        return False  # which the weights' own finding says
    keys = [embedding_key(config.preprocessing, backbone, choice) for choice in CHOICES]
    return any(name_embeddings(folder, key, digests).exists() for key in keys)


def _measure_unfinished(store: Path) -> int:
    """Return the bytes that a writer which was stopped has on the disk: its file has holes where images are to come."""
    unfinished = store.with_name(f".{store.name}{UNFINISHED}")
    num_bytes = 0
    for path in unfinished.glob("*"):
        with suppress(OSError):  # just finished by another run
            num_bytes += path.stat().st_blocks * 512
    return num_bytes


def _read_states(rundir: RunDir) -> dict[str, str]:
    """Read how each training ended; unlike a Journal, this leaves alone what another process may be writing."""
    states = {}
    for path in (rundir.journal, rundir.audit_journal, rundir.replicate_journal):
        content = path.read_bytes() if path.exists() else b""
        for text in content[: content.rfind(b"\n") + 1].splitlines():
            with suppress(ValueError):  # a damaged line, which the journal's own reader tells of
                line = json.loads(text)
                if line["state"] != "RUNNING":
                    states[line["trial"]] = line["state"]
    return states


def _measure_files(rundir: RunDir) -> tuple[dict[str, int], int]:
    """Return the bytes of each trial's checkpoints, and of all else in the run directory."""
    checkpoint_bytes: Counter[str] = Counter()
    other_bytes = 0
    for path in rundir.root.rglob("*"):
        with suppress(OSError):  # gone, or not ours
            num_bytes = path.stat().st_size if path.is_file() else 0
            if path.parent == rundir.checkpoints:
                trial = unquote(path.name.removesuffix(".safetensors").removesuffix(".previous"))
                checkpoint_bytes[trial] += num_bytes
            else:
                other_bytes += num_bytes
    return dict(checkpoint_bytes), other_bytes
