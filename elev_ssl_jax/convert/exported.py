"""A run's weights as files for other frameworks."""

from collections.abc import Callable, Collection
from pathlib import Path

import flax
import jax
import numpy as np
from safetensors.numpy import save

from elev_ssl_jax import sensors
from elev_ssl_jax.convert import branches, names, usage
from elev_ssl_jax.convert.facts import metadata
from elev_ssl_jax.convert.onnx_export import onnx_program
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.models import encoders, fusion
from elev_ssl_jax.models.encoders import RESNETS

_SMP = "segmentation_models_pytorch"
_TIMM_SWIN = "swin_tiny_patch4_window7_224"
_TIMM_SIDE = 224  # of the images in pixels, or a multiple: others it cuts into other windows


def torchvision_tensors(model: Model) -> dict[str, np.ndarray]:
    """The encoder, with its classifier if it has one, for torchvision's and timm's ResNets.

    Raises:
      InputError: The encoder is none of theirs, or has another width.
    """
    _check_encoder(model, "torchvision", RESNETS)
    _check_width(model, "torchvision")
    return names.to_torch(_with_classifier(model), names.torchvision_key, model.step)


def timm_tensors(model: Model) -> dict[str, np.ndarray]:
    """The encoder, with its classifier if it has one, for timm's Swin and ResNets.

    Raises:
      InputError: The encoder is none of theirs, or a ResNet of another width.
    """
    _check_encoder(model, "timm", (*RESNETS, "swin_t"))
    if model.config.model.encoder == "swin_t":
        return names.to_torch(_with_classifier(model), names.swin_key, model.step)
    _check_width(model, "timm")
    return names.to_torch(_with_classifier(model), names.torchvision_key, model.step)


def smp_tensors(model: Model) -> dict[str, np.ndarray]:
    """The U-Net, for segmentation_models_pytorch's `Unet`.

    Raises:
      InputError: The run is not a segmentation with this U-Net, or its encoder, images or width
        are none of theirs.
    """
    swin, head = model.config.model.encoder == "swin_t", branches.head(model)
    _check_single(model, _SMP, "timm" if swin else "torchvision")
    if head in (None, "linear"):
        raise InputError(
            f"{model.run} is not a segmentation run; --to={'timm' if swin else 'torchvision'} "
            "takes its encoder"
        )
    if head != "unet":
        raise InputError(
            f"{model.run} has finetune.head={head}, which is no Unet of {_SMP}; --to=flax takes "
            "all of it"
        )
    _check_encoder(model, _SMP, RESNETS)
    _check_width(model, _SMP)
    height, width, _ = model.image_shape
    if height % 32 or width % 32:
        raise InputError(
            f"{model.run} was trained on {height} x {width} pixels; {_SMP}'s Unet doubles its "
            "maps, so that it wants multiples of 32"
        )
    return names.to_torch(model.variables, names.smp_key, model.step)


def _with_classifier(model):
    parts = {"encoder", "head"} if branches.head(model) == "linear" else {"encoder"}
    return {
        name: {part: tree[part] for part in parts & tree.keys()}
        for name, tree in model.variables.items()
    }


def _check_encoder(model: Model, target: str, known: Collection[str]) -> None:
    _check_single(model, target, target)
    encoder = model.config.model.encoder
    if encoder not in known:
        timm = "--to=timm takes its encoder, " if encoder == "swin_t" else ""
        raise InputError(
            f"{model.run} has model.encoder={encoder}, and --to={target} is for "
            f"{', '.join(known)}; {timm}--to=flax takes all of it"
        )


def _check_single(model, target, instead) -> None:
    """Refuses several encoders, of which the target `instead` takes one."""
    if branches.names(model):
        raise InputError(
            f"{model.run} has an encoder for each sensor (model.fusion=late), and --to={target} "
            f"takes one network; --to={instead} with {branches.advice(model)} takes one encoder, "
            "--to=flax all"
        )


def _check_width(model, library) -> None:
    if model.config.model.width != 1:
        raise InputError(
            f"{model.run} has model.width={model.config.model.width:g}, and {library} has full "
            "width alone; use --to=flax, or train with --config.model.width=1"
        )


def torchvision_file(model: Model, out: Path) -> tuple[bytes, str]:
    """A safetensors file, and the Python that loads it."""
    tensors = torchvision_tensors(model)
    encoder, bands = model.config.model.encoder, model.image_shape[2]
    fitted = branches.head(model) == "linear"
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
    result = "logits" if fitted else "features"
    return save(tensors, metadata(model)), _loaded(lines, model, out, result)


def timm_file(model: Model, out: Path) -> tuple[bytes, str]:
    """A safetensors file, and the Python that loads it."""
    tensors = timm_tensors(model)
    encoder, (*size, bands) = model.config.model.encoder, model.image_shape
    swin = encoder == "swin_t"
    fitted = branches.head(model) == "linear"
    classes = model.num_classes if fitted else 0
    arguments, layout = f"in_chans={bands}, num_classes={classes}", "[B, {}, H, W]"
    if swin:
        if model.config.model.width != 1:
            arguments += f", embed_dim={len(tensors['patch_embed.proj.bias'])}"
        fits = not any(side % _TIMM_SIDE for side in size)
        height, width = size if fits else (_TIMM_SIDE, _TIMM_SIDE)
        if (height, width) != (_TIMM_SIDE, _TIMM_SIDE):
            arguments += f", img_size=({height}, {width})"
        layout = f"[B, {{}}, {height}, {width}]"
    lines = [
        "import timm",
        "from safetensors.torch import load_file",
        f"model = timm.create_model('{_TIMM_SWIN if swin else encoder}', {arguments}).eval()",
    ]
    text = _loaded(lines, model, out, "logits" if fitted else "features", layout)
    if swin and not fits:
        text += (
            f"\n# the run's are {size[0]} x {size[1]}; at sizes that {_TIMM_SIDE} doesn't divide "
            "timm's windows lie elsewhere"
        )
    return save(tensors, metadata(model)), text


def smp_file(model: Model, out: Path) -> tuple[bytes, str]:
    """A safetensors file, and the Python that loads it."""
    tensors = smp_tensors(model)
    name, bands, classes = model.config.model.encoder, model.image_shape[2], model.num_classes
    lines = [
        "import segmentation_models_pytorch as smp",
        "from safetensors.torch import load_file",
        f"model = smp.Unet('{name}', encoder_weights=None, in_channels={bands}, "
        f"classes={classes}).eval()",
    ]
    return save(tensors, metadata(model)), _loaded(lines, model, out, "logits")


def _loaded(
    lines: list[str], model: Model, out: Path, result: str, layout: str = "[B, {}, H, W]"
) -> str:
    """The Python that makes a PyTorch model, with what loads the weights and uses it."""
    before, images = usage.shown(model, "torch")
    lines = [
        *lines,
        f"model.load_state_dict(load_file({out.name!r}))",
        *before,
        f"{result} = model({images})",
        *usage.about(model, layout),
    ]
    return "\n".join(lines)


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
    lines.append(f"from {encoders.__name__} import ENCODERS")
    make, width = f"ENCODERS[{model.config.model.encoder!r}]", model.config.model.width
    if branches.names(model):
        lines.append(f"from {fusion.__name__} import Branches")
        make = f"Branches({sensors.apart(model.inputs, model.shapes)}, {make}, width={width:g})"
    else:
        make += f"(width={width:g})"
    before, images = usage.shown(model, "np")
    lines += [
        *before,
        "parts = {name: tree for name, tree in variables.items() if 'encoder' in tree}",
        "encoder = {name: tree['encoder'] for name, tree in parts.items()}",
        f"maps = {make}.apply(encoder, {images}, train=False)",
        *usage.about(model, "[B, H, W, {}]"),
    ]
    return data, "\n".join(lines)


def onnx_file(model: Model, out: Path) -> tuple[bytes, str]:
    """An ONNX file by PyTorch's exporter: images in sensor units in, features or logits out.

    Its batch may have any size, its images are of the size of the run's chips, and have the bands
    that the network sees.

    Raises:
      InputError: A library is missing, or what `torchvision_tensors` and `smp_tensors` refuse.
    """
    _check_encoder(model, "onnx", RESNETS)
    head = branches.head(model)
    tensors = torchvision_tensors(model) if head in (None, "linear") else smp_tensors(model)
    result = "features" if head is None else "logits"
    proto = onnx_program(model, tensors, result).model_proto
    for key, value in metadata(model).items():
        proto.metadata_props.add(key=key, value=value)
    lines = [
        "import numpy, onnxruntime",
        f"session = onnxruntime.InferenceSession({out.name!r})",
        *usage.chosen(model, "onnx"),
        f"({result},) = session.run(None, {{'images': images.astype(numpy.float32)}})",
        *usage.about(model, "[B, {{}}, {}, {}]".format(*model.image_shape[:2]), dtype=""),
    ]
    return proto.SerializeToString(), "\n".join(lines)


TARGETS: dict[str, Callable[[Model, Path], tuple[bytes, str]]] = {
    "torchvision": torchvision_file,
    "timm": timm_file,
    _SMP: smp_file,
    "flax": flax_file,
    "onnx": onnx_file,
}
