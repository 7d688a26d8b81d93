"""A clinic's CSV, from images to the report: write synthetic images and their table, check them, train, evaluate.

python examples/clinic_csv.py clinic/

It takes some minutes on two cores. With your own data, write a CSV with the same columns and start at `read_dataset`.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd

import mura_models as mura

BONES = ("elbow", "wrist")
QUICK = ("--image-size", "64", "--trials", "2", "--epochs", "3", "--folds", "2")


def write_clinic(folder: Path) -> Path:
    """Draw synthetic radiographs and describe them in a CSV: path, bone, patient, study, label, split."""
    tree = mura.write_phantom(folder / "images", scale=0.02)
    scanned = mura.read_dataset(tree).manifest
    table = scanned.loc[scanned["bone"].isin(BONES), ["file", "bone", "patient", "study", "label", "split"]]
    path = folder / "manifest.csv"
    table.rename(columns={"file": "path"}).to_csv(path, index=False)
    return path


def main(folder: Path) -> None:
    """Train on the clinic's images and evaluate the bundle on those of its test split."""
    manifest = write_clinic(folder)
    data = mura.read_dataset(manifest)
    print(data.manifest.groupby(["bone", "split"])["label"].agg(["size", "mean"]))

    run_dir = folder / "run"
    options = ("--all-bones", "--data", manifest, "--run-dir", run_dir, *QUICK)
    subprocess.run(["mura", "run", *options], check=True)

    test = data.manifest[data.manifest["split"] == "test"]
    table = mura.load_bundle(run_dir / "bundle").predict(test)
    studies = table[["patient", "bone", "study"]]
    result = mura.evaluate(table["label"], table["p_abnormal"], patients=table["patient"], studies=studies)
    print(pd.DataFrame(result).T)
    print(f"report: {run_dir / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
