"""Bad options: name -> the line that the command prints, before Ray is started."""

import json
import os
from collections.abc import Callable

from robustness.bad_input import Clinic, Rejection


def run(text: str, *options: str, make: Callable[[Clinic], object] = lambda clinic: None) -> Rejection:
    """Return a case of `run_study.py --all-bones --dry-run` with these options more."""
    return Rejection(text=text, options=options, make=make)


def start(text: str, *options: str, make: Callable[[Clinic], object] = lambda clinic: None) -> Rejection:
    """Return a case of a run that is no dry one."""
    return Rejection(text=text, instead=("--all-bones", "--folds", "2", "--data", "manifest.csv", *options), make=make)


def mura(text: str, *command: str, make: Callable[[Clinic], object] = lambda clinic: None) -> Rejection:
    """Return a case of a sub-command of `mura`."""
    return Rejection(text=text, instead=("mura", *command), make=make)


def correct(text: str, table: str) -> Rejection:
    """Return a case of a file of corrections."""
    return run(text, "--corrections", "fixes.csv", make=lambda clinic: write(clinic, "fixes.csv", table))


def write(clinic: Clinic, name: str, text: str = "") -> None:
    path = clinic.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_run(clinic: Clinic, **changes: str) -> None:
    """Write what `mura report` reads, but for `changes`."""
    for name in ("report.json", "selected.json", "exploration.json", "trials.parquet", "predictions.parquet"):
        write(clinic, f"run/{name}", changes.get(name.partition(".")[0], '{"schema": 2}'))


FINETUNE = ("--recipes", "finetune")
NETWORKS = "none of linear_probe, mlp_probe trains whole networks; add finetune or intermediate_task"

OPTIONS: dict[str, Rejection] = {
    # What is not one of those allowed.
    "unknown option": run("unknown option: --trails. Did you mean --trials?", "--trails", "3"),
    "unknown preset": run("--preset slow: must be one of quick, paper, full", "--preset", "slow"),
    "unknown metric": run("--metric f2: must be one of auroc", "--metric", "f2"),
    "unknown recipe": run("--recipes soup: must be one of linear_probe", "--recipes", "soup"),
    "no recipe": run("--recipes: name at least one", "--recipes"),
    "unknown sampling": run("--sampling heavy: must be one of plain", "--sampling", "plain", "heavy"),
    "unknown resize": run("--resize crop: must be one of stretch, pad", "--resize", "crop"),
    "unknown backbone": run(
        "--backbone resnet-18: must be the name of a backbone or of a timm model; did you", "--backbone", "resnet-18"
    ),
    "empty backbone": run("--backbone '': must be the name", "--backbone", ""),
    "unknown bone": Rejection(
        text="--bones femur: not in the data, which has hand, wrist",
        instead=("--bones", "femur", "--dry-run", "--folds", "2", "--data", "manifest.csv"),
    ),
    "unknown sub-command": mura('unknown command "perdict". Did you mean "predict"?', "perdict"),
    "no sub-command": mura("a command is missing"),
    # What is no number, or none that is allowed.
    "text as a number": run("--trials many: must be a whole number", "--trials", "many"),
    "a fraction of trials": run("--trials 1.5: must be a whole number", "--trials", "1.5"),
    "a number of 9,000 digits": run(" ... ", "--trials", "9" * 9000),
    "trials -3": run("--trials -3: must be between 1 and 1000", "--trials", "-3"),
    "epochs 0": run("--epochs 0: must be between 1 and 10000", "--epochs", "0"),
    "steps 0": run("--steps 0: must be between 1 and ", "--steps", "0"),
    "folds 1": run("--folds 1: must be between 2 and 100", "--folds", "1"),
    "audit -1": run("--audit -1: must be between 0 and 1000", "--audit", "-1"),
    "replicate-seeds 101": run("--replicate-seeds 101: must be between 0 and 100", "--replicate-seeds", "101"),
    "seed -1": run("--seed -1: must be between 0 and ", "--seed", "-1"),
    "seed beyond 31 bits": run("--seed 2147483648: must be between 0 and ", "--seed", str(2**31)),
    "image-size 0": run("--image-size 0: must be between 16 and 1024", "--image-size", "0"),
    "image-size 1": run("--image-size 1: must be between 16 and 1024", "--image-size", "1"),
    "image-size 100,000": run("--image-size 100000: must be between 16 and 1024", "--image-size", "100000"),
    "an image size that the backbone does not take": run(
        "--image-size 256: backbone vit_tiny_patch16_224 does not take images of this size",
        "--backbone",
        "vit_tiny_patch16_224",
        "--weights",
        "random",
    ),
    "gpus-per-trial 1.5": run("--gpus-per-trial 1.5: must be a whole number if above 1", "--gpus-per-trial", "1.5"),
    "gpus-per-trial -1": run("--gpus-per-trial -1: must be 0 or between 0.01 and 64", "--gpus-per-trial", "-1"),
    "gpus-per-trial nan": run("--gpus-per-trial nan: must", "--gpus-per-trial", "nan"),
    "gpus-per-trial inf": run("--gpus-per-trial inf: must", "--gpus-per-trial", "inf"),
    "gpus-per-trial 1e-9": run("--gpus-per-trial 1e-09: must", "--gpus-per-trial", "1e-9"),
    "cpus-per-trial 0": run("--cpus-per-trial 0: must be between 0.01 and 1024", "--cpus-per-trial", "0"),
    "cpus-per-trial nan": run("--cpus-per-trial nan: must", "--cpus-per-trial", "nan"),
    "cpus-per-trial 1e400": run("--cpus-per-trial inf: must", "--cpus-per-trial", "1e400"),
    "max-concurrent 0": run("--max-concurrent 0: must be between 1 and 100000", "--max-concurrent", "0"),
    "finetune-batch-size 1": run(
        "--finetune-batch-size 1: must be between 2 and ", *FINETUNE, "--finetune-batch-size", "1"
    ),
    "frozen-epochs -1": run(
        "--freeze-backbone-epochs -1: must not be negative", *FINETUNE, "--freeze-backbone-epochs", "-1"
    ),
    "rotation-degrees nan": run(
        "--rotation-degrees nan: must be between 0 and 180", *FINETUNE, "--rotation-degrees", "nan"
    ),
    "rotation-degrees 181": run("--rotation-degrees 181: must", *FINETUNE, "--rotation-degrees", "181"),
    "ema-decay 2": run("--ema-decay 2: must be at least 0 and below 1", *FINETUNE, "--ema-decay", "2"),
    "ema-decay nan": run("--ema-decay nan: must", *FINETUNE, "--ema-decay", "nan"),
    "scale jitter nan": run("--scale-jitter nan: must be at least 0 and below 1", *FINETUNE, "--scale-jitter", "nan"),
    "brightness contrast jitter -0.1": run(
        "--brightness-contrast-jitter -0.1: must be at least 0 and below 1",
        *FINETUNE,
        "--brightness-contrast-jitter",
        "-0.1",
    ),
    "brightness contrast jitter nan": run(
        "--brightness-contrast-jitter nan: must", *FINETUNE, "--brightness-contrast-jitter", "nan"
    ),
    "backbone-lr-factor nan": run("--backbone-lr-factor nan: must", *FINETUNE, "--backbone-lr-factor", "nan"),
    "backbone-lr-factor 0": run("--backbone-lr-factor 0: must", *FINETUNE, "--backbone-lr-factor", "0"),
    "phantom of scale -1": mura("--scale -1: must be above 0", "phantom", "--out", "p", "--scale", "-1"),
    "phantom of scale 0": mura("--scale 0", "phantom", "--out", "p", "--scale", "0"),
    "phantom of scale 1e9": mura("--scale 1000000000", "phantom", "--out", "p", "--scale", "1e9"),
    "phantom of scale nan": mura("--scale nan", "phantom", "--out", "p", "--scale", "nan"),
    "phantom of seed -1": mura("--seed -1: must not be", "phantom", "--out", "p", "--seed", "-1"),
    # What contradicts.
    "all bones and some": run("--bones: not allowed together with --all-bones", "--bones", "hand"),
    "neither all bones nor some": Rejection(text="--all-bones", instead=("--dry-run", "--data", "manifest.csv")),
    "an ensemble of no replicates": run("--replicate-seeds 0: --ensemble needs at least 2", "--ensemble"),
    "an audit where nothing is stopped": run(
        "--audit 3: --no-early-stopping stops no trial", "--no-early-stopping", "--audit", "3"
    ),
    "rotation where no network is trained": run(f"--rotation-degrees 9: {NETWORKS}", "--rotation-degrees", "9"),
    "trials of networks where none is trained": run(f"--finetune-trials 2: {NETWORKS}", "--finetune-trials", "2"),
    "more frozen epochs than epochs": run(
        "--freeze-backbone-epochs 3: must be below --finetune-epochs 3",
        *FINETUNE,
        "--epochs",
        "3",
        "--freeze-backbone-epochs",
        "3",
    ),
    # Addresses and places.
    "an address without a port": run("--address nonsense: must be HOST:PORT", "--address", "nonsense"),
    "an address with a port of its own kind": run("--address here:99999: must be", "--address", "here:99999"),
    "an empty address": run("--address '': must be HOST:PORT", "--address", ""),
    "an empty run directory": run("--run-dir '': the path is empty", "--run-dir", ""),
    "an empty path of data": run("--data '': the path is empty", "--data", ""),
    "data named in no UTF-8": run("is not UTF-8; rename it", "--data", "\udcff.csv"),
    "a run directory that is a file": start("--run-dir 0.png: cannot be written to", "--run-dir", "0.png"),
    "a run directory inside a file": start("--run-dir 0.png/run: cannot be written to", "--run-dir", "0.png/run"),
    "a run directory that may not be written": start("--run-dir /proc/run: cannot be", "--run-dir", "/proc/run"),
    "a run directory without a name, and --fresh": start("--run-dir .: name a folder", "--run-dir", ".", "--fresh"),
    "a run directory of somebody else's run": start(
        "run/run.json: not written by this program",
        "--run-dir",
        "run",
        make=lambda clinic: write(clinic, "run/run.json", "[]"),
    ),
    "a run directory with a damaged run": start(
        "run/run.json: damaged", "--run-dir", "run", make=lambda clinic: write(clinic, "run/run.json", "{")
    ),
    "a phantom in the place of a file": mura("0.png holds other files", "phantom", "--out", "0.png"),
    "a phantom inside a file": mura("0.png/p cannot be made (Not a directory)", "phantom", "--out", "0.png/p"),
    "a phantom that may not be written": mura("/proc/p cannot be made", "phantom", "--out", "/proc/p"),
    "a phantom next to other files": mura(
        "holds other files", "phantom", "--out", "p", make=lambda clinic: write(clinic, "p/mine.txt")
    ),
    "a phantom next to a damaged one": mura(
        "its phantom.json is damaged", "phantom", "--out", "p", make=lambda clinic: write(clinic, "p/phantom.json", "{")
    ),
    "a report of nothing": mura("--run-dir nowhere: has no report.json; finish", "report", "--run-dir", "nowhere"),
    "a report of a file": mura("--run-dir 0.png: has no report.json", "report", "--run-dir", "0.png"),
    "a report of a damaged run": mura(
        "report.json: damaged", "report", "--run-dir", "run", make=lambda clinic: write_run(clinic, report="{")
    ),
    "a report of an older version": mura(
        "report.json: has schema 1, not 2; use mura-study 0.1 for this run, or start a new one with --fresh",
        *("report", "--run-dir", "run"),
        make=lambda clinic: write_run(clinic, report='{"schema": 1}'),
    ),
    "a run directory of an older version": start(
        "run.json: has schema 1, not 2; use mura-study 0.1 for this run, or start a new one with --fresh",
        *("--run-dir", "run"),
        make=lambda clinic: write(clinic, "run/run.json", '{"schema": 1}'),
    ),
    "a report of damaged tables": mura("trials.parquet: damaged", "report", "--run-dir", "run", make=write_run),
    # Corrections.
    "no corrections": run("gone.csv: cannot be read (No such file", "--corrections", "gone.csv"),
    "a pipe as corrections": run(
        "pipe.csv: cannot be read (not a regular file)",
        *("--corrections", "pipe.csv"),
        make=lambda clinic: os.mkfifo("pipe.csv"),
    ),
    "a manifest as corrections": run("manifest.csv: no column source", "--corrections", "manifest.csv"),
    "corrections of an unknown image": correct("path 'x.png' matches no image", "path,label,source\nx.png,1,me\n"),
    "corrections with label 2": correct("row 1: label '2' is not 0 or 1", "path,label,source\n0.png,2,me\n"),
    "corrections without a source": correct("row 1: source is empty", "path,label,source\n0.png,1,\n"),
    "corrections that contradict": correct(
        "rows 1 and 2 contradict each other", "path,label,source\n0.png,1,a\n0.png,0,b\n"
    ),
    "corrections as JSON": correct("not a CSV", json.dumps([{"path": "0.png", "label": 1}], indent=0)),
}
