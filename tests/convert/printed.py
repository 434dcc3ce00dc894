"""Runs the Python that the command prints."""

import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import torch

from tests.models import torch_resnet, torch_swin


def as_torch(images):
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)


def run_usage(usage, images, monkeypatch, tmp_path):
    """Executes the printed lines, where libraries are our plain PyTorch of the same names."""
    models = SimpleNamespace(resnet18=lambda num_classes=1000: torch_resnet.Classifier(num_classes))
    spec = ModuleSpec("torchvision", None)
    module = SimpleNamespace(models=models, __spec__=spec)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(
        sys.modules,
        "segmentation_models_pytorch",
        SimpleNamespace(
            Unet=lambda name, encoder_weights, in_channels, classes: torch_resnet.UNet(classes)
        ),
    )
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=timm_model))
    monkeypatch.chdir(tmp_path)
    scope = {"images": images}
    with torch.no_grad():
        exec(usage.split("written\n")[1], scope)
    return scope


def timm_model(name, in_chans, num_classes, **arguments):
    """As timm's `create_model`."""
    if name == "swin_tiny_patch4_window7_224":
        return torch_swin.Classifier(num_classes, in_chans, **arguments)
    assert (name, arguments) == ("resnet18", {})
    model = torch_resnet.Classifier(num_classes or 1, bands=in_chans)
    if num_classes == 0:
        model.fc = torch.nn.Identity()
    return model
