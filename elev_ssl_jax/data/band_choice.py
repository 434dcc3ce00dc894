"""Which bands to keep: as said on the command line, and of each sensor."""

from collections.abc import Mapping, Sequence
from typing import Any

from elev_ssl_jax.data import store
from elev_ssl_jax.errors import InputError


def sensors(bands: Any, about: store.About) -> dict[str, list[int]]:
    """Those of each sensor; none is all.

    Raises:
      InputError: There are no such bands.
    """
    if bands is None:
        return {}
    if not isinstance(bands, Mapping):
        if len(about.sensors) > 1:
            raise InputError(f"--bands: say of which sensor: {next(iter(about.sensors))}=0,1,2")
        bands = dict.fromkeys(about.sensors, bands)
    for name, chosen in bands.items():
        if name not in about.sensors:
            raise InputError(f"--bands: there is no sensor {name}; {', '.join(about.sensors)}")
        count = about.sensors[name]["bands"]
        for band in chosen:
            if not 0 <= band < count:
                raise InputError(f"--bands: {name} has {count} bands; band {band} is asked for")
        if not chosen or len(set(chosen)) < len(chosen):
            raise InputError(f"--bands: of {name} different bands are needed")
    return {name: list(chosen) for name, chosen in bands.items()}


def parse(arguments: Sequence[str]) -> dict[str, list[int]] | list[int]:
    """`--bands` arguments: numbers, or NAME=NUMBER[,NUMBER...] for each sensor.

    Raises:
      InputError: They are neither.
    """
    try:
        if not any("=" in text for text in arguments):
            return [int(text) for text in arguments]
        parts = [text.split("=", 1) for text in arguments]
        return {name: [int(n) for n in numbers.split(",")] for name, numbers in parts}
    except ValueError as error:
        raise InputError(f"--bands {' '.join(arguments)}: numbers, or NAME=0,1,2") from error
