"""ingest.json: how many images were decoded and embedded, and by what."""

from dataclasses import asdict

from mura_models.errors import ConfigError
from mura_models.networks.runtimes import RuntimeChoice
from orchestrator.ingest.decode import Ingested
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json, write_json


def record_ingest(ingested: Ingested, rundir: RunDir) -> None:
    """Write ingest.json; a resumed run adds to the counts of its earlier starts."""
    before = read_json(rundir.ingest) if rundir.ingest.exists() else {}
    content = {
        "images_decoded": ingested.num_decoded + before.get("images_decoded", 0),
        "images_embedded": ingested.num_embedded + before.get("images_embedded", 0),
        "backbone": ingested.backbone.name,
        "weights": ingested.backbone.weights_source,
        "runtime": asdict(ingested.choice),
    }
    write_json(rundir.ingest, content)


def read_runtime(rundir: RunDir) -> RuntimeChoice | None:
    """Return what made the embeddings on which trials may have been trained; None if no trial was planned yet."""
    if not rundir.plan.exists() or not rundir.ingest.exists():
        return None
    try:
        return RuntimeChoice(**read_json(rundir.ingest)["runtime"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{rundir.ingest}: not written by this program; use another --run-dir, or start a new run with --fresh"
        ) from error
