"""The public Python API: what `import mura_models as mura` exports, and that it loads little."""

import ast
import subprocess
import sys
from pathlib import Path

import mura_models as mura
from mura_models import errors

NAMES = [
    "Bundle",
    "BundleError",
    "Comparison",
    "ConfigError",
    "DataError",
    "DataSet",
    "Estimate",
    "ImageError",
    "MuraError",
    "RunError",
    "SettingError",
    "StorageError",
    "UserError",
    "WeightsError",
    "__version__",
    "compare",
    "embed",
    "evaluate",
    "load_bundle",
    "read_dataset",
    "write_phantom",
]


def test_these_names_are_exported_and_no_others():
    assert sorted(mura.__all__) == NAMES
    assert set(NAMES) <= set(dir(mura))
    assert all(getattr(mura, name) is not None for name in NAMES)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(mura, "no_such_name")


def test_every_exception_is_exported_and_is_a_mura_error():
    classes = {name: kind for name, kind in vars(errors).items() if name.endswith("Error")}
    assert classes.keys() == {name for name in NAMES if name.endswith("Error")}
    assert all(getattr(mura, name) is kind and issubclass(kind, mura.MuraError) for name, kind in classes.items())


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING and the lazy ones must agree."""
    tree = ast.parse(Path(mura.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == mura._HOMES


def test_import_loads_neither_torch_nor_pandas():
    code = (
        "import sys\n"
        "import mura_models, mura_models.errors\n"
        "heavy = {'torch', 'pandas', 'numpy', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_of_the_api_loads_ray_or_what_only_training_needs():
    code = (
        "import sys\n"
        "import mura_models as mura\n"
        "for name in mura.__all__: getattr(mura, name)\n"
        "import mura_models.inference.predict\n"
        "heavy = {'ray', 'orchestrator', 'matplotlib', 'jinja2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_packages_ship_their_types():
    for package in ("mura_models", "orchestrator"):
        assert Path(mura.__file__).parents[1].joinpath(package, "py.typed").exists()
