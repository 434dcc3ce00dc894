"""Our variables under the names that PyTorch's libraries give them, and back, to the bit."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import numpy as np

from elev_ssl_jax.errors import InputError

Path = tuple[str, ...]  # of a variable: its collection, modules, and name

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "relative_position_bias": "relative_position_bias_table",
}
_COUNTER = "num_batches_tracked"  # of BatchNorm; counts batches and changes nothing


def torchvision_key(path: Path) -> str:
    """Of an encoder or classifier, as torchvision's `resnet18` and timm's have it."""
    _, part, *modules, leaf = path
    names = ["fc"] if part == "head" else modules
    key = ".".join([*names, _LEAVES[leaf]])
    key = key.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return re.sub(r"^(layer\d)_(\d+)", r"\1.\2", key)


def smp_key(path: Path) -> str:
    """Of a U-Net, as segmentation_models_pytorch's `Unet` has it."""
    _, part, *modules, leaf = path
    if part == "encoder":
        return "encoder." + torchvision_key(path)
    if modules == ["head"]:
        return f"segmentation_head.0.{_LEAVES[leaf]}"
    block, layer = modules
    kind, number = layer[:-1], layer[-1]
    place = {"conv": 0, "bn": 1}[kind]
    return f"decoder.blocks.{int(block[5:]) - 1}.conv{number}.{place}.{_LEAVES[leaf]}"


def swin_key(path: Path) -> str:
    """Of a Swin encoder or classifier, as timm's `swin_tiny_patch4_window7_224` has it."""
    _, part, *modules, leaf = path
    if part == "head":
        return f"head.fc.{_LEAVES[leaf]}"
    key = ".".join([*modules, _LEAVES[leaf]])
    for ours, theirs in (
        (r"^patch_embed\.", "patch_embed.proj."),
        (r"^patch_norm\.", "patch_embed.norm."),
        (r"\.(fc[12])\.", r".mlp.\1."),
    ):
        key = re.sub(ours, theirs, key)
    key = re.sub(r"^stage(\d)_(\d+)", lambda m: f"layers.{int(m[1]) - 1}.blocks.{m[2]}", key)
    return re.sub(r"^merge(\d)", r"layers.\1.downsample", key)


def to_torch(variables: Any, key: Callable[[Path], str], batches: int) -> dict[str, np.ndarray]:
    """A PyTorch state dictionary.

    Args:
      variables: `params` and `batch_stats`, each with the parts that are wanted.
      key: `torchvision_key`, `smp_key` or `swin_key`.
      batches: For BatchNorm's counters.
    """
    tensors = {}
    for path, value in _flat(variables):
        name, value = key(path), np.asarray(value)
        if path[-1] == "kernel":  # HWIO to OIHW, IO to OI
            value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
        tensors[name] = np.ascontiguousarray(value)
        if path[-1] == "var":
            tensors[name.replace("running_var", _COUNTER)] = np.array(batches, np.int64)
    return tensors


def from_torch(
    tensors: Mapping[str, np.ndarray], template: Any, key: Callable[[Path], str], source: str
) -> Any:
    """The variables in a state dictionary: the inverse of `to_torch`.

    Args:
      tensors: The state dictionary.
      template: Variables, or their shapes, of the model that it should fit.
      key: As above.
      source: What to call it in errors.

    Raises:
      InputError: Keys are missing or superfluous, or a shape differs.
    """
    wanted = {path: (key(path), value.shape) for path, value in _flat(template)}
    names = {name for name, _ in wanted.values()}
    found = {name for name in tensors if not name.endswith(_COUNTER)}
    problems = [
        f"{what}: {', '.join(sorted(keys)[:6])}" + (f" and {len(keys) - 6} more" * (len(keys) > 6))
        for what, keys in (("missing keys", names - found), ("unknown keys", found - names))
        if keys
    ]
    if problems:
        raise InputError(f"{source} doesn't fit ({'; '.join(problems)})")
    variables = {}
    for path, (name, shape) in wanted.items():
        value = np.asarray(tensors[name])
        if path[-1] == "kernel" and value.ndim == len(shape):
            value = value.transpose((2, 3, 1, 0) if value.ndim == 4 else (1, 0))
        if value.shape != shape or value.dtype.kind != "f":
            raise InputError(
                f"{source} doesn't fit: {name} is {tensors[name].dtype} {tensors[name].shape}"
            )
        variables[path] = np.ascontiguousarray(value, np.float32)
    return flax.traverse_util.unflatten_dict(variables)


def _flat(variables) -> Iterator[tuple[Path, Any]]:
    yield from flax.traverse_util.flatten_dict(variables).items()
