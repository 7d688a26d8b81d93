"""Where a run lies and what it runs on: decides no figure."""

from dataclasses import dataclass
from pathlib import Path

from mura_models.errors import ConfigError
from orchestrator.run.config import _check_range

SMALLEST_SHARE = 0.01
"""Of a CPU or a GPU that a trial may ask for: Ray rounds at 0.0001, and nobody runs hundreds on one (chosen by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionOptions:
    """Where a run lies and what it runs on: never part of its identity."""

    run_dir: Path | None = None
    fresh: bool = False
    address: str | None = None
    max_concurrent: int | None = None
    gpus_per_trial: float | None = None
    """None = 1 where the cluster has GPUs, else 0."""
    cpus_per_trial: float | None = None
    """None = 1, or less where several trials share the CPUs of one machine's GPUs."""

    def __post_init__(self) -> None:
        if self.max_concurrent is not None:
            _check_range("max_concurrent", self.max_concurrent, 1, 100_000)
        if self.gpus_per_trial is not None and not (
            self.gpus_per_trial == 0 or SMALLEST_SHARE <= self.gpus_per_trial <= 64
        ):
            raise ConfigError(f"gpus_per_trial={self.gpus_per_trial}: must be 0 or lie in [{SMALLEST_SHARE}, 64]")
        if self.gpus_per_trial is not None and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ConfigError(f"gpus_per_trial={self.gpus_per_trial}: above 1 it must be a whole number")
        if self.cpus_per_trial is not None and not SMALLEST_SHARE <= self.cpus_per_trial <= 1024:
            raise ConfigError(f"cpus_per_trial={self.cpus_per_trial}: must lie in [{SMALLEST_SHARE}, 1024]")
        if self.address is not None:
            check_address(self.address)
        if self.fresh and self.run_dir is not None and self.run_dir.name in ("", ".."):
            raise ConfigError(f"run-dir={self.run_dir}: nothing can be named beside it; with --fresh, name a folder")


def check_address(address: str, *, given_by: str = "address") -> None:
    """Raise ConfigError for what can be no Ray cluster's address, or is one by which a run cannot join it."""
    if "://" in address:  # of Ray Client, whose driver is on no node and sees none, or of the dashboard
        raise ConfigError(
            f"{given_by}={address}: a run cannot join by a URL; give the head's HOST:PORT (Ray's usual port is 6379), "
            "or submit the command with ray job submit"
        )
    host, _, port = address.rpartition(":")
    is_place = bool(host) and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536
    if address not in ("auto", "local") and not is_place:
        raise ConfigError(f"{given_by}={address}: must be HOST:PORT, auto or local")
