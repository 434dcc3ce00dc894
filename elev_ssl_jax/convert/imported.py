"""Weights of other frameworks as a run, whose encoder `init_from` takes."""

import pickle
from collections.abc import Mapping, Sequence
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
from elev_ssl_jax.runtime import checkpoint
from elev_ssl_jax.runtime.train_state import TrainState

CLASSIFIER = ("fc.weight", "fc.bias")  # of the weights' own classes; left out


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
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
    return {
        name: (value.float() if value.dtype.is_floating_point else value).numpy()
        for name, value in content.items()
    }, {}


def encoder_variables(
    tensors: dict[str, np.ndarray], source: str, prefix: str = ""
) -> tuple[str, float, Any]:
    """A ResNet under torchvision's names as our encoder: its name, width, and variables.

    Args:
      tensors: The state dictionary; a classifier, `fc`, is left out.
      source: What to call it in errors.
      prefix: Of the names that are wanted, as `encoder.`; others are left alone.

    Raises:
      InputError: It is not a ResNet18, 34 or 50.
    """
    if prefix:
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    tensors = {name: value for name, value in tensors.items() if name not in CLASSIFIER}
    stem = tensors.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        others = [n.removesuffix("conv1.weight") for n in tensors if n.endswith(".conv1.weight")]
        hint = f"; try --prefix={min(others, key=len)}" if others else ""
        raise InputError(f"{source} has no {prefix}conv1.weight [64, bands, 7, 7]{hint}")
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{source}: {name} has values that are not finite")
    width, bands = stem.shape[0] / 64, stem.shape[1]

    def shapes(name):
        encoder, images = RESNETS[name](width=width), jnp.zeros((1, 32, 32, bands))
        variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False))
        return {part: {"encoder": tree} for part, tree in variables.items()}

    # The nearest of the three, so that what is missing is told against the right one.
    blocks = {name.rpartition(".")[0] for name in tensors}
    distance = {
        name: len(blocks ^ {k.rpartition(".")[0] for k in _keys(shapes(name))}) for name in RESNETS
    }
    name = min(distance, key=lambda name: distance[name])
    what = f"{source}, as a {name},"
    variables = names.from_torch(tensors, shapes(name), names.torchvision_key, what)
    return name, width, {part: tree["encoder"] for part, tree in variables.items()}


def _keys(template):
    zeros = jax.tree.map(lambda leaf: np.zeros((0,) * leaf.ndim, np.float32), template)
    return names.to_torch(zeros, names.torchvision_key, 0)


def adapt_stem(
    variables: Any,
    *,
    bands: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    source: str = "the stem",
) -> Any:
    """The encoder for images of other bands, or that are not standardised.

    Bands: band i of the images takes the kernel of band `bands[i]` of the weights; where several
    take the same one, each has its share, and all kernels are multiplied by the number of the
    weights' bands over that of those used. So the answer to an image whose bands are all alike
    stays about what it was, and exactly what it was if every band is used.

    Standardisation: weights that were trained on (x - mean) / std take x instead. The kernels are
    divided by std, and what mean adds to the stem's output, a constant, goes into the running mean
    of its BatchNorm. In inference mode nothing else changes, but for the border's three pixels,
    where zero stands for what the image lacks.

    Args:
      variables: The encoder's.
      bands: Numbers, from 0, of the weights' bands; None is all of them.
      mean: For each of the weights' bands, in units of the images after `data.value_range`.
      std: Likewise.
      source: What to call it in errors.

    Raises:
      InputError: A number doesn't fit the weights' bands.
    """
    kernel = np.asarray(variables["params"]["conv1"]["kernel"], np.float64)
    count = kernel.shape[2]
    for name, values in (("--mean", mean), ("--std", std)):
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"{name} is {' '.join(map(str, values))}; numbers are needed")
        if values is not None and len(values) != count:
            raise InputError(f"{name} has {len(values)} numbers; {source} has {count} bands")
    if std is not None and min(std) <= 0:
        raise InputError(f"--std is {min(std):g}; it must be above 0")
    chosen = np.arange(count) if bands is None else np.asarray(bands, int)
    if chosen.min() < 0 or chosen.max() >= count:
        raise InputError(f"--bands is {chosen.tolist()}; {source} has the bands 0 to {count - 1}")

    share = count / len(np.unique(chosen)) / np.bincount(chosen)[chosen]
    means = np.zeros(count) if mean is None else np.asarray(mean)
    stds = np.ones(count) if std is None else np.asarray(std)
    kernel = kernel[:, :, chosen] * (share / stds[chosen])[:, None]
    shift = np.einsum("hwio,i->o", kernel, means[chosen])
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    params["conv1"] = {"kernel": kernel.astype(np.float32)}
    stats["bn1"] = {**stats["bn1"], "mean": (stats["bn1"]["mean"] + shift).astype(np.float32)}
    return {"params": params, "batch_stats": stats}


def write_run(
    folder: Path,
    name: str,
    width: float,
    variables: Any,
    scale: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """A folder with one checkpoint of an encoder, as a finished pre-training leaves it.

    Args:
      folder: To be made.
      name: The encoder's, as `model.encoder`.
      width: As `model.width`.
      variables: The encoder's.
      scale: Of `config.data`, the fields of `facts.SCALE` that are not at their defaults.
      shapes: Of the chips' features that it was trained on.

    Raises:
      InputError: The folder exists, or can't be written.
    """
    config = default()
    config.model.encoder, config.model.width = name, width
    config.data.update(scale)
    config.objective.alpha = 0.0  # it knows nothing of elevation
    about = checkpoint.describe(config, steps=0, shapes=shapes)
    params, batch_stats = ({"encoder": variables[part]} for part in ("params", "batch_stats"))
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state={})
    with files.new_folder(folder) as unfinished:
        with checkpoint.open_checkpoints(unfinished, keep=1) as checkpoints:
            checkpoint.save(checkpoints, state, about)
        text = config.to_json_best_effort(indent=2)
        (unfinished / "config.json").write_text(text + "\n")
