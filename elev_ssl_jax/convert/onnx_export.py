"""A run's network as an ONNX program, which PyTorch's exporter writes."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from elev_ssl_jax import sensors
from elev_ssl_jax.convert import branches
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.model import Model


def onnx_program(model: Model, tensors: Mapping[str, np.ndarray], result: str) -> Any:
    """PyTorch's ONNX program from images in sensor units to features or logits.

    Args:
      model: The run's.
      tensors: Its network's for torchvision, or for segmentation_models_pytorch if it has a U-Net.
      result: What to call the output.

    Raises:
      InputError: A library is missing.
    """
    encoder, (height, width, bands) = model.config.model.encoder, model.image_shape
    torch = _need("torch")
    _need("onnxscript")
    if branches.head(model) == "unet":
        smp = _need("segmentation_models_pytorch")
        network = smp.Unet(
            encoder, encoder_weights=None, in_channels=bands, classes=model.num_classes
        )
    else:
        network = getattr(_need("torchvision").models, encoder)()
        network.conv1 = torch.nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        network.fc = torch.nn.Identity()
        if branches.head(model) == "linear":
            network.fc = torch.nn.Linear(tensors["fc.weight"].shape[1], model.num_classes)
    network.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
    base: Any = torch.nn.Module
    shown = _shown(torch, model.inputs, bands)

    class Shown(base):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(shown(images))

    return torch.onnx.export(
        Shown().eval(),
        (torch.zeros(2, bands, height, width),),
        input_names=["images"],
        output_names=[result],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )


def _shown(torch: Any, inputs: sensors.Inputs, bands: int) -> Callable[[Any], Any]:
    """`sensors.shown` in PyTorch, of images [B, bands, H, W] with the bands that are shown."""
    scale = (torch.tensor(part).view(-1, 1, 1) for part in sensors.affine(inputs, bands))
    low, high, factor, shift = scale
    light = bands - inputs.with_elevation

    def in_range(images):
        return images.clamp(low, high) * factor + shift

    def over_maximum(images):
        clipped = images.clamp(low, high)
        values = clipped[:, :light] - low[:light]
        values = values / (values.amax((2, 3), keepdim=True) + sensors.LEAST)
        heights = clipped[:, light:] * factor[light:]
        return torch.cat([values, heights], 1) if inputs.with_elevation else values

    return over_maximum if inputs.scaling == "crop_max" else in_range


def _need(library: str) -> Any:
    with suppress(ImportError):
        return importlib.import_module(library)
    raise InputError(f"--to=onnx needs {library}, which is not installed; pip install {library}")
