"""Prepared TFDS data, at random access or all in memory. The one module that reads TFDS."""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.storage import local_path

Arrays = dict[str, np.ndarray]

_AGAIN = "prepare it again (--overwrite)"
_FEATURES = "tensorflow_datasets.core.features."
_CLASSES = {
    _FEATURES + name
    for name in (
        "class_label_feature.ClassLabel",
        "features_dict.FeaturesDict",
        "scalar.Scalar",
        "tensor_feature.Tensor",
        "text_feature.Text",
    )
}


class Split(Sequence):
    """A split of prepared data: item i is a dictionary of NumPy arrays and numbers.

    `image`, or other sensors, [H, W, C] in their units, `elevation` float32 [h, w] in metres with
    NaN where missing, and the other features of `tfds_chips.Chips` that the data have.
    """

    def __init__(
        self,
        records: Any,
        features: Any,
        name: str,
        counts: dict[str, int] | None = None,
        about: dict[str, Any] | None = None,
        shards: Sequence[tuple[str, int, int]] = (),
    ):
        self._records = records
        self.features = features
        self.name = name
        self.counts = counts or {}  # chips in every split of the data
        self.about = about or {}  # what the data say of their sensors and classes
        self._shards = shards  # file, its first record here, how many
        self._known = [(n, tuple(f.shape), np.dtype(f.np_dtype)) for n, f in features.items()]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        try:
            record = _decode(self._records.data_source[index], self._known)
            return self._records[index] if record is None else record
        except (RuntimeError, ValueError, OSError) as error:  # TFDS' reader and its checksums
            raise InputError(
                f"record {index} of {self.name}{self._place(index)} can't be read: its file is "
                f"damaged; {_AGAIN}"
            ) from error

    def _place(self, index):
        """In words, the file that has a record and its number there."""
        for file, first, count in self._shards:
            if index < count:
                return f" (record {first + index} of {file})"
            index -= count
        return ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each feature that is made of numbers, in one chip."""
        return {
            name: tuple(feature.shape)
            for name, feature in self.features.items()
            if feature.np_dtype not in (object, str)
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in order; () if the data don't have any."""
        if "classes" in self.about:
            return tuple(self.about["classes"])
        return tuple(self.features["label"].names) if "label" in self.features else ()

    @property
    def quantity(self) -> tuple[str, ...]:
        """The name and the unit of the feature `quantity`; () if the data don't say."""
        about = self.about.get("quantity", {})
        return (about["name"], about["unit"]) if about else ()

    def nodata(self, names: Sequence[str]) -> tuple[float, ...]:
        """The value that stands for none in each of the sensors named; () if none has one."""
        sensors = self.about.get("sensors", {})
        values = [sensors[name].get("nodata") for name in names if name in sensors]
        if all(value is None for value in values):
            return ()
        return tuple(math.nan if value is None else float(value) for value in values)

    def nbytes(self, *names: str) -> int:
        """Bytes that the named features take in memory."""
        return len(self) * sum(
            math.prod(self.features[name].shape) * np.dtype(self.features[name].np_dtype).itemsize
            for name in names
        )

    def arrays(self, *names: str) -> Arrays:
        """The named features in memory, each stacked to [N, ...]; by default all but texts.

        Texts become an array of str.

        Raises:
          InputError: The data have no such feature.
        """
        first = self[0]
        for name in names:
            if name not in first:
                raise InputError(f"the prepared data have no {name}; prepare them again")
        names = names or tuple(n for n in first if not isinstance(first[n], bytes | str))
        texts: dict[str, list[str]] = {n: [] for n in names if isinstance(first[n], bytes | str)}
        out = {
            name: np.empty((len(self), *np.shape(first[name])), np.asarray(first[name]).dtype)
            for name in names
            if name not in texts
        }
        for i in tqdm(range(len(self)), f"reading {self.name}", unit=" chips", leave=False):
            record = self[i]
            for name in out:
                out[name][i] = record[name]
            for name, values in texts.items():
                value = record[name]
                values.append(value.decode() if isinstance(value, bytes) else value)
        return out | {name: np.array(values) for name, values in texts.items()}


def _decode(record: bytes, known: list[tuple[str, tuple[int, ...], np.dtype]]) -> Any:
    """A record's features, as TFDS decodes them, without TensorFlow in between.

    Returns:
      None if one of them is not stored as our builders do.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    stored = tf_example_pb2.Example.FromString(record).features.feature
    decoded: dict[str, Any] = {}
    for name, shape, dtype in known:
        kind = stored[name].WhichOneof("kind")
        values: Sequence[Any] = getattr(stored[name], kind).value if kind else ()
        if len(values) != 1:
            return None
        (value,) = values
        if dtype.kind == "O":  # a text
            decoded[name] = value
        elif kind == "int64_list" and not shape:
            decoded[name] = dtype.type(value)
        elif kind == "bytes_list" and len(value) == math.prod(shape) * dtype.itemsize:
            decoded[name] = np.frombuffer(value, dtype).reshape(shape)
        else:
            return None
    return decoded


def _folder(data):
    return local_path(os.path.expanduser(data.dir or "~/tensorflow_datasets"))


def find_name(data: Any) -> str:
    """`config.data.name`, or what it should be: own scenes were of the name nwrc, too, before."""
    folder = _folder(data)
    kind = data.name.removeprefix("nwrc/")
    own = f"chips/{kind}"
    if kind == data.name or newest(folder / data.name) or not newest(folder / own):
        return str(data.name)
    return own


def open_split(data: Any, split: str, *, exact: bool = False) -> Split:
    """Opens a split, in TFDS' notation ("unlabeled+labeled[80:]"), of the data in `config.data`.

    As in Python, a slice that reaches past the end of a small split takes what there is, unless
    it should be `exact`.

    Raises:
      InputError: There are no such data, they are damaged, there is no such split, or the split
        is empty or too small.
    """
    folder = _folder(data)
    version = newest(folder / data.name)
    if version is None:
        raise InputError(
            f"data.dir={folder} has no {data.name}; build it with "
            f"`python -m elev_ssl_jax.data.prepare --chips CHIPS --data-dir {folder}`, or name "
            "other data with --config.data.dir and --config.data.name"
        )
    check_prepared(version)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(version)
        counts = {name: info.num_examples for name, info in builder.info.splits.items()}
        about = _check_about(dict(builder.info.metadata or {}))
        if not all(n for f in builder.info.features.values() for n in f.shape):
            raise ValueError("sizes that aren't known")
    except Exception as error:  # of TFDS, protobuf, JSON: each part has its own
        raise InputError(f"{version} is not a prepared dataset; {_AGAIN}") from error
    within = _within(split, counts)
    if exact and within != split.replace(" ", ""):
        raise InputError(
            f"split {split!r} asks for more than {data.name} in {folder} has: {counts}; "
            + _remedy(data, split, within)
        )
    if not within:
        raise InputError(f"split {split!r} of {data.name} in {folder} is empty; it has {counts}")
    try:
        records = builder.as_data_source(split=within)
    except NotImplementedError as error:
        raise InputError(
            f"{version} has no random access; {_AGAIN} (array_record files)"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(f"split {split!r} of {data.name} won't do; it has {counts}") from error
    shards = [(f.filename, f.skip, f.take) for f in builder.info.splits[within].file_instructions]
    return Split(records, builder.info.features, split, counts, about, shards)


def shared(one: str, other: str, counts: dict[str, int]) -> int:
    """How many chips two splits have in common; parts that are slices by per cent are passed over.

    Args:
      one: In TFDS' notation.
      other: Likewise.
      counts: Chips in each split that can be named.
    """

    def ranges(split):
        for part in split.replace(" ", "").split("+"):
            match = re.fullmatch(r"(\w+)(?:\[(-?\d+)?:(-?\d+)?\])?", part)
            if match and match[1] in counts:
                ends = (int(end) if end else None for end in match.groups()[1:])
                yield match[1], range(counts[match[1]])[slice(*ends)]

    return sum(
        max(0, min(mine.stop, theirs.stop) - max(mine.start, theirs.start))
        for name, mine in ranges(one)
        for its, theirs in ranges(other)
        if name == its
    )


def _remedy(data, split, within):
    """What to do about a split that asks for too much."""
    fields = [
        f
        for f in ("split", "eval_split", "probe_split", "validation_split")
        if getattr(data, f, None) == split
    ]
    smaller = f"--config.data.{fields[0]}={within!r}" if fields else repr(within)
    needed = {"labeled": 0, "test": 0}  # chips, for the slices to be full
    for name, *ends in re.findall(r"(\w+)\[(-?\d+)?:(-?\d+)?\]", split):
        if name in needed:
            needed[name] = max(needed[name], *(abs(int(end or 0)) for end in ends))
    flags = " ".join(f"--{name} {count}" for name, count in needed.items() if count)
    again = f"prepare again with {flags or 'more chips'}"
    return f"ask for {smaller}, or {again}" if within else again


def newest(folder: Path) -> Path | None:
    """The newest version of prepared data, in `folder`/N.N.N; None if there is none.

    Where a stop in the middle of `prepare --overwrite` has left no version, it is the one that was
    to be replaced.

    Raises:
      InputError: The newest is not whole; an older one is not what anybody means then.
    """
    versions: dict[tuple[int, ...], Path] = {}
    for pattern in (r"(\d+)\.(\d+)\.(\d+)", r"\.(\d+)\.(\d+)\.(\d+)\.old"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if match := re.fullmatch(pattern, path.name):
                version = tuple(map(int, match.groups()))
                if version not in versions or not is_whole(versions[version]):
                    versions[version] = path
    if not versions:
        return None
    found = versions[max(versions)]
    if not is_whole(found):
        raise InputError(f"{found} is not whole; delete it, or {_AGAIN}")
    return found


def is_whole(version: Path) -> bool:
    """Whether a folder has what TFDS writes last."""
    return all((version / name).is_file() for name in ("dataset_info.json", "features.json"))


def check_prepared(version: Path) -> None:
    """Refuses prepared data that are damaged, or that TFDS would take code or files elsewhere from.

    Raises:
      InputError: A file is missing or no JSON, names a class that we don't write (TFDS imports
        what it is told to), or a path.
    """
    for path in version.iterdir():
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path} is no file; {_AGAIN}")
    for name in ("dataset_info.json", "features.json"):
        path = version / name
        try:
            if not path.is_file():
                raise InputError(f"{path} not found; {_AGAIN}")
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise InputError(f"{path} is damaged; {_AGAIN}")
            if name == "features.json":
                _check_classes(content, path)
            else:
                _check_files(content, path)
        except InputError:
            raise
        except Exception as error:  # JSON of any other shape
            raise InputError(f"{path} is damaged; {_AGAIN}") from error


def _check_classes(content, path):
    if isinstance(content, list):
        for value in content:
            _check_classes(value, path)
    elif isinstance(content, dict):
        for key, value in content.items():
            # Both spellings that protobuf reads, that of older TFDS, and JSON within a string.
            names = ("pythonClassName", "python_class_name", "type", "json")
            if key in names and isinstance(value, str):
                if value not in _CLASSES:
                    raise InputError(
                        f"{path} names the class {value!r}, which this program doesn't write; "
                        f"don't open data whose origin you don't know, or {_AGAIN}"
                    )
            else:
                _check_classes(value, path)


def _check_about(about):
    """What the data say of themselves, which older ones don't; a `ValueError` if it is damaged."""
    classes, sensors = about.get("classes", []), about.get("sensors", {})
    quantity = about.get("quantity") or {"name": "", "unit": ""}
    if not all(isinstance(quantity[key], str) for key in ("name", "unit")):
        raise ValueError(quantity)
    if not all(isinstance(name, str) for name in classes):
        raise ValueError(classes)
    for sensor in sensors.values():
        if not isinstance(sensor.get("nodata"), int | float | None):
            raise ValueError(sensor)
    return {name: about[name] for name in ("classes", "sensors", "quantity") if about.get(name)}


def _check_files(content, path):
    # In both spellings that protobuf reads.
    names = [content.get(key, "") for key in ("name", "configName", "config_name")]
    for split in content.get("splits", ()):
        names += [split.get(k, "") for k in ("name", "filepathTemplate", "filepath_template")]
    for name in names:
        if not isinstance(name, str) or "/" in name or name in ("..", "."):
            raise InputError(f"{path} names {name!r}, which leaves the folder; {_AGAIN}")
    formats = [content.get("fileFormat"), *content.get("alternativeFileFormats", ())]
    if "array_record" not in formats:
        return
    for split in content.get("splits", ()):
        shards = len(split.get("shardLengths", ()))
        for i in range(shards):
            name = f"{content['name']}-{split['name']}.array_record-{i:05d}-of-{shards:05d}"
            if not (path.parent / name).is_file():
                raise InputError(f"{path.parent / name} not found; {_AGAIN}")


def _within(split: str, counts: dict[str, int]) -> str:
    """The split with its slices cut to what there is, and without empty ones."""
    parts = []
    for part in split.replace(" ", "").split("+"):
        match = re.fullmatch(r"(\w+)\[(-?\d+)?:(-?\d+)?\]", part)
        if match and match[1] in counts:
            ends = (int(end) if end else None for end in match.groups()[1:])
            start, stop, _ = slice(*ends).indices(counts[match[1]])
            if start >= stop:
                continue
            if any(end and abs(int(end)) > counts[match[1]] for end in match.groups()[1:]):
                part = f"{match[1]}[{start or ''}:{stop}]"
        parts.append(part)
    return "+".join(parts)
