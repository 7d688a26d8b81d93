"""What runs a backbone: ONNX Runtime or torch, float32 or bfloat16, as measured (docs/explanation/decisions.md)."""

import copy
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Conv2dSame, get_same_padding
from torch import nn
from torch.nn import functional

from mura_models.data.preprocessing import normalize
from mura_models.errors import ConfigError
from mura_models.networks.backbones import Backbone, check_image_size

# ONNX Runtime's official builds send telemetry and leave files behind, which is unacceptable with patients' images. The
# variable must be set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

RuntimeName = Literal["torch", "onnxruntime"]
Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

# On a CPU with bfloat16 instructions, 1.5 times as fast as ONNX Runtime (resnet50 taken to be like resnet18).
BFLOAT16_FASTER = ("resnet18", "resnet50", "densenet169")

# At 256 px. On a CPU core 32 at once are no faster than 8 (measured) and take 0.8 GB more; 64 chosen by us.
BATCH_SIZES = {"cpu": 8, "cuda": 64}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RuntimeChoice:
    """What runs a backbone. Part of the cache key and of the bundle, since it decides the last digits."""

    runtime: RuntimeName
    precision: Precision
    device: Device

    def __post_init__(self) -> None:
        for value, allowed in [
            (self.runtime, get_args(RuntimeName)),
            (self.precision, get_args(Precision)),
            (self.device, get_args(Device)),
        ]:
            if value not in allowed:
                raise ConfigError(f"runtime choice {value!r}: must be one of {', '.join(allowed)}")
        if self.runtime == "onnxruntime" and (self.precision, self.device) != ("float32", "cpu"):
            raise ConfigError(f"onnxruntime in {self.precision} on {self.device}: it runs in float32 on the cpu only")

    def key(self) -> str:
        """Return the choice as part of a cache key."""
        return f"{self.runtime}-{self.precision}-{self.device}"


def choose_runtime(backbone_name: str, device: Device) -> RuntimeChoice:
    """Choose the fastest runtime for a backbone on this machine."""
    if device == "cuda":
        precision: Precision = "bfloat16" if has_native_bfloat16("cuda") else "float32"
        return RuntimeChoice(runtime="torch", precision=precision, device="cuda")
    if backbone_name in BFLOAT16_FASTER and has_native_bfloat16("cpu"):
        return RuntimeChoice(runtime="torch", precision="bfloat16", device="cpu")
    return RuntimeChoice(runtime="onnxruntime", precision="float32", device="cpu")


def has_native_bfloat16(device: str) -> bool:
    """Return whether this GPU or CPU (x86 AVX-512 or AMX, ARM) multiplies bfloat16 natively; emulated, it is slow."""
    if device == "cuda":
        is_native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return is_native
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def prepare_model(
    backbone: Backbone, choice: RuntimeChoice, image_size_px: int
) -> tuple[Backbone | bytes, RuntimeChoice]:
    """Return what every `Embedder` runs: an ONNX model, or the backbone in torch if it cannot be exported.

    Raises ConfigError if the backbone does not take images of this size.
    """
    check_image_size(backbone, image_size_px)
    if choice.runtime == "torch":
        return backbone, choice
    try:
        return export_onnx(backbone, image_size_px), choice
    except RuntimeError as error:  # OnnxExporterError is one
        logger.warning("%s: no ONNX export (%s); torch float32 instead", backbone.name, type(error).__name__)
        return backbone, RuntimeChoice(runtime="torch", precision="float32", device=choice.device)


def export_onnx(backbone: Backbone, image_size_px: int) -> bytes:
    """Export a backbone for square images of one size and any batch: input `images`, output `features`."""
    images_B3HW = torch.zeros(2, 3, image_size_px, image_size_px)  # a batch of one can turn into a constant
    module = _fix_same_padding(backbone.module, images_B3HW)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            (images_B3HW,),
            path,
            dynamo=False,  # under a second; the newer exporter takes ten for an equal graph, and onnxscript
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
        )
        return path.read_bytes()


class _FixedPadding(nn.Module):
    """A 'same' convolution of timm with the padding that its first input needs, stored as a constant."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.padding: list[int] = []

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.padding:
            layer = self.convolution
            for axis in (1, 0):  # F.pad wants the width first
                size = x_BCHW.shape[2 + axis]
                total = get_same_padding(size, layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis])
                self.padding += [total // 2, total - total // 2]
        return nn.Conv2d.forward(self.convolution, functional.pad(x_BCHW, self.padding))


def _fix_same_padding(module: nn.Module, images_B3HW: torch.Tensor) -> nn.Module:
    """Return a copy with constant 'same' padding: computed in the graph, it costs a quarter of the speed."""
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, Conv2dSame):
            module.set_submodule(name, _FixedPadding(layer))
    module(images_B3HW)
    return module


class FeatureFunction(Protocol):
    """Turn normalized float32 images [B, 3, H, W] into float32 features [B, D]."""

    def __call__(self, images_B3HW: torch.Tensor) -> NDArray[np.float32]: ...


class Embedder:
    """Turn uint8 images [B, H, W] into float32 features [B, D] by the chosen runtime.

    Make it in the process that uses it. It sets torch's thread count for that whole process, because
    normalization runs in torch whatever the runtime, and a fixed count makes results repeat.
    """

    def __init__(self, model: Backbone | bytes, choice: RuntimeChoice, *, num_threads: int = 1) -> None:
        if choice.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda': this process sees no GPU; run on the cpu")
        torch.set_num_threads(num_threads)
        self.choice = choice
        self.device = torch.device(choice.device)
        self.batch_size = BATCH_SIZES[choice.device]
        self.num_features: int
        self._run: FeatureFunction
        if isinstance(model, bytes):
            self._run, self.num_features = _load_onnx(model, num_threads)
        else:
            self._run, self.num_features = _load_torch(model, choice), model.num_features

    def __call__(self, images_BHW: torch.Tensor) -> NDArray[np.float32]:
        """Embed images as they are; no augmentation, no rounding."""
        return self._run(normalize(images_BHW.to(self.device)))


def _load_onnx(model: bytes, num_threads: int) -> tuple[FeatureFunction, int]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(images_B3HW: torch.Tensor) -> NDArray[np.float32]:
        features_BD: NDArray[np.float32] = session.run(["features"], {"images": images_B3HW.numpy()})[0]
        return features_BD

    size_px = session.get_inputs()[0].shape[2]
    return run, run(torch.zeros(1, 3, size_px, size_px)).shape[1]  # the graph may not name its output's width


def _load_torch(backbone: Backbone, choice: RuntimeChoice) -> FeatureFunction:
    is_bfloat16 = choice.precision == "bfloat16"
    module = backbone.module.to(device=choice.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images_B3HW: torch.Tensor) -> NDArray[np.float32]:
        images_B3HW = images_B3HW.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(choice.device, torch.bfloat16, enabled=is_bfloat16):
            features_BD: NDArray[np.float32] = module(images_B3HW).float().cpu().numpy()
        return features_BD

    return run
