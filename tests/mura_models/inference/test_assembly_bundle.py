"""Router and models together, and the bundle that carries them to another machine."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import NUM_FEATURES, list_names, make_assembly, make_features, make_manifest, wrap_features

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import BundleError
from mura_models.evaluation.calibration import apply_temperature
from mura_models.inference.assembly import FROZEN, Assembly
from mura_models.inference.bundle import Bundle
from mura_models.inference.bundle_files import load_bundle, write_bundle
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.runtimes import RuntimeChoice

NETWORK = "test_efficientnet"  # timm's own for tests: 0.4 MB
FILES = ["backbone_0.safetensors", "bundle.json", "heads.safetensors"]


def make_images():
    """Return test rows, their embeddings and their studies."""
    test = make_manifest()
    test = test[test["split"] == "test"].reset_index(drop=True)
    return test, make_features(test)[:, 0], test["patient"].factorize()[0]


@pytest.fixture(scope="module")
def backbone():
    """A small network with random weights."""
    return load_backbone(BackboneSpec(name=NETWORK, weights="random", seed=3))


@pytest.fixture
def bundle(backbone):
    """A bundle in memory."""
    return Bundle(
        assembly=make_assembly().keep_selected(),
        backbones={FROZEN: backbone},
        preprocessing=Preprocessing(image_size_px=64, resize="pad"),
        choice=RuntimeChoice(runtime="torch", precision="float32", device="cpu"),
        notes={"data": "made up", "version": "0"},
    )


@pytest.fixture
def folder(bundle, tmp_path):
    """The same on disk."""
    write_bundle(bundle, tmp_path)
    return tmp_path


def predict_all(model, features_ND):
    """Return a model's probabilities of all images."""
    return model.predict_proba(wrap_features(features_ND), np.arange(len(features_ND)))


def test_a_model_predicts_by_the_calibrated_mean_logit_of_its_heads():
    _, features_ND, _ = make_images()
    model = make_assembly().models["specialist:hand/mlp_probe"]
    heads = model.networks[0].heads
    logits_KN = [heads.forward_one(k, torch.from_numpy(features_ND).float())[:, 0].detach() for k in range(3)]
    expected = apply_temperature(torch.stack(logits_KN).double().mean(0).numpy(), 0.8)
    assert predict_all(model, features_ND) == pytest.approx(expected, abs=1e-6)


def test_images_of_a_study_are_routed_together_and_others_are_not():
    _, features_ND, studies = make_images()
    assembly = make_assembly()
    together, alone = (
        assembly.route(wrap_features(features_ND), codes) for codes in (studies, np.arange(len(features_ND)))
    )
    assert all(len(set(together.bones[studies == study])) == 1 for study in set(studies))
    assert np.array_equal(alone.bones, alone.image_bones)
    assert np.array_equal(together.image_bones, alone.image_bones)


def test_the_order_of_images_changes_no_answer():
    _, features_ND, studies = make_images()
    order = np.random.default_rng(0).permutation(len(studies))
    straight, shuffled = (
        make_assembly().predict(wrap_features(features_ND[rows]), studies[rows]) for rows in (slice(None), order)
    )
    assert shuffled["bone_predicted"].tolist() == straight["bone_predicted"].iloc[order].tolist()
    assert shuffled["p_abnormal"].to_numpy() == pytest.approx(straight["p_abnormal"].to_numpy()[order], abs=1e-6)


def test_no_images_get_no_answers():
    nothing = wrap_features(np.zeros((0, NUM_FEATURES), np.float16))
    answers = make_assembly().predict(nothing, np.zeros(0, np.int64))
    assert list(answers) == ["bone_predicted", "p_bone", "p_abnormal", "prediction"]
    assert len(answers) == 0


def test_with_one_bone_there_is_nothing_to_route():
    _, features_ND, studies = make_images()
    several = make_assembly()
    one = Assembly(
        classes=("hand",), router=None, models=several.models, selected={"hand": "specialist:hand/mlp_probe"}
    )
    answers = one.predict(wrap_features(features_ND), studies)
    assert set(answers["bone_predicted"]) == {"hand"}
    assert set(answers["p_bone"]) == {1.0}
    assert answers["p_abnormal"].to_numpy() == pytest.approx(
        predict_all(several.models["specialist:hand/mlp_probe"], features_ND)
    )


def test_without_a_router_no_bone_is_named():
    """Else every image would be called the first bone, for certain."""
    _, features_ND, studies = make_images()
    assembly = replace(make_assembly(specialists=(), selected=()), router=None)
    answers = assembly.predict(wrap_features(features_ND), studies)
    assert answers[["bone_predicted", "p_bone"]].isna().all(axis=None)
    assert answers["p_abnormal"].to_numpy() == pytest.approx(
        predict_all(assembly.models["baseline/mlp_probe"], features_ND)
    )


def test_a_loaded_bundle_predicts_as_the_written_one(bundle, folder):
    _, features_ND, studies = make_images()
    read = load_bundle(folder)
    before, after = (b.assembly.predict(wrap_features(features_ND), studies) for b in (bundle, read))
    assert after.equals(before)
    images_B3HW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.backbones[FROZEN].module(images_B3HW), bundle.backbones[FROZEN].module(images_B3HW))


def test_all_that_decides_an_answer_comes_back(bundle, folder):
    read = load_bundle(folder)
    assert read.preprocessing == bundle.preprocessing
    assert read.choice == bundle.choice
    assert read.notes == bundle.notes
    assert read.assembly.classes == bundle.assembly.classes
    assert read.assembly.selected == bundle.assembly.selected
    there, here = read.backbones[FROZEN], bundle.backbones[FROZEN]
    assert (there.name, there.weights_source) == (NETWORK, here.weights_source)


def test_a_bundle_is_shown_in_one_short_line(bundle):
    shown = repr(bundle)
    assert shown.startswith("Bundle(classes=(") and "made up" in shown
    assert "\n" not in shown and len(shown) < 500


def test_a_folder_without_a_bundle_is_refused_with_the_folder_to_pass(tmp_path):
    with pytest.raises(BundleError, match=r"bundle.json: cannot be read \(.*\); must be the folder bundle/ of a run"):
        load_bundle(tmp_path)


def test_only_selected_models_are_exported(bundle):
    assert set(make_assembly().models) - set(bundle.assembly.models) == {
        "baseline/linear_probe",
        "specialist:elbow/mlp_probe",
    }


def test_a_bundle_of_one_bone_has_no_router(bundle, tmp_path):
    model = bundle.assembly.models["specialist:hand/mlp_probe"]
    one = Assembly(classes=("hand",), router=None, models={model.name: model}, selected={"hand": model.name})
    write_bundle(replace(bundle, assembly=one), tmp_path)
    assert load_bundle(tmp_path).assembly.router is None


@pytest.mark.parametrize("bone", ["a#weights.0", "手/été", 'quo"te', "router"])
def test_any_bone_can_be_in_a_bundle(bundle, tmp_path, bone):
    _, features_ND, studies = make_images()
    assembly = make_assembly(("hand", bone), specialists=("hand", bone), selected=("hand", bone)).keep_selected()
    write_bundle(replace(bundle, assembly=assembly), tmp_path)
    read = load_bundle(tmp_path).assembly
    features = wrap_features(features_ND)
    assert read.predict(features, studies).equals(assembly.predict(features, studies))


def test_a_bundle_holds_json_and_safetensors_alone(folder):
    assert list_names(folder) == FILES
    for name in FILES:
        content = (folder / name).read_bytes()
        start = content[8:9] if name.endswith(".safetensors") else content[:1]
        assert start == b"{"  # a zip or a pickle starts otherwise


def test_a_bundle_names_no_patient_and_no_path_of_the_machine_that_made_it(bundle, tmp_path):
    test, _, _ = make_images()
    weights = tmp_path / "machine" / "weights.safetensors"
    weights.parent.mkdir()
    write_bundle(bundle, weights.parent)
    (weights.parent / "backbone_0.safetensors").rename(weights)
    backbone = load_backbone(BackboneSpec(name=NETWORK, weights=str(weights)))
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(replace(bundle, backbones={FROZEN: backbone}), folder)
    content = b"".join((folder / name).read_bytes() for name in FILES)
    assert str(tmp_path).encode() not in content
    assert not any(patient.encode() in content for patient in set(test["patient"]))
    assert not re.search(rb'"/[a-z]', content)
