"""Read a run's tables: compare two systems, and draw the AUROC per bone and the best dev AUROC per search.

python examples/read_run.py runs/<run> figure.svg
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import pandas as pd

import mura_models as mura

STUDY = ["patient", "bone", "study"]


def compare_with_baseline(predictions: pd.DataFrame) -> mura.Comparison:
    """Return the gain in AUROC of the selected models, the mean over bones, by study."""
    return mura.compare(
        predictions["label"],
        predictions["p_selected_oracle"],
        predictions["p_baseline_mlp_probe"],
        patients=predictions["patient"],
        studies=predictions[STUDY],
        groups=predictions["bone"],
    )


def draw(run_dir: Path, figure_file: Path) -> None:
    """Draw both figures into one file."""
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    trials = pd.read_parquet(run_dir / "trials.parquet")  # one row per epoch of each trial
    print("selected models against the baseline:", compare_with_baseline(predictions))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for bone, rows in predictions.groupby("bone"):
        auroc = mura.evaluate(rows["label"], rows["p_abnormal"], patients=rows["patient"], studies=rows[STUDY])["auroc"]
        if auroc["ci95"] is not None:
            left.plot(auroc["ci95"], [bone, bone], color="gray")
        left.plot(auroc["value"], bone, "o", color="black")
    left.set(xlabel="test AUROC by study, 95% interval", xlim=(0, 1))
    best = trials.groupby("search")["dev_auroc"].max().dropna().sort_values()
    right.barh(best.index, best)
    right.set(xlabel="best dev AUROC", xlim=(0, 1))
    figure.savefig(figure_file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
