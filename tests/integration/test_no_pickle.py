"""A run writes no pickle, and our code reads none."""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from file_formats import detect_format
from PIL import Image
from ray_helpers import ROOT

UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
SENDING = {"register_pickle_by_value", "unregister_pickle_by_value"}
"""These send functions between the processes of a run; they write no file."""
READ_PICKLES = {"read_pickle", "to_pickle"}
NUMPY_CALLS = {f"{module}.{call}" for module in ("np", "numpy") for call in ("load", "save", "savez")}


def list_sources() -> list[Path]:
    return sorted(path for package in ("mura_models", "orchestrator") for path in (ROOT / package).rglob("*.py"))


def find_pickles(source: str) -> list[str]:
    """Return the calls and imports in a source that read or write pickles, each with its line."""
    nodes = list(ast.walk(ast.parse(source)))
    sending = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr in SENDING}
    return [f"line {node.lineno}: {what}" for node in nodes if id(node) not in sending and (what := _name_pickle(node))]


def _name_pickle(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        return next((name for name in names if UNPICKLERS & set(name.split("."))), None)
    if isinstance(node, ast.Attribute) and node.attr in UNPICKLERS | READ_PICKLES:
        return node.attr
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called == "torch.save" or (called == "torch.load" and given.get("weights_only") != "True"):
        return called
    if called in NUMPY_CALLS and given.get("allow_pickle") != "False":
        return called
    return f"{called}(allow_pickle)" if given.get("allow_pickle", "False") != "False" else None


def test_neither_package_reads_or_writes_pickles() -> None:
    found = {path.name: lines for path in list_sources() if (lines := find_pickles(path.read_text()))}
    assert found == {}
    assert len(list_sources()) > 50


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import pandas as pd\npd.read_pickle(path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(weights, path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "ray.cloudpickle.loads(content)",
    ],
)
def test_the_search_for_pickles_finds_them(source: str) -> None:
    assert len(find_pickles(source)) == 1


def test_the_search_for_pickles_finds_nothing_else() -> None:
    assert find_pickles("torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\nload_file(path)") == []


def test_a_format_is_recognized_by_content(tmp_path: Path) -> None:
    """A pickle has none of the formats, whatever its name."""
    np.save(tmp_path / "plain.npy", np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / f"{protocol}.json").write_bytes(pickle.dumps({"a": [1.0, "b"]}, protocol=protocol))
        (tmp_path / f"{protocol}.csv").write_bytes(pickle.dumps({"a": [1.0, "b"]}, protocol=protocol))
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    known = {path.name: detect_format(path) for path in tmp_path.iterdir()}
    assert {name: format for name, format in known.items() if format} == {"plain.npy": "npy", "image.png": "png"}
