"""What of a chip a network is shown, and in which numbers.

The features that `config.data.inputs` names are joined, band after band, to one image: sensors
scaled to 0..1 by their range, of which `config.data.bands` may pick some bands, and elevation,
where it is an input, in units of `config.data.elevation_scale`.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elev_ssl_jax.errors import InputError

ELEVATION = "elevation"  # the feature in metres; every other input is a sensor's image
QUANTITY = "quantity"  # a feature in a unit of its own, which is learned
FIELDS = (ELEVATION, QUANTITY)  # of one number a cell, whose cells needn't be pixels
LEAST = 1e-5  # in sensor units; is added to a maximum that divides


class Inputs(NamedTuple):
    """Which features, and the scale of each band; made of tuples, so that it can be hashed."""

    names: tuple[str, ...]
    value_range: tuple[tuple[float, float], ...]  # one pair for all bands, or one for each
    mean: tuple[float, ...]  # of the sensors' units; (), one for all bands, or one for each
    std: tuple[float, ...]
    nodata: tuple[float, ...]  # beside NaN; (), one for all sensors, or one for each
    elevation_scale: float
    bands: tuple[int, ...] = ()  # of all sensors' bands those that are shown; () is all
    scaling: str = "range"
    absent: tuple[tuple[str, int], ...] = ()  # sensors that chips don't have, and their bands

    @property
    def with_elevation(self) -> bool:
        """Whether the last band is elevation."""
        return ELEVATION in self.names


def of(config: Any) -> Inputs:
    """The inputs that `config.data` describes; what is measured must have been (`measure`)."""
    data = config.data
    return Inputs(
        names=tuple(data.inputs),
        value_range=pairs(data.value_range),
        mean=tuple(data.mean),
        std=tuple(data.std),
        nodata=tuple(data.nodata),
        elevation_scale=data.elevation_scale,
        bands=tuple(data.bands),
        scaling=data.scaling,
    )


def colors(config: Any) -> tuple[int, ...]:
    """Which bands of the images that `join` makes are red, green and blue; () if none is."""
    return _places(config, config.data.rgb)


def near_infrared(config: Any) -> int:
    """Which band of the images that `join` makes is `data.near_infrared`, which must be set."""
    return _places(config, config.data.near_infrared)[0]


def pairs(value_range: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """`data.value_range`, one pair or a pair for each band, as pairs."""
    each = value_range if isinstance(value_range[0], Sequence) else [value_range]
    return tuple((low, high) for low, high in each)


def check(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses inputs that chips don't have, and numbers of bands that don't fit them.

    Args:
      config: The run's configuration.
      shapes: Of each feature of a chip.

    Raises:
      InputError: Names the field.
    """
    check_names(config, shapes)
    data, inputs = config.data, of(config)
    bands = _count(inputs, shapes)
    check_count(config, "value_range", inputs.value_range, bands)
    for field, values in (("mean", inputs.mean), ("std", inputs.std)):
        if values:
            check_count(config, field, values, bands)
    if len(inputs.nodata) not in (0, 1, len(_sensors(inputs))):
        raise InputError(f"config.data.nodata has {len(inputs.nodata)} values; one a sensor is it")
    for field in ("rgb", "near_infrared", "bands"):
        if any(not 0 <= band < bands for band in data[field]):
            raise InputError(
                f"config.data.{field} is {data[field]}, but {', '.join(data.inputs)} of "
                f"{data.name} have {bands} bands"
            )


def check_count(config: Any, field: str, values: Any, bands: int) -> None:
    """Refuses a field of `config.data` that has values of another number of bands.

    Raises:
      InputError: Names it.
    """
    if len(values) not in (1, bands):
        raise InputError(
            f"config.data.{field} is of {len(values)} bands; {', '.join(config.data.inputs)} of "
            f"{config.data.name} have {bands}: give one for all of them, or one for each"
        )


def check_names(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses inputs that chips with features of these shapes don't have.

    Raises:
      InputError: Names them, or those that differ in size.
    """
    data = config.data
    for name in data.inputs:
        if len(shapes.get(name, ())) != (2 if name == ELEVATION else 3):
            images = [n for n, shape in shapes.items() if len(shape) == 3]
            raise InputError(
                f"config.data.inputs names {name!r}, which {data.name} doesn't have; it has "
                f"{', '.join(images) or 'no images'}" + f" and {ELEVATION}" * (ELEVATION in shapes)
            )
    if len({shapes[name][:2] for name in data.inputs if name != ELEVATION}) > 1:
        raise InputError(
            f"config.data.inputs: {', '.join(data.inputs)} of {data.name} have different sizes"
        )


def check_values(config: Any, chips: Mapping[str, np.ndarray]) -> None:
    """Refuses chips whose values hardly differ once they are cut to `data.value_range`.

    Raises:
      InputError: Says from where to where they go.
    """
    inputs = of(config)
    few = {name: jnp.asarray(chips[name][:64]) for name in inputs.names}
    light = np.asarray(join(inputs, few))[..., : -1 if inputs.with_elevation else None]
    if np.ptp(np.percentile(light, (0.1, 99.9))) < 1e-3:
        ends = [
            f"{name} from {np.nanmin(few[name]):g} to {np.nanmax(few[name]):g}"
            for name in _sensors(inputs)
        ]
        raise InputError(
            f"config.data.value_range is {config.data.value_range}, but {config.data.name} has "
            f'{", ".join(ends)}: nothing is left to see; set it, or let "auto" measure it'
        )


def image_size(inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Height and width in pixels of the images that `join` makes."""
    height, width = shapes[_sensors(inputs)[0]][:2]
    return height, width


def channels(inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bands of the images that `join` makes."""
    return (len(inputs.bands) or _count(inputs, shapes)) + inputs.with_elevation


def band_inputs(inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The input that each band of the images that `join` makes is of."""
    names = [name for name in _sensors(inputs) for _ in range(shapes[name][2])]
    if inputs.bands:
        names = [names[band] for band in inputs.bands]
    return (*names, *[ELEVATION] * inputs.with_elevation)


def apart(inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, int], ...]:
    """Of the images that `join` makes: which input has how many bands, one after the other."""
    return tuple((name, 1 if name == ELEVATION else shapes[name][2]) for name in inputs.names)


# Also where nobody compiles it: each operation by itself would take longer to compile.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def join(inputs: Inputs, chips: Mapping[str, jax.Array]) -> jax.Array:
    """The inputs as one image: float32 [B, H, W, C], sensors in 0..1.

    Pixels without a value get the mean of their band in the chip; where there is no elevation, it
    is 0, and so is a sensor that is absent.

    Args:
      inputs: Which, and their scale.
      chips: `image` or other sensors [B, H, W, bands] in their units, `elevation` [B, h, w] in
        metres, NaN where missing.
    """
    parts: list[jax.Array] = []
    sensors = _sensors(inputs)
    nodata = inputs.nodata * (len(sensors) if len(inputs.nodata) == 1 else 1)
    first, absent = 0, dict(inputs.absent)
    for i, name in enumerate(sensors):
        if name in absent:
            shape = next(chips[n].shape[:3] for n in sensors if n not in absent)
            parts.append(jnp.zeros((*shape, absent[name])))
            first += absent[name]
            continue
        stored = jnp.asarray(chips[name])
        low, high = _limits(inputs, first, stored.shape[-1])
        first += stored.shape[-1]
        values = stored.astype(jnp.float32)
        missing = None
        if jnp.issubdtype(stored.dtype, jnp.floating):
            missing = jnp.isnan(values)
        if nodata and not math.isnan(nodata[i]):
            is_nodata = values == nodata[i]
            missing = is_nodata if missing is None else missing | is_nodata
        if missing is None:
            parts.append((jnp.clip(values, low, high) - low) / (high - low))
            continue
        scaled = (jnp.clip(jnp.where(missing, low, values), low, high) - low) / (high - low)
        count = jnp.sum(~missing, axis=(1, 2), keepdims=True)
        total = jnp.sum(jnp.where(missing, 0, scaled), axis=(1, 2), keepdims=True)
        parts.append(jnp.where(missing, total / jnp.maximum(count, 1), scaled))
    if inputs.bands:
        # A product rather than slices that are joined again, see `augment._with_colors`.
        chosen = jax.nn.one_hot(jnp.asarray(inputs.bands), first)
        image = jnp.concatenate(parts, axis=-1)
        parts = [jnp.einsum("bhwc,kc->bhwk", image, chosen, precision=lax.Precision.HIGHEST)]
    if inputs.with_elevation:
        heights = jnp.nan_to_num(chips[ELEVATION] / inputs.elevation_scale)
        shape = (*parts[0].shape[:3], 1)
        parts.append(jax.image.resize(heights[..., None], shape, "linear"))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def shown(inputs: Inputs, chips: Mapping[str, jax.Array]) -> jax.Array:
    """The inputs as the network sees them where nothing is augmented: float32 [B, H, W, C]."""
    return standardize(inputs, join(inputs, chips))


def standardize(inputs: Inputs, images: jax.Array) -> jax.Array:
    """Images [..., H, W, C] of `join`, augmented perhaps, as the network sees them.

    With `std` it sees (x - mean) / std, where x is in the sensors' units; with the scaling
    "crop_max" each band is divided by its maximum over the image. Elevation stays as it is.
    """
    bands = images.shape[-1] - inputs.with_elevation
    low, high = _limits_shown(inputs, bands)
    if inputs.scaling == "crop_max":
        least = np.append(LEAST / (high - low), [1.0] * inputs.with_elevation).astype(np.float32)
        most = jnp.max(images, axis=(-3, -2), keepdims=True) + least
        return jnp.where(jnp.arange(images.shape[-1]) < bands, images / most, images)
    if not inputs.std:
        return images
    mean, std = _statistics(inputs, bands)
    factor, shift = (high - low) / std, (low - mean) / std
    if inputs.with_elevation:
        factor, shift = np.append(factor, 1), np.append(shift, 0)
    return images * factor.astype(np.float32) + shift.astype(np.float32)


def in_units(inputs: Inputs, images: jax.Array) -> jax.Array:
    """Sensors' bands [..., C] of `join`, in 0..1, in the sensors' units."""
    low, high = _limits_shown(inputs, images.shape[-1])
    return images * (high - low).astype(np.float32) + low.astype(np.float32)


def affine(inputs: Inputs, bands: int) -> tuple[np.ndarray, ...]:
    """`shown` as numbers for each of `bands`: clip to low and high, times a factor, plus a shift.

    Returns:
      Low, high, factor and shift, float32 [bands] each.
    """
    light = bands - inputs.with_elevation
    low, high = _limits_shown(inputs, light)
    mean, std = _statistics(inputs, light) if inputs.std else (low, high - low)
    parts = [low, high, 1 / std, -mean / std]
    if inputs.with_elevation:
        last = -1e5, 1e5, 1 / inputs.elevation_scale, 0.0  # no place is so deep or so high
        parts = [np.append(part, value) for part, value in zip(parts, last, strict=True)]
    return tuple(part.astype(np.float32) for part in parts)


def of_inputs(
    config: Any, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The fields of `config.data` as they are for some of its inputs, of which nothing is open.

    Args:
      config: A run's configuration.
      names: The inputs to keep, in an order of their own.
      shapes: Of the features of a chip.

    Raises:
      InputError: One is none of `config.data.inputs`, or `config.data.bands` has none of them.
    """
    data = config.data
    if tuple(names) == tuple(data.inputs):
        return {}
    bands: dict[str, list[int]] = {}
    first = 0
    for name in data.inputs:
        count = 0 if name == ELEVATION else shapes[name][2]
        bands[name] = [*range(first, first + count)]
        first += count
    for name in names:
        if name not in bands:
            raise InputError(f"{name} is needed, but config.data.inputs is {', '.join(bands)}")
    kept = [band for name in names for band in bands[name]]
    if data.bands and not set(data.bands) & set(kept):
        raise InputError(
            f"config.data.bands is {data.bands}, of which none is of {', '.join(names)}; name some "
            "of its bands, too, or leave it at ()"
        )
    fields: dict[str, Any] = {"inputs": tuple(names)}
    for field in ("mean", "std"):
        if len(data[field]) > 1:
            fields[field] = tuple(data[field][band] for band in kept)
    if len(ranges := pairs(data.value_range)) > 1:
        fields["value_range"] = tuple(ranges[band] for band in kept)
    if len(data.nodata) > 1:
        every = [name for name in data.inputs if name != ELEVATION]
        fields["nodata"] = tuple(data.nodata[every.index(n)] for n in names if n != ELEVATION)
    fields["bands"] = tuple(kept.index(band) for band in data.bands if band in kept)
    for field in ("rgb", "near_infrared"):
        there = set(data[field]) <= set(kept)
        fields[field] = tuple(kept.index(band) for band in data[field]) if there else ()
    return fields


def _places(config, wanted):
    """Bands, counted over all sensors, as they are counted among those that are shown."""
    bands = tuple(config.data.bands)
    return tuple(bands.index(band) for band in wanted) if bands else tuple(wanted)


def _sensors(inputs):
    return [name for name in inputs.names if name != ELEVATION]


def _count(inputs, shapes):
    """Bands of all sensors."""
    return sum(shapes[name][2] for name in _sensors(inputs))


def _limits_shown(inputs, bands):
    """Low and high ends of the `bands` bands that are shown, float64 [bands] each."""
    return (_of_shown(inputs, ends, bands) for ends in zip(*inputs.value_range, strict=True))


def _statistics(inputs, bands):
    """`mean` and `std` of the `bands` bands that are shown, float64 [bands] each."""
    return (_of_shown(inputs, v, bands) for v in (inputs.mean or (0.0,), inputs.std))


def _of_shown(inputs, values, bands):
    """Values for all bands, or for each, as those of the bands that are shown."""
    array = np.asarray(values, np.float64)
    if inputs.bands and len(array) > 1:
        array = array[list(inputs.bands)]
    return np.broadcast_to(array, bands)


def _limits(inputs, first, bands):
    """Low and high ends for `bands` bands from number `first` on: numbers, or arrays."""
    if len(inputs.value_range) == 1:
        return inputs.value_range[0]
    low, high = np.array(inputs.value_range[first : first + bands], np.float32).T
    return low, high
