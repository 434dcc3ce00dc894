"""The scale of sensors, where the configuration leaves it to the data or tells it by sensor."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.sensors import ELEVATION, check_count, check_names, pairs

_SHARE = 0.5  # per cent of the values that lie below, and above, a range that is measured


def measure(config: Any, sample: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of `config.data` that are "auto", or by sensor, as numbers for each band, by name.

    `value_range` holds all but the lowest and highest half per cent of a band's values; `mean` and
    `std` are of the values within the range.

    Args:
      config: The run's configuration.
      sample: Some training chips, as in `join`.

    Raises:
      InputError: An input is missing, has no values, or none of the ranges.
    """
    data = config.data
    wanted = [name for name in ("value_range", "mean", "std") if is_auto(data[name])]
    by_sensor = is_by_sensor(data.value_range)
    if not wanted and not by_sensor:
        return {}
    check_names(config, {name: array.shape[1:] for name, array in sample.items()})
    sensors = [name for name in data.inputs if name != ELEVATION]
    given: tuple[tuple[float, float], ...] | None
    if by_sensor:
        ranges = {name: (low, high) for name, low, high in data.value_range}
        for name in sensors:
            if name not in ranges:
                raise InputError(f"config.data.value_range names {', '.join(ranges)}, not {name}")
        given = tuple(ranges[name] for name in sensors for _ in range(sample[name].shape[-1]))
    else:
        given = None if "value_range" in wanted else pairs(data.value_range)
    if given is not None:
        bands = sum(sample[name].shape[-1] for name in sensors)
        check_count(config, "value_range", given, bands)
    found: dict[str, list[Any]] = {name: [] for name in wanted}
    number = 0
    nodata = [*data.nodata] * (len(sensors) if len(data.nodata) == 1 else 1)
    for i, name in enumerate(sensors):
        for band in range(sample[name].shape[-1]):
            values = sample[name][..., band].astype(np.float64).ravel()
            values = values[np.isfinite(values)]
            if nodata:
                values = values[values != nodata[i]]
            if not values.size:
                raise InputError(f"band {band} of {name} of {data.name} has no values to measure")
            if given is None:
                low, high = np.percentile(values, (_SHARE, 100 - _SHARE))
                least = 1e-6 * max(abs(low), abs(high))  # that float32 can tell apart
                if high - low <= least:  # a band that is everywhere the same
                    low, high = low - max(0.5, least), high + max(0.5, least)
            else:
                low, high = given[number if len(given) > 1 else 0]
            clipped, spread = np.clip(values, low, high), high - low
            measured = {
                "value_range": (_rounded(low, spread), _rounded(high, spread)),
                "mean": _rounded(clipped.mean(), spread),
                "std": _rounded(clipped.std(), spread) or 1.0,
            }
            for field in wanted:
                found[field].append(measured[field])
            number += 1
    known = {"value_range": given} if by_sensor else {}
    return known | {name: tuple(values) for name, values in found.items()}


def is_open(config: Any) -> bool:
    """Whether `measure` has something to say of `config.data`."""
    data = config.data
    fields = (data.value_range, data.mean, data.std)
    return any(map(is_auto, fields)) or is_by_sensor(data.value_range)


def is_by_sensor(value_range: Any) -> bool:
    """Whether `data.value_range` has a sensor's name, low and high end in each of its parts."""
    first = value_range[0] if len(value_range) else 0.0
    return isinstance(first, Sequence) and len(first) == 3


def is_auto(value: Any) -> bool:
    """Whether a field asks to be measured."""
    return value == "auto" or tuple(value) == ("auto",)


def _rounded(value, spread):
    """Six digits, which is what anybody wants to read; more if the values lie closer together."""
    digits = 6 + math.floor(math.log10(max(abs(value) / spread, 1)))
    return float(f"{value:.{digits}g}")
