"""The printed Python that makes of images in sensor units what a network has learned to see."""

from elev_ssl_jax import sensors
from elev_ssl_jax.convert import branches
from elev_ssl_jax.inference.model import Model


def chosen(model: Model, library: str) -> list[str]:
    """The line that takes of `images` the bands that the network sees, if it doesn't see all.

    `library` is "np", whose bands come last, or "torch" and "onnx", where they come second.
    """
    if not model.inputs.bands:
        return []
    bands = [*model.inputs.bands]
    if model.inputs.with_elevation:
        bands.append(_count(model) - 1)
    return [f"images = images[{'..., ' if library == 'np' else ':, '}{bands}]"]


def shown(model: Model, library: str) -> tuple[list[str], str]:
    """`sensors.shown` as Python on `images`: lines before, and the expression.

    `library` is "np" or "torch", as in `chosen`.
    """
    inputs, clip = model.inputs, {"np": "clip", "torch": "clamp"}[library]
    lines = chosen(model, library)
    if inputs.scaling == "crop_max":
        more, values = _over_maximum(model, library)
        return [*lines, *more], values
    if len(inputs.value_range) == 1 and not inputs.std and not inputs.with_elevation:
        ((low, high),) = inputs.value_range
        return lines, f"(images.{clip}({low:.9g}, {high:.9g}) - {low:.9g}) / {high - low:.9g}"
    scale = sensors.affine(inputs, model.image_shape[2])
    lines += _numbers(library, ("low", "high", "factor", "shift"), scale)
    return lines, f"images.{clip}(low, high) * factor + shift"


def _over_maximum(model, library) -> tuple[list[str], str]:
    """Each band by its maximum over the image, but for elevation, which is the last."""
    inputs, heights = model.inputs, model.inputs.with_elevation
    light = model.image_shape[2] - heights
    low, high = (ends[:light] for ends in sensors.affine(inputs, light + heights)[:2])
    lines = _numbers(library, ("low", "high"), (low, high))
    if library == "np":
        sensor, last, most = "images[..., :-1]", "images[..., -1:]", "max((1, 2), keepdims=True)"
        clip, join, axis = "clip", "np.concatenate", "-1"
    else:
        sensor, last, most = "images[:, :-1]", "images[:, -1:]", "amax((2, 3), keepdim=True)"
        clip, join, axis = "clamp", "torch.cat", "1"
    lines.append(f"light = {sensor if heights else 'images'}.{clip}(low, high) - low")
    values = f"light / (light.{most} + {sensors.LEAST:g})"
    if heights:
        values = f"{join}([{values}, {last} / {inputs.elevation_scale:.9g}], {axis})"
    return lines, values


def _numbers(library, names, values) -> list[str]:
    """Lines that give names to a number for each band."""
    shape = {"np": "", "torch": ".view(-1, 1, 1)"}[library]
    make = {"np": "np.array", "torch": "torch.tensor"}[library]
    lines = [{"np": "import numpy as np", "torch": "import torch"}[library]]
    for name, numbers in zip(names, values, strict=True):
        text = ", ".join(f"{number:.9g}" for number in numbers)
        lines.append(f"{name} = {make}([{text}]){shape}")
    return lines


def about(model: Model, layout: str, *, dtype: str = "float32 ") -> list[str]:
    """Comments that say what `images` are, and what logits mean, if it isn't plain.

    Args:
      model: The run's.
      layout: Of the images, as "[B, {}, H, W]" with a place for the bands.
      dtype: Of the images.
    """
    lines = [f"# images: {dtype}{layout.format(_count(model))} in sensor units{_bands(model)}"]
    if branches.head(model) and model.together:
        lines.append("# several classes may be present: each has the sigmoid of its logit")
    return lines


def _count(model) -> int:
    """Bands of all inputs, of which the network may see some."""
    return sum(count for _, count in sensors.apart(model.inputs, model.shapes))


def _bands(model) -> str:
    """Which band is what, where that is not plain."""
    rgb, shapes = tuple(model.config.data.rgb), model.shapes
    names = model.inputs.names
    parts = [f"{name}, {shapes[name][2]} bands" for name in names if len(shapes[name]) == 3]
    parts += ["elevation in metres, 0 where missing, on the images' grid"] * (
        model.inputs.with_elevation
    )
    text = f": {'; '.join(parts)}" if names != ("image",) else ""
    return text + (f"; red, green, blue are bands {rgb}" if rgb else "")
