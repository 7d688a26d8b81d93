"""The disk that a run needs: forecast before it, against what it leaves, and refused where there is no room."""

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
from orchestrator.ingest.decode import name_images
from orchestrator.preflight.disk_forecast import (
    BackboneSize,
    DiskForecast,
    Need,
    Present,
    Space,
    forecast_disk,
    judge_disk,
    measure_checkpoint,
)
from orchestrator.preflight.disk_usage import find_present, forecast_run
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json
from orchestrator.search.plan import make_plan

MB = 10**6
LITE0 = BackboneSize(num_features=1280, num_bytes=13_652_488)
QUICK = RunConfig(num_trials=3, num_epochs=4, num_folds=3, early_stopping=False)
NETWORKS = replace(QUICK, recipes=("finetune",), finetune_trials=2, finetune_epochs=4)


def forecast(config: RunConfig, present: Present | None = None) -> DiskForecast:
    manifest = make_manifest().assign(fold=-1)
    return forecast_disk(config, manifest, make_plan(config, manifest), LITE0, present or Present())


@pytest.mark.parametrize(
    ("dearer", "than"),
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
def test_what_is_written_more_of_takes_more_room(dearer: RunConfig, than: RunConfig) -> None:
    assert forecast(dearer).run > forecast(than).run
    assert forecast(dearer).cache == forecast(than).cache


def test_the_cache_holds_images_by_their_side_and_embeddings_by_their_width() -> None:
    num_images = len(make_manifest())
    large = replace(QUICK, preprocessing=Preprocessing(image_size_px=512))
    assert forecast(large).cache == pytest.approx(2 * num_images * 512**2, rel=0.01)  # twice, should one of them fail
    assert forecast(large, Present(has_images=True)).cache == pytest.approx(num_images * 4 * 1280 * 2, rel=0.02)
    assert forecast(large, Present(has_images=True, has_embeddings=True)).cache == 0


def test_what_has_ended_takes_no_more_room() -> None:
    manifest = make_manifest()
    trials = make_plan(NETWORKS, manifest).trials

    def forecast_after(num_ended: int) -> int:
        ended = trials[:num_ended]
        sizes = {trial.trial: measure_checkpoint(NETWORKS, trial, LITE0, 3) for trial in ended}
        return forecast(NETWORKS, Present(states=dict.fromkeys(sizes, "COMPLETE"), checkpoint_bytes=sizes)).run

    before, half, after = (forecast_after(number) for number in (0, len(trials) // 2, len(trials)))
    assert before > half + 100 * MB > after + 200 * MB


def test_the_losers_of_a_stage_make_room_for_the_next() -> None:
    config = replace(QUICK, recipes=("mlp_probe", "finetune"), finetune_trials=1, finetune_epochs=1)
    plan = make_plan(config, make_manifest())
    assert plan.stages == [1, 2]
    states = {trial.trial: "COMPLETE" for trial in plan.of_stage(1).trials}
    sizes = {trial.trial: 2 * measure_checkpoint(config, trial, LITE0, 3) for trial in plan.of_stage(1).trials}
    with_losers = forecast(config, Present(states=states, checkpoint_bytes=sizes))
    assert with_losers.run < forecast(config, Present(states=states)).run


CACHE = Need(what="the cache", path=Path("/c"), num_bytes=3 * 10**9, remedy="another $XDG_CACHE_HOME")
RUN = Need(what="the run directory", path=Path("/r"), num_bytes=2 * 10**9, remedy="another --run-dir")


@pytest.mark.parametrize(
    ("spaces", "levels", "told"),
    [
        ((Space(device=1, free_bytes=6 * 10**9),) * 2, ["ok"], "needs up to 3.0 GB for the cache (/c) and 2.0 GB for"),
        (
            (Space(device=1, free_bytes=4 * 10**9),) * 2,
            ["warning"],
            "disk needs up to 3.0 GB for the cache (/c) and 2.0 GB for the run directory (/r), 4.0 GB free: "
            "make room, or give another $XDG_CACHE_HOME or another --run-dir",
        ),
        (
            (Space(device=1, free_bytes=2 * 10**9),) * 2,
            ["problem"],
            "disk needs up to 3.0 GB for the cache (/c) and 2.0 GB for the run directory (/r), 2.0 GB free: "
            "make room, or give another $XDG_CACHE_HOME or another --run-dir",
        ),
        (
            (Space(device=1, free_bytes=4 * 10**9), Space(device=2, free_bytes=9 * 10**8)),
            ["ok", "problem"],
            "disk needs up to 2.0 GB for the run directory (/r), 900 MB free: make room, or give another --run-dir",
        ),
    ],
)
def test_what_lies_on_one_file_system_is_added_up(spaces: tuple[Space, Space], levels: list[str], told: str) -> None:
    findings = judge_disk(list(zip((CACHE, RUN), spaces, strict=True)))
    assert [finding.level for finding in findings] == levels
    assert told in str(findings[-1])


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
    before = forecast_run(config, dataset.manifest, plan, None)
    assert 1 <= before.run / weigh(rundir.root) < 5
    assert 1 <= before.cache / weigh(user.cache / "mura") < 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(user.cache))
    present = find_present(config, dataset.manifest, rundir)
    assert (present.has_images, present.has_embeddings) == (True, True)
    assert set(present.states) == {trial.trial for trial in plan.trials} > set(present.checkpoint_bytes)
    after = forecast_run(config, dataset.manifest, plan, rundir)
    assert (after.cache, after.run < before.run / 5) == (0, True)


def test_what_a_stopped_run_left_counts_and_a_damaged_line_does_not(
    user: User, dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rundir = RunDir(tmp_path / "run")
    rundir.checkpoints.mkdir(parents=True)
    rundir.checkpoint("a/b/000").write_bytes(bytes(7))
    rundir.previous_checkpoint("a/b/000").write_bytes(bytes(5))
    line = '{"trial": "a/b/001", "state": "COMPLETE"}'
    rundir.journal.write_text(f'{line}\n{{"trial\n{{"trial": "a/b/000", "state": "RUNNING"}}\n{{"trial": "a/b/0')
    config = RunConfig(preprocessing=Preprocessing(image_size_px=64))
    store = name_images(tmp_path / "mura", config.preprocessing, sorted(set(dataset.manifest["digest"])))
    unfinished = store.with_name(f".{store.name}.part")
    unfinished.mkdir(parents=True)
    with (unfinished / "all.npy").open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(10 * MB)
    present = find_present(config, dataset.manifest, rundir)
    assert present.states == {"a/b/001": "COMPLETE"}
    assert present.checkpoint_bytes == {"a/b/000": 12}
    assert 4096 <= present.image_bytes < MB
    assert rundir.journal.read_text().endswith("0")  # left as it was: another process may be writing it


def weigh(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_that_finds_no_room_is_refused_before_ray_starts(
    tmp_path: Path, dataset: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], user: User
) -> None:
    monkeypatch.setattr(
        "orchestrator.preflight.disk_usage.measure_space", lambda path: Space(device=1, free_bytes=10 * MB)
    )
    monkeypatch.setattr("orchestrator.pipeline.connect_ray", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = str(user.home / "images" / "manifest.csv")
    assert run_command(["--all-bones", "--data", images, "--run-dir", str(tmp_path / "run"), *TINY]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: disk needs up to ")
    assert "10 MB free: make room, or give another $XDG_CACHE_HOME or another --run-dir" in error
    assert error.count("\n") == 1


def test_a_dry_run_says_what_the_disk_needs(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], user: User
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = str(user.home / "images" / "manifest.csv")
    assert run_command(["--all-bones", "--data", images, "--dry-run", *TINY]) == 0
    assert "MB in the run directory, 3 MB in the cache" in capsys.readouterr().out


def test_an_unknown_backbone_cannot_be_weighed_and_is_told_by_name(dataset: DataSet) -> None:
    config = RunConfig(backbone=BackboneSpec(name="resnet19"))
    with pytest.raises(Exception, match="backbone=resnet19"):
        forecast_run(config, dataset.manifest, make_plan(config, dataset.manifest), None)
