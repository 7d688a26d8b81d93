"""Runs that train whole networks: the paper's preset, `finetune` next to probes, and a run that is killed."""

import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ray_helpers import (
    BIN,
    BONES,
    ROOT,
    User,
    assert_same_results,
    make_user,
    read_journal,
    read_json,
    wait_until,
    write_images,
)
from report_factories import check_report

from mura_models.training.checkpoints import Checkpoint

pytestmark = pytest.mark.slow

SMALL = ("--weights", "random", "--image-size", "32", "--epochs", "2", "--folds", "2")
FINETUNE = (
    *("--recipes", "mlp_probe", "finetune", "--trials", "6", "--epochs", "6", "--finetune-epochs", "4"),
    *("--finetune-trials", "2", "--finetune-steps", "8", "--finetune-batch-size", "8", "--backbone", "resnet18"),
    *("--weights", "random", "--image-size", "32", "--folds", "2", "--replicate-seeds", "2"),
)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def images(user: User) -> Path:
    return write_images(user.home / "images")


@pytest.fixture(scope="module")
def finetuned(user: User, images: Path) -> Path:
    """The directory of a finished run with probes and whole networks."""
    user.run_study("--data", images, "--run-dir", user.home / "finetuned", *FINETUNE)
    return user.home / "finetuned"


def predict(user: User, images: Path, run_dir: Path) -> None:
    """Check that the bundle predicts in another process what the run predicted."""
    out = run_dir.parent / f"{run_dir.name}.parquet"
    command = ("predict", "--bundle", run_dir / "bundle", "--data", images, "--out", out, "--split", "test")
    done = user.call(BIN / "mura", *command)
    assert done.returncode == 0, done.stderr
    own = pd.read_parquet(run_dir / "predictions.parquet").set_index("path")
    answers = pd.read_parquet(out).set_index("path").loc[own.index]
    assert np.abs(answers["p_abnormal"] - own["p_abnormal"]).max() <= 1e-3
    assert (answers["bone_predicted"] == own["bone_predicted"]).all()


def test_the_papers_preset_runs_every_system_and_prints_its_table(user: User, images: Path) -> None:
    run_dir = user.home / "paper"
    done = user.run_study("--preset", "paper", "--data", images, "--run-dir", run_dir, *SMALL)
    report = read_json(run_dir / "report.json")
    check_report(report)
    assert report["run"]["failed_searches"] == {}
    rows = {(row["section"], row["bone"]): row for row in report["paper"]}
    assert rows["3.1", None]["published"] == 0.6951
    assert {section for section, _ in rows} == {"3.1", "3.2", "3.3", "3.4a", "3.4b", "3.4b, all bones", "5"}
    for section in ("3.4a", "3.4b"):
        assert {bone for part, bone in rows if part == section} == {*BONES, "humerus"}
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    accuracy = ((predictions["p_baseline_linear_probe"] >= 0.5) == predictions["label"]).mean()
    assert rows["3.1", None]["ours"]["value"] == pytest.approx(accuracy)
    assert "0.6951" in done.stdout
    assert "image-level test accuracy" in done.stdout
    predict(user, images, run_dir)


def test_whole_networks_and_probes_share_a_run_and_its_bundle_predicts_the_same(
    user: User, images: Path, finetuned: Path
) -> None:
    report = read_json(finetuned / "report.json")
    check_report(report)
    assert report["run"]["failed_searches"] == {}
    assert {"baseline_finetune", "specialists_finetune_oracle", "specialists_finetune_routed"} <= set(report["systems"])
    assert len({line["worker"]["pid"] for line in read_journal(finetuned)}) > 1
    predict(user, images, finetuned)


def test_replicates_are_exported_and_other_checkpoints_are_deleted(finetuned: Path) -> None:
    run = read_json(finetuned / "report.json")["run"]
    replicates = run["replicates"]
    plan = pd.read_csv(finetuned / "plan.csv")
    assert set(replicates) == set(plan["search"])
    shipped = {name for replicate in replicates.values() for name in replicate["shipped"]}
    kept = {path.name.removesuffix(".safetensors") for path in (finetuned / "checkpoints").iterdir()}
    last = {name for name in kept if not name.endswith(".previous")}
    assert last == {name.replace("/", "%2F").replace(":", "%3A") for name in shipped}
    assert {name.removesuffix(".previous") for name in kept} == last
    audited = {found["trial"] for found in run["audit"]["trials"]}
    pruned = {line["trial"] for line in read_journal(finetuned) if line["state"] == "PRUNED"}
    assert audited <= pruned
    of_stage = [pruned & set(plan.loc[plan["stage"] == stage, "trial"]) for stage in (1, 2)]
    assert len(audited) == sum(min(4, len(stopped)) for stopped in of_stage)


def test_a_run_killed_while_it_trains_networks_resumes_to_the_same_results(
    user: User, images: Path, tmp_path: Path
) -> None:
    fewer = ("--recipes", "finetune", "--trials", "1", "--replicate-seeds", "0", "--no-early-stopping")
    fewer = (*fewer, "--max-concurrent", "1")
    options = ("--data", images, *FINETUNE, *fewer)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    user.run_study("--run-dir", whole, *options)
    with user.start(sys.executable, ROOT / "run_study.py", "--all-bones", "--run-dir", killed, *options) as driver:
        wait_until(lambda: count_finetuned(killed) >= 9, "epochs of whole networks", timeout_s=200)
        driver.send_signal(signal.SIGKILL)
        user.wait_for_end()
    old = (killed / "journal.jsonl").read_bytes()
    user.run_study("--run-dir", killed, *options)
    assert (killed / "journal.jsonl").read_bytes().startswith(old[: old.rfind(b"\n") + 1])
    assert_same_results(whole, killed)
    for path in (whole / "checkpoints").iterdir():
        first, second = (
            Checkpoint.from_bytes((run / "checkpoints" / path.name).read_bytes()) for run in (whole, killed)
        )
        assert first.history == second.history
        assert np.array_equal(first.dev_logits, second.dev_logits)


def count_finetuned(run_dir: Path) -> int:
    return sum("/finetune/" in line["trial"] for line in read_journal(run_dir))
