"""A look at the data before anything is trained: exploration.json, a few films, data.html."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from mura_models.data.exploration import Exploration, explore
from mura_models.data.manifest import DataSet
from mura_models.data.store import CachedArray
from mura_models.writing import whole_folder
from orchestrator.config import RunConfig
from orchestrator.describing import describe_data
from orchestrator.report import render_data_page
from orchestrator.rundir import RunDir, write_json

SCHEMA = 1


def explore_data(
    config: RunConfig, dataset: DataSet, manifest: pd.DataFrame, films: CachedArray, rundir: RunDir
) -> None:
    """Write exploration.json and its films, unless they are there, and the page from them."""
    if not rundir.exploration.exists():
        exploration = explore(manifest, films, config.preprocessing, seed=config.seed)
        with whole_folder(rundir.samples) as aside:
            for number, sample in enumerate(exploration.samples):
                (aside / name_sample(number)).write_bytes(sample.png)
        data = describe_data(dataset, manifest, pd.read_csv(rundir.quarantine))
        write_json(rundir.exploration, {"schema": SCHEMA, "data": data} | describe_exploration(exploration))
    render_data_page(rundir)


def describe_exploration(exploration: Exploration) -> dict[str, Any]:
    """Give an exploration as JSON; a sample names the file of its film."""
    plain = asdict(exploration)
    for number, sample in enumerate(plain["samples"]):
        del sample["png"]
        sample["file"] = name_sample(number)
    return plain


def name_sample(number: int) -> str:
    """Name the file of a sample: nothing of the patient or the path."""
    return f"{number:03d}.png"
