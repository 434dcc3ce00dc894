"""The TFDS builder: `nwrc/segmentation` and `nwrc/classification` from the NWRC data."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from tfds_chips.shards import Builder, features, look_over

from elev_ssl_jax.data import ground
from elev_ssl_jax.files import UNLABELLED
from tfds_nwrc import layout

CLASSES = ("non_agricultural", "agricultural_frontier")


class Nwrc(Builder):
    """Satellite image chips of Colombia's northwest with elevation and land-cover masks.

    `python -m elev_ssl_jax.data.prepare` builds it. Features of an example:

      image: uint16 [H, W, C], sensor units.
      elevation: float32 [h, w], metres, NaN where missing.
      mask: uint8 [H, W], 1 agricultural frontier, 0 the rest, 255 unlabelled.
      label: int64, the chip's class; -1 in `unlabeled` (`classification` only).
      id, tile, block: text; a block is a part of a tile.
    """

    VERSION = tfds.core.Version("1.2.0")
    SUPPORTED_VERSIONS = [  # noqa: RUF012
        tfds.core.Version("1.1.0"),
        tfds.core.Version("1.0.0"),
    ]
    RELEASE_NOTES = {  # noqa: RUF012
        "1.2.0": "array_record files alone, and the classes' names.",
        "1.1.0": "With `block`.",
        "1.0.0": "The first.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The manual directory is a folder of chips: metadata.csv, Dataset/, Elevations/ and "
        "LabelsGeoTiffv2/."
    )
    TEXTS = ("tile", "block")
    READS = ("Image", "Elevation", "Mask")

    def __init__(
        self,
        *,
        size: tuple[int, int] = (100, 100),
        elevation_size: tuple[int, int] = (33, 33),
        bands: Sequence[int] = (0, 1, 2),
        classes: Sequence[str] = CLASSES,
        **builder_args: Any,
    ):
        """Sizes are rows and columns; `bands` count from 0; the rest is of `Builder`."""
        self.size, self.elevation_size, self.bands = size, elevation_size, tuple(bands)
        self.classes = tuple(classes)
        super().__init__(**builder_args)

    def _sensors(self):
        return {"image": {"bands": len(self.bands), "dtype": "uint16", "nodata": None}}

    def _features(self) -> tfds.features.FeaturesDict:
        return features(
            self._sensors(),
            self.size,
            self.elevation_size,
            self.classes,
            ("id", *self.TEXTS),
            classification=self.is_classification,
        )

    def _metadata(self) -> dict[str, Any]:
        return {"sensors": self._sensors(), "classes": list(self.classes)}

    def _table(self, folder: Path) -> pd.DataFrame:
        chips = layout.read_metadata(folder)
        paths = [folder / layout.MASKS / path for path in chips["Mask"]]
        shares = look_over(functools.partial(_shares, self.size), paths, self.workers, "masks")
        share, chips["labelled"] = np.array(shares).T
        chips["label"] = (share > 0.5).astype(int)
        chips["share"] = np.maximum(share, 1 - share)
        return chips

    def _reader(self, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return _Reader(folder, self.bands, self.size, self.elevation_size)


def _shares(size, paths):
    """Of each mask the share of class 1 among what is labelled, and the share that is labelled."""
    found = []
    for path in paths:
        mask = layout.read_mask(path, size)
        known = mask[mask != UNLABELLED]
        found.append((known.mean() if known.size else 0.0, known.size / mask.size))
    return found


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the three files of a chip."""

    folder: Path
    bands: tuple[int, ...]
    size: tuple[int, int]
    elevation_size: tuple[int, int]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        folder, size = self.folder, self.size
        elevation = folder / layout.ELEVATIONS / row["Elevation"]
        return {
            "image": layout.read_image(folder / layout.IMAGES / row["Image"], self.bands, size),
            "elevation": layout.read_elevation(elevation, self.elevation_size),
            "mask": layout.read_mask(folder / layout.MASKS / row["Mask"], size),
        }


def look(folder: Path, bands: Any = None) -> dict[str, Any]:
    """The arguments of `Nwrc` that the chips of a folder need.

    Sizes are those of the first chip.

    Args:
      folder: In the layout of the NWRC data.
      bands: Which to keep; the first three by default.

    Raises:
      InputError: A file is missing or malformed.
    """
    rows = layout.read_metadata(folder)
    if isinstance(bands, Mapping):
        bands = bands.get("image")
    image = layout.read_image(folder / layout.IMAGES / rows["Image"][0], bands)
    # Chips with bounds are of an earlier version of this program, from whatever scenes.
    return {
        "classes": ("0", "1") if ground.is_known(rows) else CLASSES,
        "size": image.shape[:2],
        "elevation_size": layout.elevation_size(folder, rows),
        "bands": tuple(range(min(3, image.shape[-1]))) if bands is None else tuple(bands),
    }
