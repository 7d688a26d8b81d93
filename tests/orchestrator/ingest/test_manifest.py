"""What is left between ingest and search."""

import hashlib
from types import SimpleNamespace

import pandas as pd
import pytest
from factories import fail_to_read, make_manifest

from mura_models.data.dataset import DataSet
from mura_models.data.decode import read_scanned
from mura_models.errors import ConfigError, DataError, RunError
from mura_models.networks.runtimes import RuntimeChoice
from orchestrator.ingest.decode import check_same_device
from orchestrator.ingest.manifest import finish_manifest
from orchestrator.ingest.record import read_runtime, record_ingest
from orchestrator.pipeline import settle_plan
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.search.plan import make_plan


def finish(manifest, failed, folder):
    """Finish a manifest of which these files could not be decoded; return it and quarantine.csv."""
    nothing = pd.DataFrame({"path": [], "reason": []}, dtype="str")
    dataset = DataSet(
        name="x", kind="csv", is_phantom=False, manifest=manifest.assign(fold=-1), quarantine=nothing, notes=()
    )
    failures = dict.fromkeys(manifest.loc[failed, "digest"], "truncated")
    finished, quarantine = finish_manifest(RunConfig(num_folds=2), dataset, failures, RunDir(folder))
    reasons = pd.read_csv(folder / "quarantine.csv").set_index("path")["reason"]
    assert dict(reasons) == dict(zip(quarantine["path"], quarantine["reason"], strict=True))
    return finished, reasons


def test_an_image_that_could_not_be_decoded_is_left_out_and_named(tmp_path):
    manifest = make_manifest()
    finished, reasons = finish(manifest, [0, 5], tmp_path)
    assert dict(reasons) == dict.fromkeys(manifest.loc[[0, 5], "path"], "truncated")
    assert len(finished) == len(manifest) - 2
    assert set(finished.loc[finished["split"] == "train", "fold"]) == {0, 1}
    assert set(finished.loc[finished["split"] == "test", "fold"]) == {-1}


def test_an_image_whose_disk_fails_for_a_while_is_waited_for(tmp_path, monkeypatch):
    image = tmp_path / "image.png"
    image.write_bytes(b"pixels")
    fail_to_read(monkeypatch, 3)
    assert read_scanned(image, hashlib.sha256(b"pixels").hexdigest()) == b"pixels"


def test_an_image_that_is_gone_or_another_one_since_the_scan_ends_the_run_in_one_line(tmp_path):
    """If excluded, it would be missing from then on: the cache stores what cannot be decoded."""
    image = tmp_path / "image.png"
    with pytest.raises(RunError, match=r"cannot be read any more \(No such file or directory\)"):
        read_scanned(image, "0" * 64)
    image.write_bytes(b"pixels")
    assert read_scanned(image, hashlib.sha256(b"pixels").hexdigest()) == b"pixels"
    with pytest.raises(RunError, match="was changed after the data was scanned; the same command scans the data again"):
        read_scanned(image, "0" * 64)


def test_a_bone_whose_last_train_image_failed_is_not_tested_either(tmp_path):
    manifest = make_manifest({"elbow": (30, 30), "hand": (30, 30), "wrist": (1, 0)})
    wrist = manifest["bone"] == "wrist"
    finished, reasons = finish(manifest, wrist & (manifest["split"] == "train"), tmp_path)
    assert set(finished["bone"]) == {"elbow", "hand"}
    test_paths = manifest.loc[wrist & (manifest["split"] == "test"), "path"]
    assert set(reasons[test_paths]) == {"bone not in train"}


def test_nothing_left_of_a_split_is_one_clear_line(tmp_path):
    manifest = make_manifest()
    with pytest.raises(DataError, match="no usable train image is left"):
        finish(manifest, manifest["split"] == "train", tmp_path)


def test_folds_that_another_version_cut_are_not_continued(tmp_path):
    """Else trials of one search would be compared on other rows."""
    manifest = make_manifest()
    finished, _ = finish(manifest, [], tmp_path)
    (tmp_path / "plan.csv").write_text("trial\n")
    finish(manifest, [], tmp_path)  # the same command continues
    finished.assign(fold=finished["fold"].map({0: 1, 1: 0, -1: -1})).to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(ConfigError, match="its rows or folds are not those of this command"):
        finish(manifest, [], tmp_path)
    finished.assign(path="moved").to_parquet(tmp_path / "manifest.parquet")
    finish(manifest, [], tmp_path)  # the paths of the images do not matter
    finished[::-1].to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(ConfigError, match="its rows or folds are not those of this command"):
        finish(manifest, [], tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"manifest\.parquet: damaged"):
        finish(manifest, [], tmp_path)


def test_a_run_is_not_continued_on_embeddings_of_another_precision(tmp_path):
    on_gpu = RuntimeChoice(runtime="torch", precision="bfloat16", device="cuda")
    on_cpu = RuntimeChoice(runtime="onnxruntime", precision="float32", device="cpu")
    rundir = RunDir(tmp_path)
    assert read_runtime(rundir) is None
    check_same_device(on_cpu, None)
    backbone = SimpleNamespace(name="x", weights_source="none")
    record_ingest(SimpleNamespace(choice=on_gpu, num_decoded=1, num_embedded=1, backbone=backbone), rundir)
    assert read_runtime(rundir) is None  # nothing was trained on them yet
    rundir.plan.write_text("trial\n")
    assert read_runtime(rundir) == on_gpu
    check_same_device(on_gpu, read_runtime(rundir))
    with pytest.raises(
        ConfigError, match="began with embeddings made on cuda in bfloat16, here it would be cpu in float32"
    ):
        check_same_device(on_cpu, read_runtime(rundir))


def test_a_plan_of_another_version_is_not_continued(tmp_path):
    """Else its trials would go on under other settings than they began with."""
    rundir = RunDir(tmp_path)
    plan = make_plan(RunConfig(num_folds=3), make_manifest())
    settle_plan(plan, rundir)
    settle_plan(plan, rundir)  # the same command continues
    rundir.plan.write_text(rundir.plan.read_text().replace("0.001,", "0.002,", 1))
    with pytest.raises(ConfigError, match="another version"):
        settle_plan(plan, rundir)
