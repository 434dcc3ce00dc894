"""Prepared TFDS data, at random access or all in memory. The one module that reads TFDS."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from elev_ssl_jax.errors import InputError

Arrays = dict[str, np.ndarray]


class Split(Sequence):
    """A split of prepared data: item i is a dictionary of NumPy arrays and numbers.

    `image` uint16 [H, W, C] in sensor units, `elevation` float32 [h, w] in metres with NaN where
    missing, and the other features of `tfds_nwrc.Nwrc` that the data have.
    """

    def __init__(
        self, records: Any, features: Any, name: str, counts: dict[str, int] | None = None
    ):
        self._records = records
        self.features = features
        self.name = name
        self.counts = counts or {}  # chips in every split of the data

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._records[int(index) % len(self)]

    @property
    def nbytes(self) -> int:
        """Bytes that the images and elevations take in memory."""
        if not len(self):
            return 0
        record = self[0]
        return len(self) * (record["image"].nbytes + record["elevation"].nbytes)

    def arrays(self, *names: str) -> Arrays:
        """The named features in memory, each stacked to [N, ...]; by default all but texts."""
        first = self[0]
        names = names or tuple(n for n in first if not isinstance(first[n], bytes | str))
        out = {
            name: np.empty((len(self), *np.shape(first[name])), np.asarray(first[name]).dtype)
            for name in names
        }
        for i in tqdm(range(len(self)), f"reading {self.name}", unit=" chips", leave=False):
            record = self[i]
            for name in names:
                out[name][i] = record[name]
        return out


def open_split(data: Any, split: str, *, exact: bool = False) -> Split:
    """Opens a split, in TFDS' notation ("unlabeled+labeled[80:]"), of the data in `config.data`.

    As in Python, a slice that reaches past the end of a small split takes what there is, unless
    it should be `exact`.

    Raises:
      InputError: There are no such data, no such split, or the split is empty or too small.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    folder = Path(os.path.expanduser(data.dir or "~/tensorflow_datasets"))
    versions = sorted((folder / data.name).glob("[0-9]*.*.*"))
    if not versions:
        raise InputError(
            f"data.dir={folder} has no {data.name}; build it with "
            f"`python -m elev_ssl_jax.data.prepare --chips CHIPS --data-dir {folder}`, or name "
            "other data with --config.data.dir and --config.data.name"
        )
    try:
        builder = tfds.builder_from_directory(versions[-1])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{versions[-1]} is not a prepared dataset; prepare it again") from error
    counts = {name: info.num_examples for name, info in builder.info.splits.items()}
    within = _within(split, counts)
    if exact and within != split.replace(" ", ""):
        raise InputError(
            f"split {split!r} asks for more than {data.name} in {folder} has: {counts}"
        )
    if not within:
        raise InputError(f"split {split!r} of {data.name} in {folder} is empty; it has {counts}")
    try:
        records = builder.as_data_source(split=within)
    except NotImplementedError as error:
        raise InputError(
            f"{versions[-1]} has no random access; prepare it again (array_record files)"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(f"split {split!r} of {data.name} won't do; it has {counts}") from error
    return Split(records, builder.info.features, split, counts)


def _within(split: str, counts: dict[str, int]) -> str:
    """The split with its slices cut to what there is, and without empty ones."""
    parts = []
    for part in split.replace(" ", "").split("+"):
        match = re.fullmatch(r"(\w+)\[(-?\d*):(-?\d*)\]", part)
        if match and match[1] in counts:
            ends = (int(end) if end else None for end in match.groups()[1:])
            start, stop, _ = slice(*ends).indices(counts[match[1]])
            if start >= stop:
                continue
            if any(end and abs(int(end)) > counts[match[1]] for end in match.groups()[1:]):
                part = f"{match[1]}[{start}:{stop}]"
        parts.append(part)
    return "+".join(parts)
