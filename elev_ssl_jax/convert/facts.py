"""What a file says of its weights beside their numbers: written, and read back."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elev_ssl_jax.convert import branches
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning.labelled import told_by
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.pictures import with_unit
from elev_ssl_jax.recipes import METHODS, REGRESSION
from elev_ssl_jax.runtime.starting import words_of
from elev_ssl_jax.sensors import ELEVATION, LEAST, pairs

# What `config.data` says of the numbers that an encoder sees.
SCALE = ("inputs", "value_range", "mean", "std", "scaling", "bands", "nodata", "elevation_scale")
_NORMALIZATION = {
    "range": (
        "of each band: clip to value_range, subtract its low end, divide by its length; with std, "
        "(x - mean) / std of the clipped values instead; elevation is divided by elevation_scale"
    ),
    "crop_max": (
        "of each band: clip to value_range, subtract its low end, divide by its maximum over the "
        f"image plus {LEAST:g}; elevation is divided by elevation_scale"
    ),
}


def metadata(model: Model) -> dict[str, str]:
    """What a receiver must know to feed the weights, for the head of a safetensors file."""
    config = model.config.copy_and_resolve_references()
    # Of paths their last parts: where they lie on this machine is nobody's business.
    config.data.dir, config.init_from = Path(config.data.dir).name, Path(config.init_from).name
    head = branches.head(model)
    classes = head not in (None, REGRESSION)
    regression = ""
    if head == REGRESSION:
        mean, deviation = config.finetune.scale
        quantity = with_unit(*told_by(config))
        regression = f"{quantity} is {mean:.12g} + {deviation:.12g} x the decoder's output"
    return {
        "format": "pt",
        "encoder": config.model.encoder,
        "fusion": config.model.fusion,
        "width": str(config.model.width),
        "method": method(config, model.origin),
        "started_from": words_of(model.origin) if model.origin and "run" in model.origin else "",
        "bands": str(model.image_shape[2]),
        "band_numbers": " ".join(map(str, config.data.bands)),  # of the inputs'; "" is all
        "rgb": " ".join(map(str, config.data.rgb)),
        "image_size": "{} x {}".format(*model.image_shape[:2]),
        "inputs": " ".join(config.data.inputs),
        "shapes": json.dumps({name: model.shapes[name] for name in config.data.inputs}),
        "value_range": " ".join(
            f"{low:.12g} {high:.12g}" for low, high in model.inputs.value_range
        ),
        "mean": " ".join(f"{value:.12g}" for value in model.inputs.mean),
        "std": " ".join(f"{value:.12g}" for value in model.inputs.std),
        "scaling": config.data.scaling,
        "elevation_scale": f"{config.data.elevation_scale:.12g}",
        "normalization": _NORMALIZATION[config.data.scaling],
        "classes": json.dumps(model.classes if classes else ()),
        "probabilities": ("sigmoid" if model.together else "softmax") if classes else "",
        "regression": regression,
        "commit": model.commit,
        "config": json.dumps(config.to_dict()),
    }


def method(config: Any, origin: Mapping[str, Any] | None = None) -> str:
    """The name of the method that a configuration describes, or the file that was converted."""
    if origin and "file" in origin:
        return str(origin.get("method") or f"converted from {origin['file']}")
    if config.task == "finetune":
        return f"fine-tuned from {config.init_from or 'random weights'}"
    for name, recipe in METHODS.items():
        fields = {k: v for k, v in recipe.fields.items() if k.startswith("objective.")}
        said = {"objective.positives": "views", **fields}
        if fields and all(config[k.split(".")[0]][k.split(".")[1]] == v for k, v in said.items()):
            return name
    return f"alpha {config.objective.alpha}, lam {config.objective.lam}"


def told_scale(told: Mapping[str, str], source: Path) -> dict[str, Any]:
    """How `config.data` scales values, as the head of a file of our own tells.

    Raises:
      InputError: They are no numbers, or of no kind that is known.
    """
    scale: dict[str, Any] = {}
    for field in ("value_range", "mean", "std"):
        try:
            numbers = np.array(told.get(field, "").split(), float)
            if field == "value_range":
                numbers = numbers.reshape(-1, 2)
        except ValueError:
            numbers = np.array([math.nan])
        if not np.isfinite(numbers).all():
            raise InputError(f"{source} says that its {field} is {told[field][:40]!r}")
        if len(numbers):
            one_pair = field == "value_range" and len(numbers) == 1
            values = (numbers[0] if one_pair else numbers).tolist()
            scale[field] = tuple(tuple(v) if isinstance(v, list) else v for v in values)
    if "scaling" in told:
        if told["scaling"] not in _NORMALIZATION:
            raise InputError(f"{source} says that its scaling is {told['scaling'][:40]!r}")
        scale["scaling"] = told["scaling"]
    return scale


def told_inputs(
    told: Mapping[str, str], bands: int, source: Path
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]] | None]:
    """Which features the head of a file of our own says were seen, and their shapes.

    Args:
      told: The head.
      bands: Of the weights.
      source: The file, for errors.

    Returns:
      Fields of `config.data`, and the shape of each input; nothing of a file that doesn't say so.

    Raises:
      InputError: They are not those of images, or don't fit the weights.
    """
    if "shapes" not in told:
        return {}, None
    try:
        shapes = {
            str(name): tuple(map(int, sides)) for name, sides in json.loads(told["shapes"]).items()
        }
        scale = float(told["elevation_scale"])
        there = sum(shape[2] for name, shape in shapes.items() if name != ELEVATION)
        seen = tuple(map(int, told.get("band_numbers", "").split()))
        fits = all(0 <= band < there for band in seen) and len(set(seen)) == len(seen)
        fits = fits and (len(seen) or there) + (ELEVATION in shapes) == bands
        fits = fits and 0 < scale < math.inf
        fits = fits and all(0 < side <= 2**16 for shape in shapes.values() for side in shape)
        if not fits or not all(map(str.isidentifier, shapes)):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{source} doesn't say what its {bands} bands are") from error
    return {"inputs": tuple(shapes), "bands": seen, "elevation_scale": scale}, shapes


def scale_of_bands(scale: Mapping[str, Any], bands: Sequence[int], source: Path) -> dict[str, Any]:
    """The scale of images that have the weights' bands of these numbers.

    Raises:
      InputError: A number is of no band, or one of them is elevation.
    """
    if ELEVATION in scale.get("inputs", ()):
        raise InputError(f"--bands: {source} takes elevation, which is no band of an image")

    def chosen(values):
        if len(values) <= 1:
            return tuple(values)
        if shown := scale.get("bands", ()):
            values = [values[band] for band in shown]
        if not all(0 <= band < len(values) for band in bands):
            raise InputError(
                f"--bands is {list(bands)}; {source} has the bands 0 to {len(values) - 1}"
            )
        return tuple(values[band] for band in bands)

    value_range = chosen(pairs(scale["value_range"]))
    return {
        "value_range": value_range[0] if len(value_range) == 1 else value_range,
        "mean": chosen(scale.get("mean", ())),
        "std": chosen(scale.get("std", ())),
        "scaling": scale.get("scaling", "range"),
    }
