"""How the cluster is shared among trials."""

from dataclasses import dataclass

import ray

from mura_models.errors import ConfigError
from orchestrator.run.execution import ExecutionOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResources:
    """What one trial gets of the cluster, and how many may run at once (None = as many as fit)."""

    num_cpus: float
    num_gpus: float
    max_concurrent: int | None = None


def share_cluster(execution: ExecutionOptions) -> TrialResources:
    """Decide what one trial gets: a GPU where there are any, else a CPU.

    Raises ConfigError where no node has that much, for such a trial would wait for ever.
    """
    nodes = list_node_resources()
    num_gpus = execution.gpus_per_trial
    if num_gpus is None:
        num_gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    num_cpus = execution.cpus_per_trial
    if num_cpus is None:
        num_cpus = min(1.0, _cpus_beside_gpus(nodes, num_gpus)) if num_gpus else 1.0
    share = TrialResources(num_cpus=num_cpus, num_gpus=num_gpus, max_concurrent=execution.max_concurrent)
    if not has_room_for_a_trial(share, nodes):
        have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(
            f"a trial asks for cpus-per-trial={num_cpus:g} and gpus-per-trial={num_gpus:g}, the nodes have: {have}"
        )
    return share


def has_room_for_a_trial(share: TrialResources, nodes: list[dict[str, float]]) -> bool:
    """Return whether one of these nodes, were it idle, could run a trial."""
    return any(node.get("CPU", 0) >= share.num_cpus and node.get("GPU", 0) >= share.num_gpus for node in nodes)


def list_node_resources() -> list[dict[str, float]]:
    """Return what each living node has, and each kind of node that an autoscaler may start."""
    living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cluster_config = ray._private.state.state.get_cluster_config()
    startable = [dict(group.resources) for group in cluster_config.node_group_configs] if cluster_config else []
    return living + startable


def _cpus_beside_gpus(nodes: list[dict[str, float]], num_gpus: float) -> float:
    """Return the CPUs that each trial can have when every GPU is taken, on the node where they are scarcest."""
    shares = [
        node.get("CPU", 0) / int(node["GPU"] / num_gpus + 1e-9)  # 1 // 0.1 is 9
        for node in nodes
        if node.get("GPU", 0) >= num_gpus
    ]
    return round(min((share for share in shares if share), default=1.0), 3)
