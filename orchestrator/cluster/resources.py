"""The CPUs and GPUs that each trial gets."""

from dataclasses import dataclass

import ray

from mura_models.errors import ConfigError
from orchestrator.cluster.ray_private import list_startable_resources
from orchestrator.run.execution import ExecutionOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResources:
    """What one trial gets of the cluster, and how many trials may run at once (None = as many as fit)."""

    num_cpus: float
    num_gpus: float
    max_concurrent: int | None = None


def choose_trial_resources(execution: ExecutionOptions) -> TrialResources:
    """Return what one trial gets: as asked for, else one GPU if the cluster has any, else one CPU.

    Raises ConfigError if no node has that much: such a trial would wait without end.
    """
    nodes = list_node_resources()
    num_gpus = execution.gpus_per_trial
    if num_gpus is None:
        num_gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    num_cpus = execution.cpus_per_trial
    if num_cpus is None:
        num_cpus = min(1.0, _cpus_per_gpu_trial(nodes, num_gpus)) if num_gpus else 1.0
    resources = TrialResources(num_cpus=num_cpus, num_gpus=num_gpus, max_concurrent=execution.max_concurrent)
    if not fits_a_node(resources, nodes):
        have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(
            f"--cpus-per-trial {num_cpus:g} and --gpus-per-trial {num_gpus:g}: no node has both, the nodes have {have}"
        )
    return resources


def fits_a_node(resources: TrialResources, nodes: list[dict[str, float]]) -> bool:
    """Return whether one of these nodes could run a trial if it were idle."""
    return any(node.get("CPU", 0) >= resources.num_cpus and node.get("GPU", 0) >= resources.num_gpus for node in nodes)


def list_node_resources() -> list[dict[str, float]]:
    """Return the resources of each living node, and of each kind of node that an autoscaler may start."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]] + list_startable_resources()


def _cpus_per_gpu_trial(nodes: list[dict[str, float]], num_gpus: float) -> float:
    """Return the CPUs per trial if every GPU is taken, on the node that has the fewest per GPU."""
    shares = [
        node.get("CPU", 0) / int(node["GPU"] / num_gpus + 1e-9)  # 1 // 0.1 is 9
        for node in nodes
        if node.get("GPU", 0) >= num_gpus
    ]
    return round(min((share for share in shares if share), default=1.0), 3)
