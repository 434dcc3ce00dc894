"""The TFDS builder: `sen12ms`, pairs of images to learn from without labels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from tfds_chips.shards import Builder, features

from elev_ssl_jax.errors import InputError
from tfds_sen12ms import layout, patches


class Sen12ms(Builder):
    """Sentinel-1 and Sentinel-2 images of one place and season each, from all over the world.

    `python -m elev_ssl_jax.data.prepare` builds it. Features of an example:

      s1: float32 [256, 256, 2], VV and VH in dB.
      s2: uint16 [256, 256, 13], reflectance at the top of the atmosphere times 10,000, of B1 to
        B8, B8A and B9 to B12.
      id, scene, season, block: text; the block is the scene, whose patches overlap.

    `holdout` are the patches of the scenes that the authors hold out, `unlabeled` are all others. A
    patch with values that are not finite is left out. There is one config only, without a name.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The manual directory holds the folders of the seasons: ROIs1158_spring, ROIs1868_summer, "
        "ROIs1970_fall and ROIs2017_winter, or some of them, with s1_* and s2_* in each."
    )
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = ()
    TEXTS = ("scene", "season", "block")
    READS = ("s1", "s2")
    SORTED_BY = ()
    is_there = staticmethod(layout.is_there)

    def _features(self) -> tfds.features.FeaturesDict:
        side, texts = (patches.SIDE, patches.SIDE), ("id", *self.TEXTS)
        return features(patches.SENSORS, side, None, None, texts, classification=False)

    def _metadata(self) -> dict[str, Any]:
        return {"sensors": patches.SENSORS, "classes": []}

    def _table(self, folder: Path) -> pd.DataFrame:
        return patches.look_all_over(layout.find(folder), _look, self.workers)

    def _positions(self, chips: pd.DataFrame) -> Mapping[str, np.ndarray]:
        names = ("unlabeled", "holdout")
        positions, left_out = patches.arrange(chips, names)
        if not positions:
            raise InputError(f"nothing is left: {left_out}")
        lines = [left_out] if left_out else []
        lines += [f"there is no split {n}: no scene is of it" for n in names if n not in positions]
        self.how = "\n".join(lines)
        self.shared_ground = patches.shared_ground(chips, positions, "holdout", "unlabeled")
        return positions

    def _reader(self, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return patches.read


def _look(rows):
    return [patches.look(row) for row in rows]
