"""A run's weights as files for other frameworks."""

import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from safetensors.numpy import save

from elev_ssl_jax import sensors
from elev_ssl_jax.convert import names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.recipes import METHODS

_NORMALIZATION = (
    "of each band: clip to value_range, subtract its low end, divide by its length; with std, "
    "(x - mean) / std of the clipped values instead; elevation is divided by elevation_scale"
)


def metadata(model: Model) -> dict[str, str]:
    """What a receiver must know to feed the weights, for the head of a safetensors file."""
    config = model.config.copy_and_resolve_references()
    # Of paths their last parts: where they lie on this machine is nobody's business.
    config.data.dir, config.init_from = Path(config.data.dir).name, Path(config.init_from).name
    return {
        "format": "pt",
        "encoder": config.model.encoder,
        "width": str(config.model.width),
        "method": method(config),
        "bands": str(model.image_shape[2]),
        "rgb": " ".join(map(str, config.data.rgb)),
        "image_size": "{} x {}".format(*model.image_shape[:2]),
        "inputs": " ".join(config.data.inputs),
        "shapes": json.dumps({name: model.shapes[name] for name in config.data.inputs}),
        "value_range": " ".join(
            f"{low:.12g} {high:.12g}" for low, high in model.inputs.value_range
        ),
        "mean": " ".join(f"{value:.12g}" for value in model.inputs.mean),
        "std": " ".join(f"{value:.12g}" for value in model.inputs.std),
        "elevation_scale": f"{config.data.elevation_scale:.12g}",
        "normalization": _NORMALIZATION,
        "classes": json.dumps(model.classes),
        "commit": model.commit,
        "config": json.dumps(config.to_dict()),
    }


def method(config: Any) -> str:
    """The name of the method that a configuration describes."""
    if config.task == "finetune":
        return f"fine-tuned from {config.init_from or 'random weights'}"
    for name, recipe in METHODS.items():
        fields = {k: v for k, v in recipe.fields.items() if k.startswith("objective.")}
        said = {"objective.positives": "views", **fields}
        if fields and all(config[k.split(".")[0]][k.split(".")[1]] == v for k, v in said.items()):
            return name
    return f"alpha {config.objective.alpha}, lam {config.objective.lam}"


def torchvision_tensors(model: Model) -> dict[str, np.ndarray]:
    """The encoder, with its classifier if it has one, for torchvision's and timm's ResNets.

    Raises:
      InputError: The encoder has another width than theirs.
    """
    _check_width(model, "torchvision")
    parts = {"encoder", "head"} if _head(model) == "linear" else {"encoder"}
    chosen = {
        name: {part: tree[part] for part in parts & tree.keys()}
        for name, tree in model.variables.items()
    }
    return names.to_torch(chosen, names.torchvision_key, model.step)


def smp_tensors(model: Model) -> dict[str, np.ndarray]:
    """The U-Net, for segmentation_models_pytorch's `Unet`.

    Raises:
      InputError: The run is not a segmentation, or its images or its width are none of theirs.
    """
    if _head(model) != "unet":
        raise InputError(
            f"{model.run} is not a segmentation run; --to=torchvision takes its encoder"
        )
    _check_width(model, "segmentation_models_pytorch")
    height, width, _ = model.image_shape
    if height % 32 or width % 32:
        raise InputError(
            f"{model.run} was trained on {height} x {width} pixels; segmentation_models_pytorch's "
            "Unet doubles its maps, so that it wants multiples of 32"
        )
    return names.to_torch(model.variables, names.smp_key, model.step)


def _head(model) -> str | None:
    return model.config.finetune.head if model.config.task == "finetune" else None


def _check_width(model, library) -> None:
    if model.config.model.width != 1:
        raise InputError(
            f"{model.run} has model.width={model.config.model.width:g}, and {library} has full "
            "width alone; use --to=flax, or train with --config.model.width=1"
        )


def torchvision_file(model: Model, out: Path) -> tuple[bytes, str]:
    """A safetensors file, and the Python that loads it."""
    encoder, bands = model.config.model.encoder, model.image_shape[2]
    fitted = _head(model) == "linear"
    arguments = f"num_classes={model.num_classes}" if fitted else ""
    lines = [
        "import torch, torchvision",
        "from safetensors.torch import load_file",
        f"model = torchvision.models.{encoder}({arguments}).eval()",
    ]
    if bands != 3:
        lines.append(f"model.conv1 = torch.nn.Conv2d({bands}, 64, 7, 2, 3, bias=False)")
    if not fitted:
        lines.append("model.fc = torch.nn.Identity()")
    lines.append(f"model.load_state_dict(load_file({out.name!r}))")
    before, images = _normalized(model, "torch")
    lines += [*before, f"{'logits' if fitted else 'features'} = model({images})"]
    return save(torchvision_tensors(model), metadata(model)), _with_shapes(lines, model)


def smp_file(model: Model, out: Path) -> tuple[bytes, str]:
    """A safetensors file, and the Python that loads it."""
    name, bands, classes = model.config.model.encoder, model.image_shape[2], model.num_classes
    lines = [
        "import segmentation_models_pytorch as smp",
        "from safetensors.torch import load_file",
        f"model = smp.Unet('{name}', encoder_weights=None, in_channels={bands}, "
        f"classes={classes}).eval()",
        f"model.load_state_dict(load_file({out.name!r}))",
    ]
    before, images = _normalized(model, "torch")
    lines += [*before, f"logits = model({images})"]
    return save(smp_tensors(model), metadata(model)), _with_shapes(lines, model)


def flax_file(model: Model, out: Path) -> tuple[bytes, str]:
    """All variables as msgpack, or as safetensors with names like `params/encoder/...`.

    Raises:
      InputError: The file's name has another suffix than these.
    """
    variables = jax.device_get(model.variables)
    if out.suffix == ".msgpack":
        data = flax.serialization.msgpack_serialize(variables)
        lines = [
            "import flax",
            f"variables = flax.serialization.msgpack_restore(open({out.name!r}, 'rb').read())",
        ]
    elif out.suffix == ".safetensors":
        flat = flax.traverse_util.flatten_dict(variables, sep="/")
        arrays = {name: np.ascontiguousarray(value) for name, value in flat.items()}
        data = save(arrays, {**metadata(model), "format": "flax"})
        lines = [
            "from flax.traverse_util import unflatten_dict",
            "from safetensors.numpy import load_file",
            f"variables = unflatten_dict(load_file({out.name!r}), sep='/')",
        ]
    else:
        raise InputError(f"--out={out} has an unknown suffix; it must be .safetensors or .msgpack")
    encoder = {"resnet18": "ResNet18", "resnet34": "ResNet34", "resnet50": "ResNet50"}
    kind = encoder[model.config.model.encoder]
    before, images = _normalized(model, "np")
    lines += [
        f"from elev_ssl_jax.models.resnet import {kind}",
        *before,
        "encoder = {name: tree['encoder'] for name, tree in variables.items()}",
        f"maps = {kind}(width={model.config.model.width:g}).apply(encoder, {images}, train=False)",
        f"# images: float32 [B, H, W, {model.image_shape[2]}] in sensor units{_bands(model)}",
    ]
    return data, "\n".join(lines)


def onnx_file(model: Model, out: Path) -> tuple[bytes, str]:
    """An ONNX file by PyTorch's exporter: images in sensor units in, features or logits out.

    Its batch may have any size, its images are of the size of the run's chips.

    Raises:
      InputError: A library is missing, or what `torchvision_tensors` and `smp_tensors` refuse.
    """
    encoder, (height, width, bands) = model.config.model.encoder, model.image_shape
    tensors = smp_tensors(model) if _head(model) == "unet" else torchvision_tensors(model)
    torch = _need("torch")
    _need("onnxscript")
    if _head(model) == "unet":
        smp = _need("segmentation_models_pytorch")
        network = smp.Unet(
            encoder, encoder_weights=None, in_channels=bands, classes=model.num_classes
        )
    else:
        network = getattr(_need("torchvision").models, encoder)()
        network.conv1 = torch.nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        network.fc = torch.nn.Identity()
        if _head(model) == "linear":
            network.fc = torch.nn.Linear(tensors["fc.weight"].shape[1], model.num_classes)
    network.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
    scale = sensors.affine(model.inputs, bands)
    low, high, factor, shift = (torch.tensor(part).view(-1, 1, 1) for part in scale)
    base: Any = torch.nn.Module

    class Normalized(base):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images.clamp(low, high) * factor + shift)

    name = "features" if _head(model) is None else "logits"
    program = torch.onnx.export(
        Normalized().eval(),
        (torch.zeros(2, bands, height, width),),
        input_names=["images"],
        output_names=[name],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    lines = [
        "import numpy, onnxruntime",
        f"session = onnxruntime.InferenceSession({out.name!r})",
        f"({name},) = session.run(None, {{'images': images.astype(numpy.float32)}})",
        f"# images: [B, {bands}, {height}, {width}] in sensor units",
    ]
    proto = program.model_proto
    for key, value in metadata(model).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(), "\n".join(lines)


def _need(library: str) -> Any:
    with suppress(ImportError):
        return importlib.import_module(library)
    raise InputError(f"--to=onnx needs {library}, which is not installed; pip install {library}")


def _normalized(model, library: str) -> tuple[list[str], str]:
    """Python that makes `images` what the network sees: lines before, and the expression."""
    inputs, clip = model.inputs, {"np": "clip", "torch": "clamp"}[library]
    if len(inputs.value_range) == 1 and not inputs.std and not inputs.with_elevation:
        ((low, high),) = inputs.value_range
        return [], f"(images.{clip}({low:g}, {high:g}) - {low:g}) / {high - low:g}"
    scale = sensors.affine(inputs, model.image_shape[2])
    shape = {"np": "", "torch": ".view(-1, 1, 1)"}[library]
    make = {"np": "np.array", "torch": "torch.tensor"}[library]
    lines = {"np": ["import numpy as np"], "torch": ["import torch"]}[library]
    for name, values in zip(("low", "high", "factor", "shift"), scale, strict=True):
        numbers = ", ".join(f"{value:.9g}" for value in values)
        lines.append(f"{name} = {make}([{numbers}]){shape}")
    return lines, f"images.{clip}(low, high) * factor + shift"


def _bands(model) -> str:
    """Which band is what, where that is not plain."""
    rgb, shapes = tuple(model.config.data.rgb), model.shapes
    names = model.inputs.names
    parts = [f"{name}, {shapes[name][2]} bands" for name in names if len(shapes[name]) == 3]
    parts += ["elevation in metres, 0 where missing, on the images' grid"] * (
        model.inputs.with_elevation
    )
    text = f": {'; '.join(parts)}" if len(names) > 1 else ""
    return text + (f"; red, green, blue are bands {rgb}" if rgb else "")


def _with_shapes(lines, model) -> str:
    bands = model.image_shape[2]
    lines.append(f"# images: float32 [B, {bands}, H, W] in sensor units{_bands(model)}")
    return "\n".join(lines)


TARGETS: dict[str, Callable[[Model, Path], tuple[bytes, str]]] = {
    "torchvision": torchvision_file,
    "segmentation_models_pytorch": smp_file,
    "flax": flax_file,
    "onnx": onnx_file,
}
