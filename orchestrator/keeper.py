"""The checkpoint keeper: one actor on the driver's node, so that trials anywhere need no disk of the driver's.

A trial's weights travel to it through Ray and lie in the run directory, whole, before the driver hears of the epoch. It
also tells trials where their stage's rows are: a reference that Tune is given itself is never let go again.
"""

from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.rundir import RunDir, whole_file

KEEPER_NAME = "checkpoint-keeper"


class CheckpointKeeper:
    """Writes and reads the checkpoints of one run directory."""

    def __init__(self, root: str) -> None:
        self._rundir = RunDir(Path(root))
        self._inputs: list[Any] = []

    def hold_inputs(self, inputs: list[Any]) -> None:
        """Take the reference to a stage's inputs, alone in a list, else Ray would fetch them; drop the one before."""
        self._inputs = inputs

    def find_inputs(self) -> list[Any]:
        """Give what `hold_inputs` took; empty where this process was started anew since."""
        return self._inputs

    def keep(self, trial: str, content: bytes) -> None:
        """Replace the trial's checkpoint, whole or not at all."""
        with whole_file(self._rundir.checkpoint(trial)) as aside:
            aside.write_bytes(content)

    def load(self, trial: str, starts_from: str = "") -> bytes | None:
        """Give the trial's checkpoint, else the one it starts from, if there is either."""
        for name in (trial, starts_from):
            path = self._rundir.checkpoint(name)
            if name and path.exists():
                return path.read_bytes()
        return None


def start_keeper(rundir: RunDir) -> Any:
    """Start the keeper on this node, restarted by Ray should its process die; give its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": KEEPER_NAME, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
    actor = ray.remote(CheckpointKeeper).options(**options, scheduling_strategy=here)
    return actor.remote(str(rundir.root.resolve()))
