"""Hand-made reports and readers of their pages, shared by the tests of the report."""

import base64
import functools
import http.server
import io
import json
import re
import shutil
import socketserver
import subprocess
import threading
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pandas as pd
from factories import SYSTEM_NAMES
from rich.console import Console

from orchestrator.report import render_report
from orchestrator.report.terminal import print_summary
from orchestrator.run.directory import RunDir
from orchestrator.run.files import write_json, write_table
from orchestrator.run.json_schema import SCHEMA_FILE
from orchestrator.run.names import SearchId

METRICS = ("kappa", "kappa_at_half", "accuracy", "auroc", "f1", "sensitivity", "specificity")


PATIENT = "patient-4711"


NASTY = "<script>alert('x')</script> & \"quoted\" $a_b$"


def make_estimate(value, reason=None):
    if value is None:
        return {"value": None, "ci95": None, "reason": reason}
    if reason:
        return {"value": value, "ci95": None, "reason": reason}
    return {"value": value, "ci95": [value - 0.05, value + 0.05]}


def make_summary(value=0.8, reason=None):
    metrics = {metric: make_estimate(value, reason) for metric in METRICS}
    return {"num_images": 90, "num_studies": 45, "image": metrics, "study": metrics}


def make_comparisons(bones, gain=0.03, without=(), unfair=()):
    """Compare every system with a baseline; the bones in `without` have no specialist, so nothing differs there."""
    rows, same = [], {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0, "is_zero_by_design": True}
    pairs = [(system, "baseline_mlp_probe") for system in SYSTEM_NAMES[2:]] + [("selected_routed", "selected_oracle")]
    for a, b in pairs:
        for unit in ("study", "image"):
            for metric in ("auroc", "kappa"):
                named = {"system": a, "reference": b, "unit": unit, "metric": metric, "is_fair": a not in unfair}
                named |= {"is_zero_by_design": False, "reason": None, "left_out": [], "too_few": []}
                known = {"difference": gain, "ci95": [gain - 0.02, gain + 0.02], "p": 0.01}
                mean = {"bone": None, "scope": "mean_of_bones", "left_out": [bones[-1]]}
                rows.append(named | mean | known)
                rows.append(named | {"bone": None, "scope": "pooled"} | known)
                alike = without if a.startswith("specialists") else ()
                rows += [
                    named | {"bone": bone, "scope": "bone"} | (same if bone in alike else known) for bone in bones[:-1]
                ]
                absent = {"difference": None, "ci95": None, "p": None, "reason": "one class only"}
                rows.append(named | {"bone": bones[-1], "scope": "bone"} | absent)
    return rows


NO_AUDIT = {"asked": 0, "trials": []}


def make_report(
    bones,
    *,
    is_phantom=False,
    with_router=True,
    failed=None,
    without=None,
    paper=None,
    audit=NO_AUDIT,
    replicates=None,
    candidates=None,
    config=None,
    unfair=(),
):
    by_bone = {bone: make_summary() for bone in bones} | {bones[-1]: make_summary(None, "one class only")}
    means = dict.fromkeys(METRICS, 0.8)
    absent = {bones[-1], *(without or {}), *(SearchId.parse(search).bone for search in failed or {})}
    nowhere = [bone for bone in bones if bone in absent]
    system = {"overall": make_summary(), "mean_of_bones": means, "mean_of_bones_by_image": means, "by_bone": by_bone}
    systems = {
        name: system | {"bones_without_specialist": nowhere if name.startswith("specialists") else []}
        for name in SYSTEM_NAMES
    }
    counts = {"num_images": 1200, "num_images_abnormal": 300, "num_studies": 600, "num_studies_abnormal": 150}
    counts |= {"num_patients": 500}
    confusion = (np.eye(len(bones), dtype=int) * 40 + 1).tolist()
    chosen = {"recipe": "linear_probe", "candidates": candidates or {"linear_probe": 0.96}}
    level = {"macro_f1": 0.97, "accuracy": 0.98, "confusion": confusion}
    choice = {"target": "baseline", "recipe": "mlp_probe", "trial": "baseline/mlp_probe/000", "lr_schedule": "cosine"}
    dev = dict.fromkeys(METRICS, 0.75)
    reason = "baseline: paired dev gain in auroc over the best baseline -0.0066, standard error 0.0108"
    searches, states = list_searches(bones), {"COMPLETE": 2, "PRUNED": 1}
    data = {"name": "ward", "kind": "csv", "is_phantom": is_phantom, "notes": ["/wards/jane/images/a.csv is Latin-1"]}
    return {
        "schema": 2,
        "run": {
            "config": {
                "preset": "quick",
                "bones": None,
                "metric": "auroc",
                "kept_epoch": "last",
                "early_stopping": True,
                "seed": 7,
                "backbone": {"name": "resnet18", "weights": "/wards/jane doe/weights/r18.pt"},
            }
            | (config or {}),
            "data_fingerprint": "6c51084ea3315b4c4ca3467e",
            "versions": {"python": "3.11.7", "ray": "2.60.0"},
            "git_commit": None,
            "images_decoded": 1300,
            "images_embedded": 0,
            "backbone": "resnet18",
            "weights": "file r18.pt",
            "runtime": {"runtime": "torch", "precision": "bfloat16", "device": "cpu"},
            "searches": {
                s: {"trials": 3, "epochs": 11, "max_epochs": 5, "steps_per_epoch": 15, "states": states}
                for s in searches
            },
            "failed_searches": failed or {},
            "bones_without_specialist": {bones[-1]: "81 normal and 10 abnormal images in train"} | (without or {}),
            "files_not_decoded": 1,
            "audit": audit,
            "replicates": replicates or {},
        },
        "data": data
        | {
            "splits": {split: counts | {"by_bone": dict.fromkeys(bones, counts)} for split in ("test", "train")},
            "corrections": None,
            "quarantined": {"total": 3, "by_reason": {"zero bytes": 2, "not an image": 1}},
        },
        "router": {"classes": list(bones), "image": level, "study": level} | chosen if with_router else None,
        "systems": systems,
        "selected": {
            bone: choice | {"lr": 0.000067, "dev": dev, "threshold": 0.384, "temperature": 1.07, "reason": reason}
            for bone in bones
        },
        "best_baseline": "baseline_mlp_probe",
        "comparisons": make_comparisons(bones, without=without or {}, unfair=unfair),
        "roc": make_roc(bones[:-1]),
        "paper": paper,
    }


def make_roc(bones):
    """Return ROC curves of all bones and of each."""
    curve = {"false_positive_rate": [0.0, 0.2, 1.0], "sensitivity": [0.0, 0.7, 1.0]}
    curves = dict.fromkeys(("baseline_mlp_probe", "selected_routed"), curve)
    return [{"bone": bone, "num_normal": 60, "num_abnormal": 30, "curves": curves} for bone in (None, *bones)]


PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")


def make_exploration(bones, data):
    spread = {"minimum": 20, "lower": 40.5, "median": 60, "upper": 80, "maximum": 120}
    measures = {"num_images": 1200, "modes": {"L": 1000, "RGB": 200}}
    measures |= dict.fromkeys(("width_px", "height_px", "mean_gray"), spread)
    image = {"width_px": 120, "height_px": 20, "mode": "RGB", "file": "000.png"}
    return {
        "data": data,
        "overall": measures,
        "by_bone": dict.fromkeys(sorted(bones), measures),
        "size_step_px": 4,
        "sizes": [{"width_px": 120, "height_px": 20, "num_images": 1200}],
        "samples": [{"bone": bone, "label": label} | image for bone in bones for label in ("normal", "abnormal")],
    }


def list_searches(bones):
    return ["baseline/mlp_probe", *(f"specialist:{bone}/mlp_probe" for bone in bones), "router/linear_probe"]


def make_trials(searches, num_trials=3, num_epochs=5):
    rows = []
    for search in searches:
        for number in range(num_trials):
            is_pruned = number == num_trials - 1
            ran = num_epochs - 2 if is_pruned else num_epochs
            for epoch in range(1, ran + 1):
                end = "PRUNED" if is_pruned else "COMPLETE"
                score = 0.6 + 0.05 * epoch - 0.02 * number
                rows.append(
                    {
                        "search": search,
                        "trial": f"{search}/{number:03d}",
                        "epoch": epoch,
                        "dev_auroc": np.nan if search.startswith("router") else score,
                        "dev_macro_f1": score if search.startswith("router") else np.nan,
                        "train_loss": 0.7 / epoch + 0.05 * number,
                        "dev_loss": 0.75 / epoch + 0.06 * epoch,
                        "train_accuracy": 0.6 + 0.06 * epoch,
                        "dev_accuracy": score - 0.02 if search.startswith("router") else np.nan,
                        "dev_image_accuracy": np.nan if search.startswith("router") else score - 0.02,
                        "state": end if epoch == ran else "RUNNING",
                    }
                )
    return pd.DataFrame(rows)


def check_report(report):
    """Check a report.json against the committed schema."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)


def write_run(root, bones=("hand", "leg", "hip"), *, num_trials=3, num_epochs=5, kept_epoch=None, **changes):
    report = make_report(bones, **changes)
    check_report(report)
    rundir = RunDir(root)
    searches = [search for search in list_searches(bones) if search not in report["run"]["failed_searches"]]
    winner = {"lr_schedule": "step", "lr": 0.01671, "weight_decay": 8.3, "num_epochs": 5, "score": 0.83}
    winner |= {} if kept_epoch is None else {"kept_epoch": kept_epoch}
    write_json(rundir.selected, {"winners": {search: winner | {"trial": f"{search}/000"} for search in searches}})
    write_json(rundir.report_json, report)
    write_json(rundir.exploration, make_exploration(bones, report["data"]))
    rundir.samples.mkdir(parents=True)
    (rundir.samples / "000.png").write_bytes(PIXEL)
    write_table(rundir.trials, make_trials(searches, num_trials, num_epochs))
    write_table(rundir.predictions, pd.DataFrame({"patient": [PATIENT]}))
    render_report(rundir)
    return rundir


class Page(HTMLParser):
    """The text, tags and figures of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.images, self.titles = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attributes)
        if "title" in attributes:
            self.titles.append(attributes["title"])

    def handle_data(self, data):
        self.words.append(data)

    def figures(self):
        drawn = [image["src"] for image in self.images if image["src"].startswith("data:image/svg")]
        return [base64.b64decode(source.split(",", 1)[1]).decode() for source in drawn]


def read_page(rundir):
    return Page(rundir.report_html.read_text(encoding="utf-8"))


def print_to_text(rundir):
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(rundir, console)
    return console.export_text()


def find_chromium():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


FRAMES = (("report", 1200), ("report", 390), ("print", 688))
"""Desktop, phone, and an A4 page between its margins with the rules for print."""


PROBE = """<!doctype html><body>{frames}<pre id=found>waiting</pre><script>
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(part => part.open = true);
    const free = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll") && e.scrollWidth
      && getComputedStyle(e).display !== "inline" && e.getBoundingClientRect().right > frame.clientWidth + 1);
    return {{width: frame.clientWidth, page: root.scrollWidth, height: root.scrollHeight,
      images: [...page.images].filter(image => image.naturalWidth > 0).length,
      beyond: free.map(e => e.tagName + "." + e.className).slice(0, 5)}};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


def check_layout(rundir, profile):
    """Lay the page out in a browser in every frame: all figures load and nothing extends beyond the page."""
    printed = rundir.report_html.read_text(encoding="utf-8").replace("@media print", "@media all")
    (rundir.root / "print.html").write_text(printed, encoding="utf-8")
    frames = "".join(
        f'<iframe src="{name}.html" style="border:0;width:{width}px;height:900px"></iframe>' for name, width in FRAMES
    )
    (rundir.root / "probe.html").write_text(PROBE.format(frames=frames))
    found = measure(rundir.root, profile)
    assert [frame["width"] for frame in found] == [width for _, width in FRAMES]
    for frame in found:
        assert frame["page"] <= frame["width"]
        assert frame["beyond"] == []
        assert frame["height"] > 3000
        assert frame["images"] == len(read_page(rundir).images)


def measure(root, profile):
    """Let headless Chromium lay out probe.html and return what it measured."""
    handler = functools.partial(QuietHandler, directory=root)
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        switches = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
        switches += ["disable-background-networking", "disable-component-update", "disable-sync", "dump-dom"]
        switches += [f"user-data-dir={profile}", "window-size=1300,2000", "virtual-time-budget=20000"]
        address = f"http://127.0.0.1:{server.server_address[1]}/probe.html"
        command = [find_chromium(), *(f"--{switch}" for switch in switches), address]
        try:
            dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
        finally:
            server.shutdown()
            thread.join()
    return json.loads(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S).group(1))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Sends the files of a folder and logs nothing."""

    def log_message(self, *args):
        pass


def make_paper(bone="humerus"):
    missing = make_estimate(None, "12 normal and 3 abnormal images in train: a specialist needs 20 of each")
    return [
        make_paper_row("3.1", "baseline_linear_probe", None, 0.6951, make_estimate(0.7)),
        make_paper_row("3.2", "baseline_mlp_probe", None, 0.7217, make_estimate(None, "not trained in this run")),
        make_paper_row("3.3", "baseline_intermediate_task", None, 0.591, make_estimate(0.65)),
        make_paper_row("3.4b", SPECIALIST, bone, 0.8892, make_estimate(0.81)),
        make_paper_row("3.4b", SPECIALIST, "shoulder", None, missing),
        make_paper_row("3.4b, all bones", "baseline_two_stage_probe", None, None, make_estimate(0.74, "too few")),
        make_paper_row("5", "specialists_two_stage_probe_routed", None, None, make_estimate(0.78)),
    ]


def make_audited(*gains):
    return [
        {
            "search": SEARCH,
            "trial": f"{SEARCH}/{number:03d}",
            "stopped_epoch": 2,
            "score_at_stop": 0.7,
            "last_epoch": 5,
            "final_score": 0.83 + gain,
            "winner_score": 0.83,
            "gain": gain,
            "is_wrong": gain > 0,
        }
        for number, gain in enumerate(gains)
    ]


def make_replicate(shipped):
    scores = [0.801, 0.812, 0.79]
    replicate = {"searched_score": 0.834, "seeds": [11, 12, 13], "scores": scores, "mean": 0.801, "sd": 0.011}
    return replicate | {"shipped": [f"{SEARCH}/replicate/{seed}" for seed in shipped]}


SEARCH = "baseline/mlp_probe"


SPECIALIST = "specialists_two_stage_probe_oracle"


def make_paper_row(section, system, bone, published, ours, *, num_images=90):
    named = {"section": section, "system": system, "description": f"what {system} is", "bone": bone}
    figures = {"published": published, "ours": ours, "auroc": ours, "num_images": num_images}
    return named | figures | {"unit": "image", "metric": "accuracy at 0.5"}
