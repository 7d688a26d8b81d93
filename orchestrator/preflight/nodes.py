"""The nodes of a cluster: facts gathered by a task on each, compared with this machine."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.preflight.findings import Finding

NODE_TIMEOUT_S = 150.0
"""How long a node may take to answer: after 60 s Ray notices that a worker died while it started (chosen by us)."""
RETRIES = 3
"""How often a task is repeated if its worker dies."""
TRANSFER_TIMEOUT_S = 30.0
"""How long PROBE_BYTES may take from a node to the driver (chosen by us)."""
PROBE_BYTES = 2**18
PROJECT = "this project"
LISTED = ("torch", "torchvision", "timm", "onnxruntime", "numpy")
"""Packages that decide the last digits of a figure: they should be the same on all nodes."""
SAME_INSTALL = "install the same packages there (constraints.txt lists the versions)"

Install = Mapping[str, str | None]
"""The versions of python, ray and LISTED that a process runs on, and a digest for PROJECT; None if not installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """What a task on one node found there."""

    name: str
    num_gpus: float = 0.0
    """GPUs that Ray schedules on it."""
    error: str = ""
    """Why no task on it returned."""
    install: Install = field(default_factory=dict)
    torch_cuda: str | None = None
    """The CUDA (or ROCm) version that its torch was built for; None in a build for CPUs."""
    devices: tuple[str, ...] = ()
    """The GPUs that its torch sees."""
    storage_error: str = ""
    """Why bytes from it did not reach the run directory."""


def ask_nodes(folder: Path) -> list[NodeFacts]:
    """Run a task on every living node that looks at it and sends bytes into `folder`, where they leave no trace."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # a node may lack this project, or have another version of it
    try:
        asked = [_ask(node) for node in nodes]
        ray.wait([facts for facts, _ in asked], num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
    return [_read_answer(node, facts, probe, folder) for node, (facts, probe) in zip(nodes, asked, strict=True)]


def _ask(node: Mapping[str, Any]) -> Any:
    has_gpus = node["Resources"].get("GPU", 0) > 0
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = {"max_calls": 1} if has_gpus else {}  # a process that started CUDA would keep some of its memory
    task = ray.remote(num_cpus=0, num_returns=2, max_retries=RETRIES, scheduling_strategy=there, **options)
    return task(gather_node).remote(has_gpus)


def _read_answer(node: Mapping[str, Any], facts: Any, probe: Any, folder: Path) -> NodeFacts:
    known = NodeFacts(name=node["NodeManagerAddress"], num_gpus=node["Resources"].get("GPU", 0.0))
    try:
        known = replace(known, **ray.get(facts, timeout=1))
    except GetTimeoutError:
        return replace(known, error=f"no answer within {NODE_TIMEOUT_S:g} s")
    except Exception as error:  # any error here is a fact about the node
        return replace(known, error=str(error) or type(error).__name__)
    try:
        _write_probe(ray.get(probe, timeout=TRANSFER_TIMEOUT_S), folder / f".probe-{node['NodeID']}")
    except Exception as error:  # any error here would keep checkpoints from the run directory
        return replace(known, storage_error=(str(error).strip().splitlines() or [type(error).__name__])[-1])
    return known


def _write_probe(content: bytes, path: Path) -> None:
    try:
        path.write_bytes(content)
        if path.read_bytes() != content:
            raise OSError("they came back changed")
    finally:
        path.unlink(missing_ok=True)


def gather_node(has_gpus: bool) -> tuple[dict[str, Any], bytes]:
    """Return NodeFacts of the node that this runs on, as plain values, and bytes for the run directory."""
    facts = {"install": gather_install()} | (_gather_gpus() if has_gpus else {})
    return facts, os.urandom(PROBE_BYTES)  # so many that Ray sends them from node to node, as it sends checkpoints


def _gather_gpus() -> dict[str, Any]:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from a task that asks for none
    torch = importlib.import_module("torch")
    num_seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = tuple(torch.cuda.get_device_name(number) for number in range(num_seen))
    return {"devices": devices, "torch_cuda": torch.version.cuda or torch.version.hip}


def gather_install() -> dict[str, str | None]:
    """Return Install of this process, without importing any package."""
    python = platform.python_version().rpartition(".")[0]
    return {"python": python} | {name: _find_version(name) for name in ("ray", *LISTED)} | {PROJECT: _digest_code()}


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)  # of several, the one that is imported
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest_code() -> str | None:
    digest = hashlib.sha256()
    for spec in map(importlib.util.find_spec, ("mura_models", "orchestrator")):
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def inspect_node(node: NodeFacts, here: Install, *, uses_gpus: bool) -> list[Finding]:
    """Compare a node with this process; check its GPUs and its way to the run directory."""
    subject = f"node {node.name}"
    if node.error:
        return [Finding.not_checked(subject, node.error, f"check that it is up, and {SAME_INSTALL}")]
    findings = list(_compare_installs(subject, node.install, here))
    if node.num_gpus and not node.devices:
        built_for = f"CUDA {node.torch_cuda}" if node.torch_cuda else "CPUs"
        text = f"has {node.num_gpus:g} GPUs for Ray, but its torch, built for {built_for}, sees none"
        remedy = "check `nvidia-smi` and install a torch for its CUDA version there, or use --gpus-per-trial 0"
        findings.append(Finding("error" if uses_gpus else "warning", subject, text, remedy))
    if node.storage_error:
        text = f"cannot send bytes to the run directory ({node.storage_error})"
        remedy = "open the ports between it and this machine, and check that the directory can be written to"
        findings.append(Finding.error(subject, text, remedy))
    if any(finding.level == "error" for finding in findings):
        return findings
    versions = ", ".join(f"{name} {node.install.get(name)}" for name in ("python", "ray", "torch"))
    gpus = f", {node.num_gpus:g} GPUs ({', '.join(dict.fromkeys(node.devices))})" if node.devices else ""
    return [Finding.ok(subject, f"{versions}{gpus}, can reach the run directory"), *findings]


def _compare_installs(subject: str, there: Install, here: Install) -> Iterator[Finding]:
    different = [name for name in here if here[name] != there.get(name)]
    for name in ("python", "ray"):
        if name in different:
            text = f"has {name} {there.get(name)}, here it is {here[name]}"
            yield Finding.error(subject, text, f"install {name} {here[name]} there")
    missing = [name for name in different if name in (*LISTED, PROJECT) and not there.get(name)]
    if missing:
        yield Finding.error(subject, f"lacks {', '.join(missing)}", f"{SAME_INSTALL}, and this project")
    packages = [name for name in different if name in LISTED and name not in missing]
    if packages:
        theirs, mine = (", ".join(f"{name} {install[name]}" for name in packages) for install in (there, here))
        text = f"has {theirs}, here it is {mine}: figures may differ in their last digits"
        yield Finding.warning(subject, text, SAME_INSTALL)
    if PROJECT in different and PROJECT not in missing:
        text = "has another version of this project's code"
        yield Finding.warning(subject, text, "install the version of this machine there")
