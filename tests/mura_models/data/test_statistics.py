"""Statistics of the data before training: exploration.json, its images and data.html."""

import io
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from factories import list_names
from PIL import Image
from report_factories import NASTY, Page

from mura_models.data import statistics
from mura_models.data.cache import CachedArray
from mura_models.data.corrections import CorrectionSummary
from mura_models.data.dataset import DataSet
from mura_models.data.preprocessing import resize_image
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.data.statistics import NUM_SAMPLES, explore, make_thumbnail, measure_gray
from orchestrator.ingest.overview import explore_data, summarize_data
from orchestrator.report import render_data_page
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json, write_table

SIZE_PX = 32
STRETCH = Preprocessing(image_size_px=SIZE_PX)
PAD = Preprocessing(image_size_px=SIZE_PX, resize="pad")
SECRET = "patient-4711"


def make_data(bones=("hand", "hip"), num_per_label=12):
    """Return a manifest, a third of it test, and its images; train images are bright, test images dark."""
    generator = np.random.default_rng(0)
    rows = []
    for bone in bones:
        for number in range(2 * num_per_label):
            split = "test" if number % 3 == 0 else "train"
            rows.append(
                (f"wards/{bone}-{number}.png", bone, f"{SECRET}-{number // 2}", f"s{number}", number % 2, split)
            )
    table = pd.DataFrame(rows, columns=["path", "bone", "patient", "study", "label", "split"])
    table["digest"] = [f"{row:064x}" for row in generator.permutation(len(table))]
    table["width"] = generator.integers(40, 513, len(table))
    table["height"] = generator.integers(40, 513, len(table))
    table["mode"] = np.where(np.arange(len(table)) % 4, "L", "RGB")
    images_NHW = generator.integers(0, 100, (len(table), SIZE_PX, SIZE_PX), dtype=np.uint8)
    images_NHW[(table["split"] == "train").to_numpy()] += 150
    order = np.argsort(table["digest"])
    store = CachedArray(array=images_NHW[order], digests=tuple(table["digest"].iloc[order]), failures={})
    return table, store, images_NHW


def look(rundir, *, bones=("hand", "hip"), **changes):
    """Explore a small data set into a run directory."""
    manifest, images, _ = make_data(bones)
    quarantine = pd.DataFrame({"path": [f"wards/{SECRET}.png"], "reason": ["zero bytes"]})
    write_table(rundir.quarantine, quarantine)
    given = {"name": "ward", "kind": "csv", "is_phantom": False, "notes": ()} | changes
    dataset = DataSet(manifest=manifest, quarantine=quarantine, **given)
    data = summarize_data(dataset, manifest, quarantine)
    explore_data(RunConfig(preprocessing=STRETCH), data, manifest, images, rundir)
    render_data_page(rundir)
    return Page(rundir.data_html.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """The run directory of a look at real images, and its page."""
    folder = tmp_path_factory.mktemp("looked")
    return folder, look(RunDir(folder), notes=("/home-of-jane/images/a.csv is not UTF-8",))


def test_each_bone_has_the_sizes_modes_and_exposure_of_its_images():
    manifest, images, images_NHW = make_data()
    found = explore(manifest, images, STRETCH, seed=0)
    assert list(found.by_bone) == ["hand", "hip"]
    for bone, measures in [*found.by_bone.items(), (None, found.overall)]:
        is_mine = np.ones(len(manifest), bool) if bone is None else (manifest["bone"] == bone).to_numpy()
        rows, grays = manifest[is_mine], images_NHW[is_mine].reshape(is_mine.sum(), -1).mean(axis=1)
        assert measures.num_images == is_mine.sum()
        for spread, values in [
            (measures.width_px, rows["width"]),
            (measures.height_px, rows["height"]),
            (measures.mean_gray, grays),
        ]:
            expected = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
            np.testing.assert_allclose(list(asdict(spread).values()), expected)
        assert measures.modes == rows["mode"].value_counts().to_dict()


def test_gray_levels_are_the_same_in_chunks(monkeypatch):
    _, images, _ = make_data()
    whole = measure_gray(images)
    monkeypatch.setattr(statistics, "IMAGES_PER_CHUNK", 7)
    np.testing.assert_array_equal(measure_gray(images), whole)
    np.testing.assert_allclose(whole, images.array.reshape(len(whole), -1).mean(axis=1))


def test_two_rows_of_one_file_count_twice():
    manifest, images, _ = make_data()
    twice = pd.concat([manifest, manifest.iloc[:1].assign(path="again.png")], ignore_index=True)
    assert explore(twice, images, STRETCH, seed=0).overall.num_images == len(manifest) + 1


def test_every_image_is_in_one_cell_of_the_grid_of_sizes():
    manifest, images, _ = make_data()
    found = explore(manifest, images, STRETCH, seed=0)
    step_px = found.size_step_px
    assert len({cell.width_px for cell in found.sizes} | {cell.height_px for cell in found.sizes}) <= 32
    for cell in found.sizes:
        widths, heights = cell.width_px - manifest["width"], cell.height_px - manifest["height"]
        assert (widths.between(0, step_px - 1) & heights.between(0, step_px - 1)).sum() == cell.num_images
    assert sum(cell.num_images for cell in found.sizes) == len(manifest)


def test_samples_are_train_images_of_different_patients():
    manifest, images, _ = make_data()
    samples = explore(manifest, images, STRETCH, seed=0).samples
    named = [(sample.bone, sample.label) for sample in samples]
    assert named == [(bone, label) for bone in ("hand", "hip") for label in ("normal", "abnormal") for _ in range(4)]
    for sample in samples:
        assert np.asarray(Image.open(io.BytesIO(sample.png))).mean() > 150  # test images are dark
    one_patient = manifest.assign(patient="one")
    assert len(explore(one_patient, images, STRETCH, seed=0).samples) == 4  # one per bone and label
    assert NUM_SAMPLES == 4


def test_samples_follow_the_seed_and_not_the_order_of_the_rows():
    manifest, images, _ = make_data()
    first = explore(manifest, images, STRETCH, seed=0)
    shuffled = manifest.sample(frac=1, random_state=5).reset_index(drop=True)
    assert explore(shuffled, images, STRETCH, seed=0) == first
    assert explore(manifest, images, STRETCH, seed=1).samples != first.samples


@pytest.mark.parametrize("preprocessing", [STRETCH, PAD])
@pytest.mark.parametrize("size", [(400, 100), (100, 400), (300, 300), (400, 16)])
def test_a_thumbnail_has_the_proportions_of_its_file_and_no_margin(preprocessing, size):
    width, height = size
    image_HW = resize_image(np.full((height, width), 200, np.uint8), preprocessing)
    thumbnail = Image.open(io.BytesIO(make_thumbnail(image_HW, size, preprocessing)))
    assert max(thumbnail.size) == 96
    assert thumbnail.width == max(1, round(96 * width / max(size)))
    assert thumbnail.height == max(1, round(96 * height / max(size)))
    assert np.asarray(thumbnail).min() > 150


def test_a_look_leaves_its_figures_images_and_page(looked):
    folder, page = looked
    exploration = read_json(folder / "exploration.json")
    assert exploration["data"]["splits"]["train"]["num_images"] == 32
    assert [sample["file"] for sample in exploration["samples"]] == list_names(folder / "samples")
    images = [image for image in page.images if image["src"].startswith("data:image/png;base64,")]
    assert len(images) == len(exploration["samples"]) == 16
    assert len(page.images) - len(images) == 10
    assert "48 images of 2 bones" in page.text
    assert "train hand 16 8 8 50.0% 16 8 8 50.0% 12" in page.text
    assert "1 zero bytes" in page.text


def test_neither_figures_nor_page_name_a_patient_or_a_path(looked):
    folder, page = looked
    html = (folder / "data.html").read_text(encoding="utf-8")
    everything = (folder / "exploration.json").read_text() + "".join(page.figures()) + html
    for secret in (SECRET, "wards", str(folder)):
        assert secret not in everything
    assert "home-of-jane" not in html
    assert "a.csv is not UTF-8" in page.text


def test_the_page_is_one_file_without_script_or_address_elsewhere(looked):
    folder, page = looked
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(image["src"].startswith(("data:image/svg+xml;", "data:image/png;")) for image in page.images)
    assert "default-src 'none'" in (folder / "data.html").read_text()


def test_real_images_are_not_called_phantom(looked):
    folder, page = looked
    assert "PHANTOM" not in (folder / "data.html").read_text(encoding="utf-8") + "".join(page.figures())


def test_names_with_markup_stay_text(tmp_path):
    summary = CorrectionSummary(
        file="fixes.csv", num_rows=3, images_changed=5, images_unchanged=1, by_source={"<i>reader</i>": 5}
    )
    page = look(RunDir(tmp_path), bones=(NASTY, "hip"), corrections=summary)
    assert "script" not in page.tags
    assert NASTY in page.text
    assert "fixes.csv, 3 rows: 5 images got another label, 1 had that label already" in page.text
    assert "5 <i>reader</i>" in page.text


def test_a_phantom_is_labelled_on_the_page_and_on_every_figure(tmp_path):
    page = look(RunDir(tmp_path), is_phantom=True)
    assert page.text.count("PHANTOM: synthetic images") >= 3
    assert all("PHANTOM" in image["alt"] for image in page.images)
    assert all("PHANTOM: synthetic images" in svg for svg in page.figures())


def test_a_continued_run_keeps_its_look_and_renders_the_page_again(tmp_path):
    rundir = RunDir(tmp_path)
    look(rundir)
    kept = read_json(rundir.exploration)
    kept["by_bone"]["hand"]["num_images"] = 4711
    rundir.exploration.write_text(json.dumps(kept))
    rundir.data_html.unlink()
    assert "hand 4,711" in look(rundir).text
    assert read_json(rundir.exploration) == kept


def test_a_bone_without_test_images_has_its_row(tmp_path):
    manifest, images, _ = make_data()
    manifest = manifest[(manifest["bone"] != "hip") | (manifest["split"] == "train")].reset_index(drop=True)
    quarantine = pd.DataFrame({"path": [], "reason": []}, dtype="str")
    write_table(RunDir(tmp_path).quarantine, quarantine)
    dataset = DataSet(name="x", kind="csv", is_phantom=False, notes=(), manifest=manifest, quarantine=quarantine)
    data = summarize_data(dataset, manifest, quarantine)
    explore_data(RunConfig(preprocessing=STRETCH), data, manifest, images, RunDir(tmp_path))
    render_data_page(RunDir(tmp_path))
    page = Page((tmp_path / "data.html").read_text(encoding="utf-8"))
    assert "train hip 16" in page.text
    assert "test hip" not in page.text
    assert "None: every file could be used." in page.text
