"""The TFDS builder: `dfc2020`, pairs of images with land cover, to fine-tune on and test with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from tfds_chips.shards import Builder, features
from tfds_sen12ms import patches

from elev_ssl_jax.errors import InputError
from tfds_dfc2020 import layout


class Dfc2020(Builder):
    """Sentinel-1 and Sentinel-2 images with land cover, of the IEEE data fusion contest of 2020.

    `python -m elev_ssl_jax.data.prepare` builds it. Features of an example:

      s1, s2: As in `Sen12ms`.
      mask: uint8 [256, 256], one of the eight classes, 255 none.
      label: int64, the commonest value of the mask, the smallest of several; -1 if that is 255.
      labels: uint8 [8], 1 for each class that a tenth of all pixels have, else 0.
      id, scene, block: text; a block is a square of 20 km, of which there are several in the
        one scene, or that scene where the files don't say where they lie.

    `train` is what the files call validation, `test` their test. A patch with values that are not
    finite is left out. There is one config only, without a name.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The manual directory holds ROIs0000_validation and ROIs0000_test, with s1_0, s2_0 and "
        "dfc_0 in each."
    )
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = ()
    TEXTS = ("scene", "block")
    READS = layout.KINDS
    SORTED_BY = ()
    is_there = staticmethod(layout.is_there)

    def _features(self) -> tfds.features.FeaturesDict:
        return features(
            patches.SENSORS,
            (patches.SIDE, patches.SIDE),
            None,
            layout.CLASSES,
            ("id", *self.TEXTS),
            classification=True,
            multi_label=True,
        )

    def _metadata(self) -> dict[str, Any]:
        return {"sensors": patches.SENSORS, "classes": list(layout.CLASSES)}

    def _table(self, folder: Path) -> pd.DataFrame:
        table = patches.look_all_over(layout.find(folder), _look, self.workers)
        table["block"] = patches.blocks(table)
        return table

    def _positions(self, chips: pd.DataFrame) -> Mapping[str, np.ndarray]:
        positions, self.how = patches.arrange(chips, ("train", "test"))
        for name in layout.SPLITS.values():
            if name not in positions:
                raise InputError(f"nothing is left for the split {name}: {self.how}")
        self.shared_ground = patches.shared_ground(chips, positions, "test", "train")
        return positions

    def _reader(self, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return layout.read


def _look(rows):
    return [layout.look(row) for row in rows]
