"""Predict a folder of radiographs with a bundle, without Ray.

python examples/predict_with_bundle.py runs/<run>/bundle new_images/
"""

import sys

import mura_models as mura


def main(bundle_dir: str, images: str) -> None:
    """Print one line per image, then the files that could not be used."""
    bundle = mura.load_bundle(bundle_dir)
    print(f"bones: {', '.join(bundle.assembly.classes)}")
    table = bundle.predict(images)
    for row in table.itertuples():
        verdict = "abnormal" if row.prediction else "normal"
        print(f"{row.path}: {row.bone_predicted}, {verdict} (p = {row.p_abnormal:.2f})")
    for file in table.attrs["excluded"]:
        print(f"excluded: {file['path']}: {file['reason']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2])
    except mura.MuraError as error:
        sys.exit(f"error: {error}")
