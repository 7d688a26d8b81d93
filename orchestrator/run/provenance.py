"""run.json: the config, data and versions of a run, and the check that a directory holds this run and no other."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

import mura_models
from mura_models.data.dataset import DataSet
from mura_models.errors import ConfigError, SettingError
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json, write_json
from orchestrator.run.report_schema import SCHEMA, check_schema, read_report

PACKAGES = (
    "torch",
    "torchvision",
    "ray",
    "timm",
    "onnxruntime",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "pyarrow",
)


def open_run(rundir: RunDir, config: RunConfig, dataset: DataSet) -> None:
    """Write run.json, or check that the existing one has the same config and data.

    Raises ConfigError that names the difference.
    """
    identity = {"config": config.to_json(), "data_fingerprint": dataset.fingerprint()}
    if rundir.run_json.exists():
        there = check_schema(rundir.run_json, read_json(rundir.run_json))
        differences = list_differences(there, identity)
        if differences:
            raise ConfigError(
                f"{rundir.root} holds another run: {'; '.join(differences)}; give another --run-dir, or --fresh"
            )
        return
    data = {"name": dataset.name, "kind": dataset.kind, "is_phantom": dataset.is_phantom, "notes": list(dataset.notes)}
    origin = {"schema": SCHEMA, "versions": list_versions(), "git_commit": find_commit(), "data": data}
    write_json(rundir.run_json, identity | origin)


def check_finished(rundir: RunDir) -> None:
    """Raise ConfigError unless the directory holds all that a report is written from, each file whole."""
    tables = (rundir.trials, rundir.predictions)
    objects = (rundir.report_json, rundir.selected, rundir.exploration)
    missing = [path.name for path in (*objects, *tables) if not path.is_file()]
    if missing:
        remedy = (
            "run it again, by run_study.py with --fresh" if rundir.report_json.is_file() else "finish the run first"
        )
        raise SettingError("run_dir", rundir.root, f"has no {missing[0]}; {remedy}")
    read_report(rundir.report_json)
    for path in objects:
        read_json(path)
    for path in tables:
        try:
            pyarrow.parquet.read_metadata(path)
        except pyarrow.ArrowException as error:
            raise ConfigError(f"{path}: damaged ({error}); finish the run again, with --fresh") from error


def list_differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the settings in which two runs differ, as text."""
    differences = []
    for name, value in here.items():
        other = there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            differences += list_differences(other, value, f"{prefix}{name}.")
        elif value != other:
            differences.append(f"{prefix}{name} is {other!r} there and {value!r} here")
    return differences


def list_versions() -> dict[str, str]:
    """Return the versions that decide figures."""
    return {"python": platform.python_version(), "mura-study": mura_models.__version__} | {
        package: version(package) for package in PACKAGES
    }


def find_commit() -> str | None:
    """Return the commit of the clone that the code runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
