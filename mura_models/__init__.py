"""Radiographs and networks as a Python library: everything that needs no Ray.

    import mura_models as mura

    bundle = mura.load_bundle("runs/phantom-quick/bundle")
    table = bundle.predict("new_images/")  # pandas: path, bone_predicted, p_abnormal, prediction, ...
    mura.evaluate(table["label"], table["p_abnormal"], patients=table["patient"])  # metrics with 95% intervals

    data = mura.read_dataset("manifest.csv")  # data.manifest, data.quarantine, data.notes
    features = mura.embed(data, backbone="efficientnet_lite0")  # [N, D], cached

All errors are a `MuraError`. The names in `__all__` are the public API; they are imported on first use, so that
`import mura_models` loads neither torch nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mura_models.errors import (
    BundleError,
    ConfigError,
    DataError,
    ImageError,
    MuraError,
    RunError,
    SettingError,
    StorageError,
    UserError,
    WeightsError,
)

if TYPE_CHECKING:
    from mura_models.data.dataset import DataSet, read_dataset
    from mura_models.evaluation.arrays import compare, evaluate
    from mura_models.evaluation.bootstrap import Comparison, Estimate
    from mura_models.inference.bundle import Bundle
    from mura_models.inference.bundle_files import load_bundle
    from mura_models.inference.embed import embed
    from mura_models.phantom import write_phantom

    __version__: str

__all__ = [
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

_HOMES = {
    "Bundle": "mura_models.inference.bundle",
    "Comparison": "mura_models.evaluation.bootstrap",
    "DataSet": "mura_models.data.dataset",
    "Estimate": "mura_models.evaluation.bootstrap",
    "compare": "mura_models.evaluation.arrays",
    "embed": "mura_models.inference.embed",
    "evaluate": "mura_models.evaluation.arrays",
    "load_bundle": "mura_models.inference.bundle_files",
    "read_dataset": "mura_models.data.dataset",
    "write_phantom": "mura_models.phantom",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        try:
            value: Any = metadata.version("mura-study")
        except metadata.PackageNotFoundError:  # a clone that is not installed
            value = "not installed"
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
