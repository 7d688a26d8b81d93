"""Plain facts on this machine and on the nodes of a cluster, for `checks.py` to judge."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mura_models.errors import to_one_line
from orchestrator.preflight.node_checks import DASHBOARD_PORT, LISTED, Install, NodeFacts

NODE_S = 150.0
"""How long a node may take to answer: after 60 s Ray notices that a worker died while it started (chosen by us)."""
RETRIES = 3
"""How often the question is put again where a worker dies over it."""
WEB_S = 3.0
"""How long a web server may take to answer (chosen by us): below CONNECT_TIMEOUT_S, as its silence ends no run."""
PROBE_BYTES = 2**18
OUR_PACKAGES = ("mura_models", "orchestrator")
REQUIRING = ("mura-study", "torchvision", "timm", "ray")
"""Packages whose requirements are compared with what is installed."""


def find_install() -> Install:
    """Look at the Python, packages and code of this process."""
    return Install(**gather_install())


def list_requirements() -> dict[str, list[str]]:
    """Return what each of our packages requires of others."""
    return {package: importlib.metadata.requires(package) or [] for package in REQUIRING if _find_version(package)}


def list_installed() -> dict[str, str]:
    """Return the version of every package that is installed."""
    return {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}


def find_port_holder(port: int = DASHBOARD_PORT) -> str | None:
    """Say who listens on a port of 127.0.0.1; None where nobody does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            pass
        else:
            return None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WEB_S) as answer:
            is_ray = b"Ray Dashboard" in answer.read(10_000)
    except (OSError, ValueError, HTTPException):  # the last, where it speaks, but not HTTP
        is_ray = False
    return "the dashboard of another Ray" if is_ray else "another program"


def try_download(url: str) -> tuple[bool | None, str]:
    """Ask for the head of a file, as torch asks for the file: whether it can be had (None: no telling), and why not."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=WEB_S):
            return True, ""
    except urllib.error.HTTPError as error:
        is_certain = error.code in (401, 403, 404, 410)  # others may be about the question, or pass
        return (False if is_certain else None), f"{error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        told = to_one_line(str(reason).strip()) or type(reason).__name__
        return (None if isinstance(reason, TimeoutError) else False), told


def ask_nodes(folder: Path) -> list[NodeFacts]:
    """Let every living node say what it is, and send some bytes into this folder, where they leave no trace."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # a node may lack this project, or have another version of it
    try:
        near = NodeAffinitySchedulingStrategy(here, soft=False)
        options = {"num_cpus": 0, "max_restarts": RETRIES, "max_task_retries": RETRIES}
        inbox = ray.remote(Inbox).options(**options, scheduling_strategy=near).remote(str(folder))
        asked = {node["NodeID"]: _ask(node, inbox) for node in nodes}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_S)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
    return [_read_answer(node, asked[node["NodeID"]], ready, is_driver=node["NodeID"] == here) for node in nodes]


def _ask(node: Mapping[str, Any], inbox: Any) -> Any:
    num_gpus = node["Resources"].get("GPU", 0)
    options = {"max_calls": 1} if num_gpus else {}  # a process that started CUDA would keep some of its memory
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=RETRIES, scheduling_strategy=there, **options)(gather_node)
    return task.remote([inbox], node["NodeID"], bool(num_gpus))


def _read_answer(node: Mapping[str, Any], reference: Any, ready: list[Any], *, is_driver: bool) -> NodeFacts:
    known: dict[str, Any] = {"name": node["NodeManagerAddress"], "is_driver": is_driver}
    known["num_gpus"] = node["Resources"].get("GPU", 0.0)
    if reference not in ready:
        return NodeFacts(**known, error=f"no answer within {NODE_S:g} s")
    try:
        answer = ray.get(reference)
    except Exception as error:  # whatever keeps a node from answering is a fact about it
        return NodeFacts(**known, error=str(error) or type(error).__name__)
    return NodeFacts(**known | answer | {"install": Install(**answer["install"])})


class Inbox:
    """An actor beside the driver that writes what it gets into a folder, reads it again and removes it."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def pass_through(self, name: str, content: bytes) -> bytes:
        """Return the bytes as they came back from the disk."""
        path = self._folder / name
        try:
            path.write_bytes(content)
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)


def gather_node(inbox: list[Any], node_id: str, has_gpus: bool) -> dict[str, Any]:
    """Say, on a node, what it is; NodeFacts as plain values."""
    temp = Path(ray._private.worker._global_node.get_session_dir_path()).parent
    facts: dict[str, Any] = {
        "install": gather_install(),
        "temp": str(temp),
        "free_bytes": shutil.disk_usage(temp).free,
        "storage_error": "",
    }
    content = os.urandom(PROBE_BYTES)
    try:
        if ray.get(inbox[0].pass_through.remote(f".probe-{node_id}", content), timeout=NODE_S / 2) != content:
            facts["storage_error"] = "they came back changed"
    except Exception as error:  # whatever it is, it would keep checkpoints from the run directory
        facts["storage_error"] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return facts | (_gather_gpus() if has_gpus else {})


def _gather_gpus() -> dict[str, Any]:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from a task that asks for none
    torch = importlib.import_module("torch")
    sees_cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if sees_cuda else []
    return {"sees_cuda": sees_cuda, "devices": tuple(devices)}


def gather_install() -> dict[str, Any]:
    """Look at a Python and its packages without importing them; Install as plain values."""
    torch = importlib.util.find_spec("torch")
    built = runpy.run_path(str(Path(torch.origin).with_name("version.py"))) if torch and torch.origin else {}
    return {
        "python": platform.python_version(),
        "versions": {package: _find_version(package) for package in ("ray", *LISTED)},
        "torch_cuda": built.get("cuda") or built.get("hip"),
        "code": _digest_code(),
    }


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest_code() -> str | None:
    digest = hashlib.sha256()
    for package in OUR_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
