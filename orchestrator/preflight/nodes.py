"""The nodes of a cluster: facts gathered by a task on each, compared with this machine."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.preflight.findings import Finding

NODE_TIMEOUT_S = 150.0
"""How long a node may take to answer: after 60 s Ray notices that a worker died while it started (chosen by us)."""
RETRIES = 3
"""How often a task is repeated if its worker dies."""
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
    here = ray.get_runtime_context().get_node_id()
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # a node may lack this project, or have another version of it
    try:
        near = NodeAffinitySchedulingStrategy(here, soft=False)
        options = {"num_cpus": 0, "max_restarts": RETRIES, "max_task_retries": RETRIES}
        probe = ray.remote(StorageProbe).options(**options, scheduling_strategy=near).remote(str(folder))
        asked = {node["NodeID"]: _ask(node, probe) for node in nodes}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
    return [_read_answer(node, asked[node["NodeID"]], ready) for node in nodes]


def _ask(node: Mapping[str, Any], probe: Any) -> Any:
    num_gpus = node["Resources"].get("GPU", 0)
    options = {"max_calls": 1} if num_gpus else {}  # a process that started CUDA would keep some of its memory
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=RETRIES, scheduling_strategy=there, **options)(gather_node)
    return task.remote([probe], node["NodeID"], bool(num_gpus))


def _read_answer(node: Mapping[str, Any], reference: Any, ready: list[Any]) -> NodeFacts:
    known: dict[str, Any] = {"name": node["NodeManagerAddress"], "num_gpus": node["Resources"].get("GPU", 0.0)}
    if reference not in ready:
        return NodeFacts(**known, error=f"no answer within {NODE_TIMEOUT_S:g} s")
    try:
        answer = ray.get(reference)
    except Exception as error:  # any error here is a fact about the node
        return NodeFacts(**known, error=str(error) or type(error).__name__)
    return NodeFacts(**known, **answer)


class StorageProbe:
    """An actor on the driver's node that writes bytes into a folder, reads them back and removes them."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def pass_through(self, name: str, content: bytes) -> bytes:
        """Return the bytes as they were read back."""
        path = self._folder / name
        try:
            path.write_bytes(content)
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)


def gather_node(probe: list[Any], node_id: str, has_gpus: bool) -> dict[str, Any]:
    """Return NodeFacts of the node that this runs on, as plain values."""
    facts: dict[str, Any] = {"install": gather_install()}
    content = os.urandom(PROBE_BYTES)
    try:
        if ray.get(probe[0].pass_through.remote(f".probe-{node_id}", content), timeout=NODE_TIMEOUT_S / 2) != content:
            facts["storage_error"] = "they came back changed"
    except Exception as error:  # any error here would keep checkpoints from the run directory
        facts["storage_error"] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return facts | (_gather_gpus() if has_gpus else {})


def _gather_gpus() -> dict[str, Any]:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from a task that asks for none
    torch = importlib.import_module("torch")
    num_seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = tuple(torch.cuda.get_device_name(number) for number in range(num_seen))
    return {"devices": devices, "torch_cuda": torch.version.cuda or torch.version.hip}


def gather_install() -> dict[str, str | None]:
    """Return Install of this process, without importing any package."""
    python = platform.python_version().rpartition(".")[0]
    found = {package.name: package.version for package in importlib.metadata.distributions()}
    return {"python": python} | {name: found.get(name) for name in ("ray", *LISTED)} | {PROJECT: _digest_code()}


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
