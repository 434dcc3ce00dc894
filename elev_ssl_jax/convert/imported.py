"""Weights of other frameworks as a run, whose encoder `init_from` takes."""

import functools
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from elev_ssl_jax import files
from elev_ssl_jax.config import default
from elev_ssl_jax.convert import names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.models.encoders import RESNETS
from elev_ssl_jax.models.swin import HEAD, WINDOW, Swin
from elev_ssl_jax.runtime import checkpoint
from elev_ssl_jax.runtime.train_state import TrainState

CLASSIFIER = ("fc.weight", "fc.bias")  # of a ResNet's own classes; left out
_STEMS = {
    "conv1.weight": "[64, bands, 7, 7]",
    "patch_embed.proj.weight": "[96, bands, 4, 4]",
}
_SWIN_BUFFERS = ("relative_position_index", "attn_mask")  # which follow from the sizes


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file, or the tensors of a `.pth` or `.pt` file.

    Raises:
      InputError: The file is missing, damaged, of another kind, or a pickle of other things than
        tensors; or PyTorch is needed and missing.
    """
    if not path.is_file():
        raise InputError(f"{path} not found")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "np") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, TypeError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt"):
        raise InputError(f"{path} has an unknown suffix; .safetensors, .pth and .pt are read")
    try:
        import torch

        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
            raise InputError(
                f"PyTorch {torch.__version__} may run code that {path} holds (CVE-2025-32434); "
                "install 2.6 or later, or convert the file to safetensors"
            )
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch, which is not installed; pip install torch, or convert the file "
            "to safetensors"
        ) from error
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of text and damaged pickles it raises whatever comes
        raise InputError(
            f"{path} is damaged, or holds other things than tensors, which are never run; save its "
            "state_dict alone"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise InputError(f"{path} is not a state_dict: names and tensors are needed, and no more")
    if not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} is not a state_dict: names must be texts")
    tensors = {}
    for name, value in content.items():
        try:
            value = value.detach()
            tensors[name] = (value.float() if value.dtype.is_floating_point else value).numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"{path}: {name} is no dense tensor of numbers ({value.dtype}, {value.layout}, on "
                f"{value.device}); save it as one"
            ) from error
    return tensors, {}


def _check_archive(path):
    """PyTorch's archives hold tensors as they are; others unpack to anything."""
    if not zipfile.is_zipfile(path):
        return
    with files.told(path, "save the state_dict again"), zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > 2 * path.stat().st_size + 2**20:
            raise ValueError("it unpacks to more than it holds")


def encoder_variables(
    tensors: dict[str, np.ndarray], source: str, prefix: str = ""
) -> tuple[str, float, Any]:
    """An encoder under torchvision's or timm's names as ours: its name, width, and variables.

    Args:
      tensors: The state dictionary of a ResNet or a Swin; its classifier is left out.
      source: What to call it in errors.
      prefix: Of the names that are wanted, as `encoder.`; others are left alone.

    Raises:
      InputError: It is not a ResNet18, 34 or 50, nor a Swin of the size that is `swin_t`.
    """
    if prefix:
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    found = {name: tensors.get(name, np.zeros(0)) for name in _STEMS}
    stems = [name for name, value in found.items() if value.ndim == 4 and value.size]
    if not stems:
        others = [
            name.removesuffix(stem)
            for stem in _STEMS
            for name in tensors
            if name.endswith(f".{stem}")
        ]
        hint = f"; try --prefix={min(others, key=len)}" if others else ""
        wanted = ", nor ".join(f"{prefix}{name} {shape}" for name, shape in _STEMS.items())
        raise InputError(f"{source} has no {wanted}{hint}")
    make = _resnet if "conv1.weight" in stems else _swin
    name, width, variables = make(tensors, source)
    parts = ("params", "batch_stats")
    return name, width, {part: variables.get(part, {}).get("encoder", {}) for part in parts}


def _resnet(tensors, source):
    tensors = {name: value for name, value in tensors.items() if name not in CLASSIFIER}
    _check_finite(tensors, source)
    stem = tensors["conv1.weight"]
    width, bands = stem.shape[0] / 64, stem.shape[1]

    def shapes(name):
        return _shapes(RESNETS[name](width=width), bands)

    # The nearest of the three, so that what is missing is told against the right one.
    blocks = {name.rpartition(".")[0] for name in tensors}
    distance = {
        name: len(blocks ^ {k.rpartition(".")[0] for k in _keys(shapes(name))}) for name in RESNETS
    }
    name = min(distance, key=lambda name: distance[name])
    what = f"{source}, as a {name},"
    return name, width, names.from_torch(tensors, shapes(name), names.torchvision_key, what)


def _swin(tensors, source):
    """Under timm's names, or those of Microsoft and of older timm, who merge at a stage's end."""
    tensors = {
        name: value
        for name, value in tensors.items()
        if not name.startswith("head.") and name.rpartition(".")[2] not in _SWIN_BUFFERS
    }
    _check_finite(tensors, source)
    if "layers.0.downsample.reduction.weight" in tensors:
        tensors = {
            re.sub(r"^layers\.(\d+)\.down", lambda m: f"layers.{int(m[1]) + 1}.down", name): value
            for name, value in tensors.items()
        }
    theirs = _swin_sizes(tensors)
    ours = {"depths": Swin.depths, "heads": Swin.heads, "windows": (WINDOW,) * len(Swin.depths)}
    if theirs != ours:
        told, wanted = (
            ", ".join(f"{what} {' '.join(map(str, n)) or 'none'}" for what, n in each.items())
            for each in (theirs, ours)
        )
        raise InputError(f"{source} is a Swin of {told}; model.encoder=swin_t is of {wanted}")
    channels, bands = tensors["patch_embed.proj.weight"].shape[:2]
    width = max(1, round(channels / Swin.heads[0])) / HEAD
    what = f"{source}, as a swin_t,"
    template = _shapes(Swin(width=width), bands)
    return "swin_t", width, names.from_torch(tensors, template, names.swin_key, what)


def _swin_sizes(tensors) -> dict[str, tuple[int, ...]]:
    """Of each stage the blocks, attention heads, and tokens along a window's side."""
    found = (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in tensors)
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    stages = sorted({stage for stage, _ in blocks})
    name = "layers.{}.blocks.0.attn.relative_position_bias_table"
    tables = [tensors.get(name.format(stage), np.zeros(0)) for stage in stages]
    heads = [table.shape[1] if table.ndim == 2 else 0 for table in tables]
    return {
        "depths": tuple(sum(of == stage for of, _ in blocks) for stage in stages),
        "heads": tuple(heads),
        "windows": tuple((math.isqrt(len(np.atleast_1d(table))) + 1) // 2 for table in tables),
    }


def _check_finite(tensors, source):
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{source}: {name} has values that are not finite")
        if name.endswith("running_var") and (value < 0).any():
            raise InputError(f"{source}: {name} has variances below 0")


@functools.cache  # tracing a network takes a second
def _shapes(encoder, bands):
    images = jnp.zeros((1, 32, 32, bands))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False))
    return {part: {"encoder": tree} for part, tree in variables.items()}


def _keys(template):
    zeros = jax.tree.map(lambda leaf: np.zeros((0,) * leaf.ndim, np.float32), template)
    return names.to_torch(zeros, names.torchvision_key, 0)


def write_run(
    folder: Path,
    name: str,
    width: float,
    variables: Any,
    scale: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    origin: dict[str, Any],
) -> None:
    """A folder with one checkpoint of an encoder, as a finished pre-training leaves it.

    Args:
      folder: To be made.
      name: The encoder's, as `model.encoder`.
      width: As `model.width`.
      variables: The encoder's.
      scale: Of `config.data`, the fields of `facts.SCALE` that are not at their defaults.
      shapes: Of the chips' features that it was trained on.
      origin: The file or run that it was, as checkpoints say.

    Raises:
      InputError: The folder exists, or can't be written.
    """
    config = default()
    config.model.encoder, config.model.width = name, width
    config.data.update(scale)
    config.objective.alpha = 0.0  # it knows nothing of elevation
    about = checkpoint.describe(config, steps=0, shapes=shapes, origin=origin)
    params, batch_stats = (
        {"encoder": variables[part]} if variables[part] else {}
        for part in ("params", "batch_stats")
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state={})
    with files.new_folder(folder) as unfinished:
        with checkpoint.open_checkpoints(unfinished, keep=1) as checkpoints:
            checkpoint.save(checkpoints, state, about)
        text = config.to_json_best_effort(indent=2)
        (unfinished / "config.json").write_text(text + "\n")
