"""What the builders share: features, splits to shards, and shards written in several processes."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters, splits, writer
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data import source
from elev_ssl_jax.data.splits import shared_ground, split_chips
from elev_ssl_jax.runtime import beam
from elev_ssl_jax.runtime.workers import mapped

FILE_FORMAT = file_adapters.FileFormat.ARRAY_RECORD  # has the random access that training needs
_SHARD_BYTES = 2**26  # which a process that writes one holds, where it has to hold it
# Files of a split, where nothing is held: whoever reads at random keeps each of them open, and most
# systems let a process have 1024.
_MOST_SHARDS = 256
_WORTH_PROCESSES = 4  # shards; each process has TensorFlow to import first
_LOOK = 500  # chips that a process looks over at a time

_Item = TypeVar("_Item")
_Seen = TypeVar("_Seen")


def features(
    sensors: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int],
    elevation_size: tuple[int, int] | None,
    classes: tuple[str, ...] | None,
    texts: tuple[str, ...],
    *,
    classification: bool,
    multi_label: bool = False,
    quantity: bool = False,
) -> tfds.features.FeaturesDict:
    """The features of a chip.

    Args:
      sensors: By name: bands and dtype.
      size: Height and width in pixels.
      elevation_size: Likewise in cells; None without elevation.
      classes: Names of the classes; None without labels.
      texts: Names of features that are texts.
      classification: Whether a chip has a class of its own.
      multi_label: Whether it has a number for each class, 1 or 0.
      quantity: Whether each pixel has a number of a quantity.
    """

    def tensor(shape, dtype):
        raw = tfds.features.Encoding.BYTES
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=raw)

    result: dict[str, Any] = {
        name: tensor((*size, sensor["bands"]), sensor["dtype"]) for name, sensor in sensors.items()
    }
    if elevation_size is not None:
        result["elevation"] = tensor(elevation_size, np.float32)
    if classes is not None:
        result["mask"] = tensor(size, np.uint8)
    if quantity:
        result["quantity"] = tensor(size, np.float32)
    if classification:
        result["label"] = tfds.features.ClassLabel(names=classes)
    if multi_label and classes is not None:
        result["labels"] = tensor((len(classes),), np.uint8)
    return tfds.features.FeaturesDict({**result, **{name: tfds.features.Text() for name in texts}})


def look_over(
    function: Callable[[list[_Item]], list[_Seen]],
    items: list[_Item],
    workers: int,
    name: str,
) -> list[_Seen]:
    """What a function finds of each item, in their order, in processes if there are enough.

    Args:
      function: Of some items; of a module, so that it can be sent.
      items: Of all chips.
      workers: Processes at most.
      name: Of the progress bar.
    """
    parts = [items[i : i + _LOOK] for i in range(0, len(items), _LOOK)]
    if workers <= 1 or len(parts) < 2:
        done: Iterable[list[_Seen]] = map(function, parts)
    else:
        done = mapped(function, parts, min(workers, len(parts)))
    seen: list[_Seen] = []
    with tqdm(total=len(items), desc=name, unit=" chips") as bar:
        for found in done:
            seen += found
            bar.update(len(found))
    return seen


@dataclasses.dataclass(frozen=True)
class Shard:
    """The chips of one file, in their order; called, it makes their examples."""

    read: Callable[[dict[str, Any]], dict[str, Any]]  # a row of the chips' table to its arrays
    rows: pd.DataFrame
    sorted_by: tuple[str, ...]  # columns by which they lie side by side; () if they don't
    texts: tuple[str, ...]
    with_label: bool | None  # False: a class that is kept back; None: there is no such feature

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Keys and examples."""
        rows: list[Any] = self.rows.to_dict("records")
        for row in rows:
            example = {**self.read(row), "id": row["Id"], **{t: row[t] for t in self.texts}}
            if self.with_label is not None:
                example["label"] = int(row["label"]) if self.with_label else -1
            yield row["Id"], example


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes chips to shards whose order is that of their splits.

    A subclass has `_features`, `_metadata`, `_table`, `_reader`, `TEXTS` and `READS`, and
    `_positions` if its splits are its own. Nothing is shuffled: the order within a split is part of
    its meaning, see `splits.assign`.
    """

    TEXTS: tuple[str, ...] = ()
    READS: tuple[str, ...] = ()  # columns of the table that its reader needs
    SORTED_BY: tuple[str, ...] | None = None  # as in `Shard`; None: by what is read
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = [
        tfds.core.BuilderConfig(name="segmentation", description="A class for each pixel."),
        tfds.core.BuilderConfig(name="classification", description="One class for each chip."),
    ]

    def __init__(
        self,
        *,
        split_settings: Mapping[str, Any] | None = None,
        workers: int = 1,
        beam: Sequence[str] | None = None,
        **builder_args: Any,
    ):
        """Of chips.

        Args:
          split_settings: Of `splits.split_chips`, by name.
          workers: Processes.
          beam: Options of Apache Beam, which does the work then.
          **builder_args: Of TFDS.
        """
        self.split_settings, self.workers, self.beam = dict(split_settings or {}), workers, beam
        # Of the splits just made: how many chips there were, and what `splits` says of them.
        self.chips, self.how, self.shared_ground = 0, "", ""
        super().__init__(file_format=FILE_FORMAT, **builder_args)

    @property
    def is_classification(self) -> bool:
        """Whether its config is that of a class a chip."""
        return self.builder_config is not None and self.builder_config.name == "classification"

    def _info(self) -> tfds.core.DatasetInfo:
        if (self.data_path / "features.json").exists():  # data that are there know their features
            source.check_prepared(Path(self.data_dir))
            known, metadata = tfds.features.FeatureConnector.from_config(self.data_dir), None
        else:
            known, metadata = self._features(), tfds.core.MetadataDict(self._metadata())
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=known,
            disable_shuffling=True,
            metadata=metadata,
        )

    def _features(self) -> tfds.features.FeaturesDict:
        raise NotImplementedError

    def _metadata(self) -> dict[str, Any]:
        raise NotImplementedError

    def _table(self, folder: Path) -> pd.DataFrame:
        raise NotImplementedError

    def _reader(self, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
        raise NotImplementedError

    def _positions(self, chips: pd.DataFrame) -> Mapping[str, np.ndarray]:
        """Of each split the positions of its chips in the table; sets what is said of them."""
        positions, self.how = split_chips(
            chips, classification=self.is_classification, **self.split_settings
        )
        self.shared_ground = shared_ground(chips, positions)
        return positions

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Shard]]:
        folder = Path(dl_manager.manual_dir)
        chips = self._table(folder)
        positions, self.chips = self._positions(chips), len(chips)
        example_bytes = sum(
            int(np.prod(feature.shape)) * np.dtype(feature.np_dtype).itemsize
            for feature in self.info.features.values()
            if feature.shape
        )
        held = max(1, _SHARD_BYTES // example_bytes)
        sorted_by = self.READS if self.SORTED_BY is None else self.SORTED_BY
        read, with_label = self._reader(folder), True if self.is_classification else None
        shards = {}
        chips = chips[[name for name in chips if name in {"Id", "label", *self.TEXTS, *self.READS}]]
        for name, rows in positions.items():
            labelled = with_label and name != "unlabeled"
            most = held if sorted_by else max(held, math.ceil(len(rows) / _MOST_SHARDS))
            shards[name] = [
                Shard(read, chips.iloc[rows[i : i + most]], sorted_by, self.TEXTS, labelled)
                for i in range(0, len(rows), most)
            ]
        return shards

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        tasks: dict[str, list[tuple[Any, Shard]]] = {}
        for split, shards in self._shard_iterators_per_split(dl_manager).items():
            template = self._get_filename_template(split_name=split)
            count = len(shards)
            paths = [
                template.sharded_filepath(shard_index=i, num_shards=count) for i in range(count)
            ]
            tasks[split] = list(zip(paths, shards, strict=True))
        self._write(tasks)
        infos = [
            splits.SplitInfo(
                name=split,
                shard_lengths=[len(shard.rows) for _, shard in some],
                num_bytes=sum(Path(path).stat().st_size for path, _ in some),
                filename_template=self._get_filename_template(split_name=split),
            )
            for split, some in tasks.items()
        ]
        self.info.set_splits(splits.SplitDict(infos))

    def _as_dataset(
        self, split: Any, decoders: Any = None, read_config: Any = None, shuffle_files: bool = False
    ) -> Any:
        """For `tfds.load`: the records in their order. Training reads them at random access."""
        import tensorflow as tf

        if decoders is not None:
            raise NotImplementedError("chips are decoded whole; leave out `decoders`")
        records = self.as_data_source(split=split)
        return tf.data.Dataset.from_generator(
            lambda: iter(records), output_signature=self.info.features.get_tensor_spec()
        )

    def _write(self, tasks: dict[str, list[tuple[Any, Shard]]]) -> None:
        """Writes the shards of each split to their paths."""
        every = [task for some in tasks.values() for task in some]
        content = self.info.features.to_json()
        if self.beam is not None:
            written = ((path, shard, content) for path, shard in every)
            beam.run(_write_by_beam, written, Path(self.data_dir) / "tasks", self.beam)
            for left in Path(self.data_dir).glob(".*.array_record*"):  # of a worker that was killed
                left.unlink()
            shutil.rmtree(Path(self.data_dir) / "tasks")
            return
        in_processes = self.workers > 1 and len(every) >= _WORTH_PROCESSES
        done: Iterator[int] = iter(())
        if in_processes:
            workers = min(self.workers, len(every))
            done = mapped(_write_in_worker, every, workers, _start_worker, content)
        for split, some in tasks.items():
            total = sum(len(shard.rows) for _, shard in some)
            with tqdm(total=total, desc=split, unit=" chips") as bar:
                for path, shard in some:
                    if in_processes:
                        bar.update(next(done))
                    else:
                        _write_shard(path, shard, self.info.features, bar.update)


_worker_features: Any = None


def _start_worker(features):
    from elev_ssl_jax.runtime import quiet

    quiet.import_tensorflow()
    global _worker_features
    _worker_features = tfds.features.FeatureConnector.from_json(features)


def _write_in_worker(task):
    path, shard = task
    _write_shard(path, shard, _worker_features, lambda _: None)
    return len(shard.rows)


def _write_by_beam(task):
    path, shard, features = task
    _start_worker(features)
    _write_in_worker((path, shard))


def _write_shard(path, shard, features, count) -> None:
    """As `tfds.core.writer.ShardWriter`, but each record is the same bytes each time."""
    records: Any = _records(shard, features, count)
    if shard.sorted_by:
        # Read in the order in which they lie, written in theirs.
        lie = shard.rows.reset_index(drop=True).sort_values(list(shard.sorted_by)).index
        in_place = dataclasses.replace(shard, rows=shard.rows.iloc[lie])
        records = [None] * len(lie)
        for position, record in zip(lie, _records(in_place, features, count), strict=True):
            records[position] = record
    # Several workers may be given the same, of a hundred thousand; what is left goes with the
    # unfinished folder around it.
    with files.new_file(Path(path), crowded=True) as partial:
        writer.ExampleWriter(FILE_FORMAT).write(partial, records)


def _records(shard, features, count):
    """Keys and serialized examples of a shard's chips, one after the other."""
    import tensorflow as tf

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for key, example in shard():
        record = serializer.serialize_example(features.encode_example(example))
        # The order of a record's features would differ between processes.
        yield key, tf.train.Example.FromString(record).SerializeToString(deterministic=True)
        count(1)
