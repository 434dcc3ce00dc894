"""The TFDS builder: `nwrc/segmentation` and `nwrc/classification` from a folder of chips."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, writer
from tqdm import tqdm

from elev_ssl_jax.data import layout, source
from elev_ssl_jax.runtime import quiet
from tfds_nwrc import splits

RANDOM_ACCESS = file_adapters.FileFormat.ARRAY_RECORD
CLASSES = ("non_agricultural", "agricultural_frontier")


class Nwrc(tfds.core.GeneratorBasedBuilder):
    """Satellite image chips with elevation and land-cover masks.

    `python -m elev_ssl_jax.data.prepare` builds it. Features of an example:

      image: uint16 [H, W, C], sensor units.
      elevation: float32 [h, w], metres, NaN where missing.
      mask: uint8 [H, W], 1 agricultural frontier, 0 the rest, 255 unlabelled.
      label: int64, the chip's class; -1 in `unlabeled` (`classification` only).
      id, tile, block: text; a block is a part of a tile.
    """

    VERSION = tfds.core.Version("1.1.0")
    SUPPORTED_VERSIONS: Sequence[tfds.core.Version] = [tfds.core.Version("1.0.0")]
    RELEASE_NOTES: Mapping[str, str] = {"1.1.0": "With `block`.", "1.0.0": "The first."}
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = [
        tfds.core.BuilderConfig(name="segmentation", description="A class for each pixel."),
        tfds.core.BuilderConfig(name="classification", description="One class for each chip."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The manual directory is a folder of chips: metadata.csv, Dataset/, Elevations/ and "
        "LabelsGeoTiffv2/, as elev_ssl_jax.data.chips writes it."
    )

    def __init__(
        self,
        *,
        size: tuple[int, int] = (100, 100),
        elevation_size: tuple[int, int] = (33, 33),
        bands: Sequence[int] = (0, 1, 2),
        purity: float = 1.0,
        split_by: str | None = None,
        allow_overlap: bool = False,
        num_labeled: int | None = None,
        num_test: int | None = None,
        **builder_args: Any,
    ):
        """Sizes are rows and columns; `bands` count from 0.

        The rest is of `splits.choose` and `splits.assign`.
        """
        self.size = size
        self.elevation_size = elevation_size
        self.bands = tuple(bands)
        self.split_settings: dict[str, Any] = {
            "purity": purity,
            "num_labeled": num_labeled,
            "num_test": num_test,
        }
        self.split_by, self.allow_overlap = split_by, allow_overlap
        self.shared_ground = ""  # what `splits.shared_ground` says of the splits just made
        super().__init__(**builder_args)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=self._features(),
            # The order within a split is part of its meaning: see splits.assign.
            disable_shuffling=True,
            alternative_file_formats=[RANDOM_ACCESS],
        )

    def _features(self) -> tfds.features.FeatureConnector:
        if (self.data_path / "features.json").exists():  # data that are there know their sizes
            source.check_prepared(Path(self.data_dir))
            return tfds.features.FeatureConnector.from_config(self.data_dir)
        raw = tfds.features.Encoding.BYTES
        tensor = tfds.features.Tensor
        features = {
            "image": tensor(shape=(*self.size, len(self.bands)), dtype=np.uint16, encoding=raw),
            "elevation": tensor(shape=self.elevation_size, dtype=np.float32, encoding=raw),
            "mask": tensor(shape=self.size, dtype=np.uint8, encoding=raw),
            "id": tfds.features.Text(),
            "tile": tfds.features.Text(),
            "block": tfds.features.Text(),
        }
        if self._is_classification:
            features["label"] = tfds.features.ClassLabel(names=CLASSES)
        return tfds.features.FeaturesDict(features)

    def _example_writer(self) -> writer.ExampleWriter:
        # array_record has the random access that training needs, but no tf.data: tfds.load reads
        # the TFRecord files beside it.
        formats = (self.info.file_format, RANDOM_ACCESS)
        return writer.MultiOutputExampleWriter([writer.ExampleWriter(f) for f in formats])

    @property
    def _is_classification(self) -> bool:
        return self.builder_config.name == "classification"

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        chips = layout.read_metadata(folder)
        masks = folder / layout.MASKS
        shares, labelled = [], []
        with tqdm(chips["Mask"], "masks", unit=" chips") as bar:
            for path in bar:
                mask = layout.read_mask(masks / path, self.size)
                known = mask[mask != layout.UNLABELLED]
                shares.append(known.mean() if known.size else 0.0)
                labelled.append(known.size / mask.size)
        share = np.array(shares)
        chips["label"] = (share > 0.5).astype(int)
        chips["share"] = np.maximum(share, 1 - share)
        chips["labelled"] = labelled
        split_by, _ = splits.choose(chips, self.split_by, allow_overlap=self.allow_overlap)
        positions = splits.assign(
            chips,
            classification=self._is_classification,
            split_by=split_by,
            **self.split_settings,
        )
        self.shared_ground = splits.shared_ground(chips, positions)
        return {
            name: self._generate_examples(folder, chips.iloc[rows], name)
            for name, rows in positions.items()
        }

    def _generate_examples(self, folder, chips, split) -> Iterator[tuple[str, dict[str, Any]]]:
        with tqdm(chips.to_dict("records"), split, unit=" chips") as bar:
            for chip in bar:
                yield chip["Id"], self._example(folder, chip, split)

    def _example(self, folder, chip, split) -> dict[str, Any]:
        path = folder / layout.IMAGES / chip["Image"]
        image = layout.read_image(path, self.bands, self.size)
        elevation = folder / layout.ELEVATIONS / chip["Elevation"]
        example = {
            "image": image,
            "elevation": layout.read_elevation(elevation, self.elevation_size),
            "mask": layout.read_mask(folder / layout.MASKS / chip["Mask"], self.size),
            "id": chip["Id"],
            "tile": chip["tile"],
            "block": chip["block"],
        }
        if self._is_classification:
            example["label"] = -1 if split == "unlabeled" else chip["label"]
        return example


class Built(NamedTuple):
    """The number of chips in each split, and what `splits.shared_ground` says of them."""

    counts: dict[str, int]
    shared_ground: str


def build(chips: Path, data_dir: Path, **settings: Any) -> Built:
    """Builds `nwrc/<config>` from a folder of chips, without apache_beam and without a network.

    Args:
      chips: The folder.
      data_dir: TFDS' folder.
      **settings: `config` and the arguments of `Nwrc`.
    """
    quiet.import_tensorflow()
    tfds.disable_progress_bar()  # ours know how many chips there are
    with (
        tempfile.TemporaryDirectory() as nothing_is_downloaded,
        contextlib.redirect_stdout(io.StringIO()),  # "Downloading ... Unknown size"
    ):
        builder = Nwrc(data_dir=data_dir, **settings)
        builder.download_and_prepare(
            download_dir=nothing_is_downloaded,
            download_config=tfds.download.DownloadConfig(
                manual_dir=chips, try_download_gcs=False, compute_stats="skip"
            ),
        )
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    return Built(counts, builder.shared_ground)
