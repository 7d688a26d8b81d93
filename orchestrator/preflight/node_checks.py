"""What is right and wrong with a machine or a node: pure checks of plain facts, each finding with its remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement

from orchestrator.preflight.disk_forecast import RAY_BYTES, format_bytes
from orchestrator.preflight.findings import Finding, not_checked, ok, problem, warning

SAME_INSTALL = "install there what is installed here (constraints.txt has the versions)"
LISTED = ("torch", "torchvision", "timm", "onnxruntime", "numpy")
"""Packages that decide a figure's last digits: they should be the same everywhere."""
DASHBOARD_PORT = 8265


@dataclass(frozen=True, kw_only=True, slots=True)
class Install:
    """What a process runs on."""

    python: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """Package -> version; None where it is not installed."""
    torch_cuda: str | None = None
    """The CUDA (or ROCm) that torch was built for; None in a build for CPUs."""
    code: str | None = None
    """Digest of this project's files; None where it cannot be imported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """What one node of the cluster says of itself."""

    name: str
    is_driver: bool = False
    """Whether this command runs on it."""
    num_gpus: float = 0.0
    """That Ray gives out on it."""
    error: str = ""
    """Why it could not be asked."""
    install: Install = field(default_factory=lambda: Install(python=""))
    sees_cuda: bool | None = None
    """Whether its torch sees a GPU; None where Ray has none there."""
    devices: tuple[str, ...] = ()
    temp: str = ""
    """Ray's temporary folder."""
    free_bytes: int = 0
    storage_error: str = ""
    """Why bytes from it did not reach the run directory."""


def check_requirements(requires: Mapping[str, Sequence[str]], versions: Mapping[str, str]) -> list[Finding]:
    """Compare what is installed with what packages require of one another; what only an extra needs is left out."""
    findings = []
    for package, texts in requires.items():
        for text in texts:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            installed = versions.get(requirement.name)
            is_meant = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_meant and installed and not requirement.specifier.contains(installed, prereleases=True):
                wanted = f"{requirement.name}{requirement.specifier}"
                told = f"{installed} does not go with {package} {versions.get(package, '')}".rstrip()
                findings.append(problem(requirement.name, f"{told}, which needs {wanted}", f"pip install '{wanted}'"))
    return findings


def check_dashboard_port(holder: str | None) -> Finding:
    """Return whether the dashboard gets its usual port; `holder` has it already, None where it is free."""
    if holder is None:
        return ok("dashboard:", f"port {DASHBOARD_PORT} is free")
    text = f"port {DASHBOARD_PORT} is held by {holder}, so that Ray takes another"
    return warning("dashboard:", text, "a run prints the address that it has")


def check_node(node: NodeFacts, here: Install, *, uses_gpus: bool) -> list[Finding]:
    """Compare one node with the driver, and look at its GPUs, its temporary folder and its way to the driver."""
    what = f"node {node.name}"
    if node.error:
        return [not_checked(what, node.error, f"see that it answers, and {SAME_INSTALL}")]
    findings = [*_check_install(what, node.install, here), *_check_gpus(what, node, uses_gpus=uses_gpus)]
    if node.storage_error:
        text = f"cannot get bytes into the run directory ({node.storage_error})"
        remedy = (
            "open the ports between it and the machine of this command, and see that the directory can be written to"
        )
        findings.append(problem(what, text, remedy))
    if node.free_bytes < RAY_BYTES:
        text = f"has {format_bytes(node.free_bytes)} free in Ray's temporary folder ({node.temp})"
        findings.append(warning(what, text, f"make room for {format_bytes(RAY_BYTES)} at least"))
    if any(finding.level == "problem" for finding in findings):
        return findings
    return [ok(what, _describe(node)), *findings]


def _describe(node: NodeFacts) -> str:
    parts = [f"python {node.install.python}", *(f"{p} {node.install.versions.get(p)}" for p in ("ray", "torch"))]
    if node.num_gpus:
        devices = ", ".join(dict.fromkeys(node.devices))
        parts.append(f"{node.num_gpus:g} GPUs" + (f" ({devices})" if devices else ""))
    parts.append(f"{format_bytes(node.free_bytes)} for Ray in {node.temp}")
    parts.append("bytes from it reach the run directory")
    return ("(this machine) " if node.is_driver else "") + ", ".join(parts)


def _check_install(what: str, there: Install, here: Install) -> list[Finding]:
    findings = []
    for name, mine, theirs in (
        ("python", _minor(here.python), _minor(there.python)),
        ("ray", here.versions.get("ray"), there.versions.get("ray")),
    ):
        if mine != theirs:
            findings.append(problem(what, f"has {name} {theirs}, here it is {mine}", f"install {name} {mine} there"))
    missing = [name for name in LISTED if here.versions.get(name) and not there.versions.get(name)]
    if missing or there.code is None:
        text = f"lacks {', '.join(missing) or 'this project'}"
        return [*findings, problem(what, text, f"{SAME_INSTALL}, this project too")]
    others = [f"{name} {there.versions[name]}" for name in LISTED if there.versions[name] != here.versions[name]]
    if others:
        mine = ", ".join(f"{other.split()[0]} {here.versions[other.split()[0]]}" for other in others)
        text = f"has {', '.join(others)}, here it is {mine}: figures may differ in their last digits"
        findings.append(warning(what, text, SAME_INSTALL))
    if there.code != here.code:
        findings.append(warning(what, "has another version of this project's code", "install there the one from here"))
    return findings


def _check_gpus(what: str, node: NodeFacts, *, uses_gpus: bool) -> list[Finding]:
    if not node.num_gpus or node.sees_cuda:
        return []
    say = problem if uses_gpus else warning
    told = f"has {node.num_gpus:g} GPUs for Ray, and its torch sees none"
    if node.install.torch_cuda is None:
        told += ": it is built for CPUs"
        remedy = "install a torch that is built for CUDA there"
    else:
        told += f": it is built for CUDA {node.install.torch_cuda}"
        remedy = "see `nvidia-smi` there; update the driver, or install a torch for the CUDA that it has"
    return [say(what, told, f"{remedy}, or give --gpus-per-trial 0")]


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])
