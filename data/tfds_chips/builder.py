"""The TFDS builder: `chips/segmentation` and `chips/classification` from folders of chips."""

import contextlib
import dataclasses
import functools
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from elev_ssl_jax.data import cutting, planning, store
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.runtime import quiet
from tfds_chips.shards import Builder, features


@dataclasses.dataclass(frozen=True)
class StoreReader:
    """Reads a chip of a part of a folder."""

    about: store.About

    def __call__(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Of a row of the table."""
        part, names = Path(row["part"]), [*self.about.sensors]
        names += ["elevation"] * (self.about.elevation_size is not None)
        names += ["mask"] * (self.about.classes is not None)
        names += ["quantity"] * (self.about.quantity is not None)
        return {name: store.open_array(part, self.about, name)[row["index"]] for name in names}


@dataclasses.dataclass(frozen=True)
class SceneReader:
    """Cuts a chip from its scene."""

    scenes: Mapping[str, SceneFiles]
    settings: planning.Settings
    sensors: Mapping[str, Mapping[str, Any]]

    def __call__(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Of a row of the table."""
        files = self.scenes[row["scene"]]
        return cutting.read_chip(
            files, self.settings, self.sensors, row["top_row"], row["left_column"]
        )


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A chip with some of its bands."""

    read: Callable[[dict[str, Any]], dict[str, np.ndarray]]
    bands: Mapping[str, tuple[int, ...]]

    def __call__(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        chip = self.read(row)
        for name, bands in self.bands.items():
            chip[name] = chip[name][..., list(bands)]
        return {name: np.ascontiguousarray(array) for name, array in chip.items()}


class Chips(Builder):
    """Chips of scenes: images of one or several sensors, with elevation and classes if there are.

    `python -m elev_ssl_jax.data.prepare` builds it. Features of an example:

      image, or the names of several sensors: uint16, int16 or float32 [H, W, C], sensor units.
      elevation: float32 [h, w], metres, NaN where missing.
      mask: uint8 [H, W], a class for each pixel, 255 unlabelled.
      quantity: float32 [H, W] in a unit of its own, NaN where it is not known.
      label: int64, the chip's class; -1 in `unlabeled` (`classification` only).
      id, scene, block: text; a block is a part of a scene.

    The metadata name the classes, the quantity with its unit, and the value of each sensor that
    stands for none.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder that elev_ssl_jax.data.chips has made."
    TEXTS = ("scene", "block")
    READS = ("part", "index", "top_row", "left_column")

    def __init__(
        self,
        *,
        folders: Sequence[Path] = (),
        scenes: SceneReader | None = None,
        bands: Mapping[str, Sequence[int]] | None = None,
        **builder_args: Any,
    ):
        """Of folders that go together.

        Args:
          folders: Of chips.
          scenes: Reads the chips from their scenes; `folders` say only which there are.
          bands: Which bands to keep of a sensor, counted from 0; all by default.
          **builder_args: Of `Builder`.
        """
        self.folders, self.scenes, self.bands = list(folders), scenes, dict(bands or {})
        super().__init__(**builder_args)

    @functools.cached_property
    def _about(self) -> store.About:
        return store.common_about(self.folders)

    def _sensors(self):
        return {
            name: {**sensor, "bands": len(self.bands.get(name, range(sensor["bands"])))}
            for name, sensor in self._about.sensors.items()
        }

    def _features(self) -> tfds.features.FeaturesDict:
        about = self._about
        cells = None if about.elevation_size is None else (about.elevation_size,) * 2
        return features(
            self._sensors(),
            (about.size, about.size),
            cells,
            about.classes,
            ("id", *self.TEXTS),
            classification=self.is_classification,
            quantity=about.quantity is not None,
        )

    def _metadata(self) -> dict[str, Any]:
        about = self._about
        return {
            "sensors": self._sensors(),
            "classes": list(about.classes or ()),
            "quantity": dict(about.quantity or {}),
        }

    def _table(self, folder: Path) -> pd.DataFrame:
        return store.read_tables(self.folders or [folder])

    def _reader(self, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
        read = self.scenes or StoreReader(self._about)
        return _Chosen(read, {name: tuple(bands) for name, bands in self.bands.items()})


class Built(NamedTuple):
    """What has been built."""

    counts: dict[str, int]  # chips in each split
    chips: int  # that there were
    how: str  # lines on how they were split, if that was left to them, and on what was left out
    shared_ground: str  # a line on the ground that the splits share; "" if there is only one


def build(builder: type[Builder], manual_dir: Path, data_dir: Path, **settings: Any) -> Built:
    """Builds a dataset, without a network.

    Args:
      builder: `Chips`, or that of other data.
      manual_dir: A folder of chips, or of these data.
      data_dir: TFDS' folder.
      **settings: `config` and the arguments of the builder.
    """
    quiet.import_tensorflow()
    tfds.disable_progress_bar()  # ours know how many chips there are
    with (
        tempfile.TemporaryDirectory() as nothing_is_downloaded,
        contextlib.redirect_stdout(io.StringIO()),  # "Downloading ... Unknown size"
    ):
        made = builder(data_dir=data_dir, **settings)
        made.download_and_prepare(
            download_dir=nothing_is_downloaded,
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir, try_download_gcs=False, compute_stats="skip"
            ),
        )
    counts = {name: split.num_examples for name, split in made.info.splits.items()}
    return Built(counts, made.chips, made.how, made.shared_ground)
