"""Bad weights and bundles: name -> the error, raised before anything is trained or predicted."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from factories import make_assembly
from robustness.bad_input import Clinic, Rejection
from safetensors.torch import load_file, save, save_file

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.inference.assembly import FROZEN
from mura_models.inference.bundle import Bundle
from mura_models.inference.bundle_files import write_bundle
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.runtimes import RuntimeChoice

NETWORK = "test_efficientnet"  # timm's own for tests: 0.4 MB
INDEX = "bundle.json"


class Trap:
    """Write a file when unpickled, as code hidden in a file of weights would."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("sprung"),)


@cache
def make_tensors() -> dict[str, torch.Tensor]:
    """Return the weights of a small network."""
    return dict(load_backbone(BackboneSpec(name=NETWORK, weights="random", seed=3)).module.state_dict())


def weights(text: str, name: str, make: Callable[[Path], object] = lambda path: None) -> Rejection:
    """Return a case of a file of weights for the small network; code in it must not run."""
    options = ("--backbone", NETWORK, "--weights", name)
    return Rejection(text=text, options=options, make=lambda clinic: make(clinic.folder / name), not_made="sprung")


def save_changed(path: Path, **changes: Any) -> None:
    """Save the weights with some of them replaced."""
    torch.save(make_tensors() | changes, path)


def change_first(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Return a function that saves the weights with the first one changed."""
    return lambda path: save_changed(path, **{"conv_stem.weight": change(make_tensors()["conv_stem.weight"])})


def save_cut(path: Path) -> None:
    save_file(make_tensors(), path) if path.suffix == ".safetensors" else torch.save(make_tensors(), path)
    path.write_bytes(path.read_bytes()[:100_000])


def write_valid_bundle(clinic: Clinic) -> Path:
    """Write a valid bundle."""
    folder = clinic.folder / "bundle"
    folder.mkdir()
    bundle = Bundle(
        assembly=make_assembly().keep_selected(),
        backbones={FROZEN: load_backbone(BackboneSpec(name=NETWORK, weights="random", seed=3))},
        preprocessing=Preprocessing(image_size_px=64),
        choice=RuntimeChoice(runtime="torch", precision="float32", device="cpu"),
        notes={},
    )
    write_bundle(bundle, folder)
    return folder


def bundle(text: str, damage: Callable[[Path], object]) -> Rejection:
    """Return a case of `mura predict` with a damaged bundle."""
    command = ("mura", "predict", "--bundle", "bundle", "--data", "manifest.csv", "--out", "answers.csv")
    return Rejection(
        text=text, instead=command, make=lambda clinic: damage(write_valid_bundle(clinic)), not_made="answers.csv"
    )


def add_checksum(folder: Path, index: dict[str, Any]) -> None:
    """Write an index with a matching digest, as a forger would."""
    index.pop("digest", None)
    digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    (folder / INDEX).write_text(json.dumps(index | {"digest": digest}))


def forge(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return a change of the index that its digest does not reveal."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        edit(index)
        add_checksum(folder, index)

    return damage


def change_byte(name: str, place: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return damage


def write_index(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(content)


def name_outside(folder: Path) -> None:
    """Let the index name valid weights in the parent folder, with correct digests."""
    (folder / "backbone_0.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["backbones"][FROZEN]["file"] = "../elsewhere.safetensors"
    index["sha256"]["../elsewhere.safetensors"] = index["sha256"].pop("backbone_0.safetensors")
    add_checksum(folder, index)


def name_pickle(folder: Path) -> None:
    """Let the index name a pickle with code, with a correct digest."""
    (folder / "backbone_0.pt").write_bytes(pickle.dumps(Trap()))
    index = json.loads((folder / INDEX).read_text())
    index["backbones"][FROZEN]["file"] = "backbone_0.pt"
    index["sha256"]["backbone_0.pt"] = hashlib.sha256((folder / "backbone_0.pt").read_bytes()).hexdigest()
    add_checksum(folder, index)


def forge_heads(folder: Path) -> None:
    """Put NaN into the heads, with correct digests."""
    tensors = {key: tensor * torch.nan for key, tensor in load_file(folder / "heads.safetensors").items()}
    (folder / "heads.safetensors").write_bytes(save(tensors))
    index = json.loads((folder / INDEX).read_text())
    index["sha256"]["heads.safetensors"] = hashlib.sha256(save(tensors)).hexdigest()
    add_checksum(folder, index)


def edit_head(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["models"]["baseline/mlp_probe"]["networks"][0]["head"].update(changes)


def edit_calibration(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["models"]["baseline/mlp_probe"]["calibration"].update(changes)


PREDICT = ("mura", "predict", "--bundle", "bundle")


def out(text: str, name: str) -> Rejection:
    """Return a case of an output path."""

    def make(clinic: Clinic) -> None:
        write_valid_bundle(clinic)
        Path("folder.csv").mkdir()

    return Rejection(text=text, instead=(*PREDICT, "--data", "manifest.csv", "--out", name), make=make)


def predict(text: str, data: str, make: Callable[[Clinic], object] = lambda clinic: None, *more: str) -> Rejection:
    """Return a case of images to predict."""
    command = (*PREDICT, "--data", data, "--out", "answers.csv", *more)
    return Rejection(text=text, instead=command, make=lambda clinic: (write_valid_bundle(clinic), make(clinic)))


DAMAGED = "damaged, or holds code, which is never run"
NOT_MADE = f"not made for {NETWORK}"
FIT = "bundle: its parts do not fit together"

FILES: dict[str, Rejection] = {
    "no weights": weights("weights 'gone.pt': no such file", "gone.pt"),
    "empty name of weights": Rejection(
        text="--weights '': must be imagenet, random or the path", options=("--weights", "")
    ),
    "a folder as weights": weights("'w.pt': not a file", "w.pt", Path.mkdir),
    "a pipe as weights": weights("'w.pt': not a file", "w.pt", os.mkfifo),
    "weights of zero bytes": weights(DAMAGED, "w.pt", Path.touch),
    "safetensors of zero bytes": weights("weights 'w.safetensors'", "w.safetensors", Path.touch),
    "truncated weights": weights(DAMAGED, "w.pth", save_cut),
    "truncated safetensors": weights("not a valid safetensors file", "w.safetensors", save_cut),
    "text as weights": weights(DAMAGED, "w.pt", lambda path: path.write_text("see the wiki")),
    "weights of an unknown suffix": weights("unknown suffix '.h5'; must be .pt, .pth", "w.h5", Path.touch),
    "a list as weights": weights(NOT_MADE, "w.pt", lambda path: torch.save([1, 2], path)),
    "weights of another architecture": weights(
        NOT_MADE, "w.pt", lambda path: torch.save(torchvision.models.resnet18().state_dict(), path)
    ),
    "weights with NaN": weights("holds NaN or infinite values", "w.pt", change_first(lambda w: w * torch.nan)),
    "weights of another shape": weights("of another shape", "w.pt", change_first(lambda w: w[:1])),
    "complex weights": weights("no plain numbers", "w.pt", change_first(lambda w: w * 1j)),
    "a pickle with code": weights(DAMAGED, "w.pt", lambda path: path.write_bytes(pickle.dumps(Trap()))),
    "weights with code among them": weights(DAMAGED, "w.pt", lambda path: save_changed(path, trap=Trap())),
    "code as safetensors": weights(
        "not a valid safetensors file", "w.safetensors", lambda path: path.write_bytes(pickle.dumps(Trap()))
    ),
    # Bundles.
    "no bundle": Rejection(
        text="nowhere/bundle.json: cannot be read (No such file",
        instead=("mura", "predict", "--bundle", "nowhere", "--data", "manifest.csv", "--out", "a.csv"),
    ),
    "an image as bundle": Rejection(
        text="0.png/bundle.json: cannot be read (Not a directory)",
        instead=("mura", "predict", "--bundle", "0.png", "--data", "manifest.csv", "--out", "a.csv"),
    ),
    "a byte changed in the heads": bundle("heads.safetensors: not the file", change_byte("heads.safetensors", -3)),
    "a byte changed in a backbone": bundle("0.safetensors: not the file", change_byte("backbone_0.safetensors", 100)),
    "a byte changed in the index": bundle("bundle.json: changed after it was written", change_byte(INDEX, -9)),
    "no index": bundle("bundle.json: cannot be read", lambda folder: (folder / INDEX).unlink()),
    "no heads": bundle("heads.safetensors: cannot be read", lambda folder: (folder / "heads.safetensors").unlink()),
    "no backbone": bundle("0.safetensors: cannot be read", lambda folder: (folder / "backbone_0.safetensors").unlink()),
    "a pipe as index": bundle(
        "cannot be read (not a regular file)", lambda folder: ((folder / INDEX).unlink(), os.mkfifo(folder / INDEX))
    ),
    "an index of 1 GB": bundle("cannot be read (1000000000 bytes", lambda folder: os.truncate(folder / INDEX, 10**9)),
    "an index that is no JSON": bundle("bundle.json: not a bundle's index", write_index("{")),
    "an index that is a list": bundle("bundle.json: not a bundle's index", write_index("[]")),
    "an index that is nested too deeply": bundle("bundle.json: not a bundle's index", write_index("[" * 200_000)),
    "another version": bundle(
        "a bundle of schema 2, which mura-study 0.1 reads; this version reads schema 3",
        forge(lambda index: index.update(schema=2)),
    ),
    "a version with a line break": bundle(r"schema 1\n2;", forge(lambda index: index.update(schema="1\n2"))),
    "an additional key in the index": bundle(
        "changed after it was written",
        lambda folder: write_index((folder / INDEX).read_text().replace("{", '{"more": 1,', 1))(folder),
    ),
    "weights outside of the bundle": bundle("must be a .safetensors file next to it", name_outside),
    "weights by an absolute path": bundle(
        "names the file '/etc/x.safetensors'",
        forge(lambda index: index["backbones"][FROZEN].update(file="/etc/x.safetensors")),
    ),
    "a digest of a file outside": bundle(
        "names the file '../manifest.csv'", forge(lambda index: index["sha256"].update({"../manifest.csv": "0"}))
    ),
    "weights without a digest": bundle(
        "has no sha256 of backbone_0.safetensors", forge(lambda index: index["sha256"].pop("backbone_0.safetensors"))
    ),
    "a pickle in the bundle": bundle("names the file 'backbone_0.pt'", name_pickle),
    "a head of a size that fills memory": bundle("its index says", forge(edit_head(hidden_size=10**12))),
    "a head of no size": bundle(FIT, forge(edit_head(hidden_size=0))),
    "NaN in the heads": bundle("holds NaN or infinite values", forge_heads),
    "a temperature of 0": bundle(FIT, forge(edit_calibration(temperature=0))),
    "a temperature of NaN": bundle(FIT, forge(edit_calibration(temperature=float("nan")))),
    "a threshold of 2": bundle(FIT, forge(edit_calibration(threshold=2))),
    "a threshold as text": bundle(FIT, forge(edit_calibration(threshold="0.5"))),
    "no bones": bundle("must name the bones", forge(lambda index: index.update(classes=[], selected={}))),
    "a bone that the router does not know": bundle(
        "the networks of router: must be",
        forge(lambda index: (index["classes"].append("hip"), index["selected"].update(hip="baseline/mlp_probe"))),
    ),
    "an unknown network": bundle(FIT, forge(lambda index: index["backbones"][FROZEN].update(name="no_such"))),
    "a model that is not there": bundle("selected names", forge(lambda index: index["selected"].update(hand="none"))),
    "models in a list": bundle(FIT, forge(lambda index: index.update(models=[]))),
    "digests in a list": bundle("has no sha256", forge(lambda index: index.update(sha256=[]))),
    "a precision that is not there": bundle(FIT, forge(lambda index: index["runtime"].update(precision="int4"))),
    "a bone without a model": bundle("selected [", forge(lambda index: index["selected"].pop("hand"))),
    **{
        f"no {part} in the index": bundle("bundle: its parts", forge(lambda index, part=part: index.pop(part)))
        for part in ("sha256", "models", "classes", "selected", "backbones", "runtime", "preprocessing")
    },
    # What is to be predicted, and where predictions are written.
    "predictions in an unknown format": out("--out a.xlsx: must end in .csv, .parquet, .json", "a.xlsx"),
    "predictions in place of a folder": out("--out folder.csv: is a folder", "folder.csv"),
    "predictions inside a file": out("--out 0.png/a.csv: cannot be written", "0.png/a.csv"),
    "predictions that may not be written": out("--out /proc/a.csv: cannot be written", "/proc/a.csv"),
    "nothing to predict": predict("nowhere: no such file or folder; give a CSV", "nowhere"),
    "a pipe to predict": predict(
        "cannot be read (not a regular file)", "pipe.csv", lambda clinic: os.mkfifo("pipe.csv")
    ),
    "an empty folder to predict": predict("no image that can be read", "empty", lambda clinic: Path("empty").mkdir()),
    "a list of names too long": predict(
        "1 file excluded, most often: file cannot be read: File name too long",
        "list.txt",
        lambda clinic: Path("list.txt").write_text("x/" + "y" * 5000 + ".png\n"),
    ),
    "a split that is not there": predict(
        "--split holdout: manifest.csv has no such rows", "manifest.csv", lambda clinic: None, "--split", "holdout"
    ),
}
