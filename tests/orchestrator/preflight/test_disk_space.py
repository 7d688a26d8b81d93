"""The disk space that a run needs: forecast before it, compared with what it leaves, refused if there is too little."""

from dataclasses import replace
from pathlib import Path

import pytest
from factories import make_manifest
from ray_helpers import TINY, User, make_user, write_images

from mura_models.data.dataset import DataSet, read_dataset
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from orchestrator.cli import run_command
from orchestrator.preflight.disk import Need, forecast_disk, inspect_disk
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json
from orchestrator.search.plan import make_plan

MB = 10**6
QUICK = RunConfig(num_trials=3, num_epochs=4, num_folds=3, early_stopping=False)
NETWORKS = replace(QUICK, recipes=("finetune",), finetune_trials=2, finetune_epochs=4)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def forecast(config: RunConfig, rundir: RunDir | None = None) -> tuple[int, int]:
    """Return the bytes for cache and run directory."""
    manifest = make_manifest().assign(fold=-1)
    cache, run = forecast_disk(config, manifest, make_plan(config, manifest), rundir)
    return cache.num_bytes, run.num_bytes


@pytest.mark.parametrize(
    ("larger", "than"),
    [
        (replace(QUICK, num_trials=4), QUICK),
        (replace(QUICK, num_folds=4), QUICK),
        (replace(QUICK, kept_epoch="best"), QUICK),
        (replace(QUICK, early_stopping=True), QUICK),  # audits
        (replace(QUICK, replicate_seeds=2), QUICK),
        (replace(QUICK, replicate_seeds=2, ensemble=True), replace(QUICK, replicate_seeds=2)),
        (NETWORKS, replace(NETWORKS, finetune=FinetuneSettings(ema_decay=0.0))),
        (replace(NETWORKS, finetune_trials=3), NETWORKS),
    ],
)
def test_what_is_written_more_of_takes_more_room(larger: RunConfig, than: RunConfig) -> None:
    (cache, run), (cache_than, run_than) = forecast(larger), forecast(than)
    assert run > run_than
    assert cache == cache_than


def test_the_cache_holds_images_by_their_side_and_embeddings_by_their_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_images = len(make_manifest())
    embeddings = num_images * 4 * 1280 * 2
    large = replace(QUICK, preprocessing=Preprocessing(image_size_px=512))
    cache, _ = forecast(large)
    assert cache == pytest.approx(2 * num_images * 512**2 + embeddings, rel=0.01)  # twice, in case one of them fails
    monkeypatch.setattr("orchestrator.preflight.disk.find_decoded", lambda *_, **__: "the images")
    cache, _ = forecast(large)
    assert cache == pytest.approx(embeddings, rel=0.1)
    rundir = RunDir(tmp_path / "run")
    rundir.root.mkdir()
    rundir.ingest.write_text("{}")
    assert forecast(large, rundir)[0] == 0


def test_what_a_stopped_run_has_written_takes_no_more_room(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path / "run")
    assert forecast(NETWORKS, rundir) == forecast(NETWORKS)
    rundir.checkpoints.mkdir(parents=True)
    rundir.checkpoint("a/b/000").write_bytes(bytes(2 * MB))
    rundir.previous_checkpoint("a/b/000").write_bytes(bytes(MB))
    assert forecast(NETWORKS)[1] - forecast(NETWORKS, rundir)[1] == 3 * MB
    with rundir.journal.open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no space
    assert forecast(NETWORKS, rundir)[1] == 0


CACHE = Need(purpose="the cache", path=Path("/c"), num_bytes=3 * 10**9, remedy="another $XDG_CACHE_HOME")
RUN = Need(purpose="the run directory", path=Path("/r"), num_bytes=2 * 10**9, remedy="another --run-dir")


@pytest.mark.parametrize(
    ("spaces", "levels", "text"),
    [
        (((1, 6 * 10**9),) * 2, ["ok"], "needs up to 3.0 GB for the cache (/c) and 2.0 GB for"),
        (
            ((1, 4 * 10**9),) * 2,
            ["warning"],
            "disk needs up to 3.0 GB for the cache (/c) and 2.0 GB for the run directory (/r), 4.0 GB free: "
            "free some space, or use another $XDG_CACHE_HOME or another --run-dir",
        ),
        (
            ((1, 2 * 10**9),) * 2,
            ["error"],
            "disk needs up to 3.0 GB for the cache (/c) and 2.0 GB for the run directory (/r), 2.0 GB free: "
            "free some space, or use another $XDG_CACHE_HOME or another --run-dir",
        ),
        (
            ((1, 4 * 10**9), (2, 9 * 10**8)),
            ["ok", "error"],
            "disk needs up to 2.0 GB for the run directory (/r), 900 MB free: "
            "free some space, or use another --run-dir",
        ),
    ],
)
def test_needs_on_one_file_system_are_added_up(
    spaces: tuple[tuple[int, int], ...], levels: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_path = dict(zip((CACHE.path, RUN.path), spaces, strict=True))
    monkeypatch.setattr("orchestrator.preflight.disk.measure_space", by_path.__getitem__)
    findings = inspect_disk([CACHE, RUN])
    assert [finding.level for finding in findings] == levels
    assert text in str(findings[-1])


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def dataset(user: User) -> DataSet:
    return read_dataset(write_images(user.home / "images"))


def test_a_run_leaves_at_most_what_was_forecast(user: User, dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rundir = RunDir(user.home / "run")
    images = user.home / "images" / "manifest.csv"
    done = user.run_study("--data", images, "--run-dir", rundir.root, *TINY, "--no-early-stopping")
    assert "error" not in done.stdout
    config = replace(
        RunConfig(num_trials=2, num_epochs=3, num_folds=2, early_stopping=False, finetune_epochs=3),
        preprocessing=Preprocessing(image_size_px=64),
    )
    assert read_json(rundir.run_json)["config"] == config.to_json()
    plan = make_plan(config, dataset.manifest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(user.home / "elsewhere"))
    cache, run = (need.num_bytes for need in forecast_disk(config, dataset.manifest, plan))
    assert 1 <= run / measure(rundir.root) < 5
    assert 1 <= cache / measure(user.cache / "mura") < 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(user.cache))
    cache_after, run_after = (need.num_bytes for need in forecast_disk(config, dataset.manifest, plan, rundir))
    assert (cache_after, run_after) == (0, run - measure(rundir.root))


def measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_that_finds_no_room_is_refused_before_ray_starts(
    tmp_path: Path, dataset: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], user: User
) -> None:
    monkeypatch.setattr("orchestrator.preflight.disk.measure_space", lambda path: (1, 10 * MB))
    monkeypatch.setattr("orchestrator.pipeline.connect_ray", None)
    images = str(user.home / "images" / "manifest.csv")
    assert run_command(["--all-bones", "--data", images, "--run-dir", str(tmp_path / "run"), *TINY]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: disk needs up to ")
    assert "10 MB free: free some space, or use another $XDG_CACHE_HOME or another --run-dir" in error
    assert error.count("\n") == 1


def test_a_dry_run_says_what_the_disk_needs(dataset: DataSet, capsys: pytest.CaptureFixture[str], user: User) -> None:
    images = str(user.home / "images" / "manifest.csv")
    assert run_command(["--all-bones", "--data", images, "--dry-run", *TINY]) == 0
    output = capsys.readouterr().out
    assert "disk: up to 4 MB for the cache, " in output
    assert " MB for the run directory" in output


def test_an_unknown_backbone_cannot_be_measured_and_is_named(dataset: DataSet) -> None:
    config = RunConfig(backbone=BackboneSpec(name="resnet19"))
    with pytest.raises(Exception, match="backbone=resnet19"):
        forecast_disk(config, dataset.manifest, make_plan(config, dataset.manifest))
