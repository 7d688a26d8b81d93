"""Where a run is stored and what it runs on: affects no figure."""

from dataclasses import dataclass
from pathlib import Path

from mura_models.errors import SettingError
from orchestrator.run.config import check_range

SMALLEST_SHARE = 0.01
"""Of a CPU or GPU that a trial may ask for: Ray rounds at 0.0001, and hundreds of trials per GPU are of no use (chosen
by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionOptions:
    """Where a run is stored and what it runs on: never part of its identity. Docstrings are the help of options."""

    run_dir: Path | None = None
    """Directory of the run (default: runs/<data>-<config>). Run the same command again to resume."""
    fresh: bool = False
    """Start a new run next to an existing one, in a directory with the suffix -2, -3, ..."""
    address: str | None = None
    """Ray cluster to join: HOST:PORT of its head, auto (finds one on this machine) or local (starts Ray here).
    Default: $RAY_ADDRESS if it is set, else local."""
    max_concurrent: int | None = None
    """Maximum number of trials at the same time (default: as many as the resources allow)."""
    gpus_per_trial: float | None = None
    """GPUs per trial (default: 1 if the cluster has GPUs, else 0)."""
    cpus_per_trial: float | None = None
    """CPU cores per trial (default: 1, or less if a machine has fewer cores than trials on its GPUs)."""

    def __post_init__(self) -> None:
        check_range("max_concurrent", self.max_concurrent, 1, 100_000)
        check_range("cpus_per_trial", self.cpus_per_trial, SMALLEST_SHARE, 1024)
        gpus = self.gpus_per_trial
        if gpus is not None and not (gpus == 0 or SMALLEST_SHARE <= gpus <= 64):
            raise SettingError("gpus_per_trial", gpus, f"must be 0 or between {SMALLEST_SHARE} and 64")
        if gpus is not None and gpus > 1 and gpus % 1:
            raise SettingError("gpus_per_trial", gpus, "must be a whole number if above 1")
        if self.address is not None:
            check_address(self.address)
        if self.fresh and self.run_dir is not None and self.run_dir.name in ("", ".."):
            raise SettingError("run_dir", self.run_dir, "name a folder: {fresh} adds a suffix to it", {"fresh": True})


def check_address(address: str, *, given_by: str = "address") -> None:
    """Raise SettingError if this cannot be the address of a Ray cluster, or a run cannot join by it."""
    if "://" in address:  # of Ray Client, whose driver is on no node and sees none, or of the dashboard
        raise SettingError(
            given_by,
            address,
            "a run cannot join by a URL; give the head's HOST:PORT (Ray's usual port is 6379), "
            "or submit the command with ray job submit",
        )
    host, _, port = address.rpartition(":")
    is_place = bool(host) and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536
    if address not in ("auto", "local") and not is_place:
        raise SettingError(given_by, address, "must be HOST:PORT, auto or local")
