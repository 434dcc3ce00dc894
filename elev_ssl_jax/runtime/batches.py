"""Batches: which chips, in which order, and how they reach the device.

In training the order depends on the seed and the epoch alone. Data that fit lie on the device as
stored numbers and are gathered there; data that don't are streamed from disk by Grain. Both give
the same batches in the same order.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax.runtime import sharding

Arrays = dict[str, np.ndarray]
Batch = dict[str, jax.Array]
# Arrays [N, ...] by feature, or records at random access with `arrays` and `nbytes`, such as
# `source.Split`.
Chips = Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("rows",), meta_fields=("item_shape",)
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Arrays of one shape to gather from on a device, each in a row of its own.

    Rows are filled up with zeros to a multiple of 128 numbers, so that each is one stretch of a
    TPU's memory too, whose tiles have 128 columns. Of arrays as they are, each gather would first
    copy all of them, to have their number in front.
    """

    rows: jax.Array  # [N, R]
    item_shape: tuple[int, ...]

    @classmethod
    def of(cls, arrays: Any) -> "Rows":
        """Of [N, ...]."""
        flat, shape = arrays.reshape(len(arrays), -1), arrays.shape[1:]
        padding = ((0, 0), (0, row_length(shape) - flat.shape[1]))
        # Chips stay where they are, on the host or on a device.
        return cls((np if isinstance(flat, np.ndarray) else jnp).pad(flat, padding), shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> jax.Array:
        """The arrays at `index`, a slice or an array of positions: [..., *item_shape]."""
        rows = self.rows[index][..., : math.prod(self.item_shape)]
        return rows.reshape(*rows.shape[:-1], *self.item_shape)

    # An index that is out of range gives the last row, so that a loop over them had no end.
    __iter__ = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them on the host, [N, *item_shape]."""
        return np.asarray(self[:], dtype)


def row_length(shape: tuple[int, ...]) -> int:
    """Numbers in a row of `Rows`."""
    return -(-math.prod(shape) // 128) * 128


def length(chips: Chips) -> int:
    """How many chips there are."""
    return len(next(iter(chips.values()))) if isinstance(chips, dict) else len(chips)


def take(chips: Chips, positions: Sequence[int] | np.ndarray, names: Sequence[str] = ()) -> Arrays:
    """The chips at some positions, by feature: those named, or all that are numbers."""
    if isinstance(chips, dict):
        names = names or [n for n, array in chips.items() if array.dtype.kind not in "OSU"]
        return {name: chips[name][positions] for name in names}
    records = [chips[int(i)] for i in positions]
    names = names or [n for n, v in records[0].items() if not isinstance(v, bytes | str)]
    return {name: np.stack([record[name] for record in records]) for name in names}


def shuffled(chips: Chips, name: str, seed: int) -> Chips:
    """The same chips, of which each has another one's feature `name`, always the same other's."""
    order = np.random.default_rng(seed).permutation(length(chips))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    if isinstance(chips, dict):
        return {**chips, name: chips[name][other]}
    return _Shuffled(chips, name, other)


class _Shuffled(Sequence):
    """Records at random access, as `shuffled` says."""

    def __init__(self, records: Any, name: str, other: np.ndarray):
        self._records, self._name, self._other = records, name, other

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        theirs = self._records[int(self._other[index])]
        return {**self._records[index], self._name: theirs[self._name]}

    def nbytes(self, *names: str) -> int:
        """Bytes that the named features take in memory."""
        return self._records.nbytes(*names)

    def arrays(self, *names: str) -> Arrays:
        """The named features in memory, each stacked to [N, ...]."""
        arrays = self._records.arrays(*names)
        return {n: a[self._other] if n == self._name else a for n, a in arrays.items()}


def epoch_order(seed: int, epoch: int, num_chips: int) -> np.ndarray:
    """Chip indices in the order of an epoch, int32 [num_chips]: a fresh permutation each time."""
    return np.random.default_rng([seed, epoch]).permutation(num_chips).astype(np.int32)


def epoch_plan(seed: int, epoch: int, num_chips: int, batch_size: int) -> np.ndarray:
    """Chip indices of an epoch's batches, int32 [steps, batch_size].

    The `num_chips % batch_size` chips that don't fill a batch are left out, others each time.
    """
    steps = num_chips // batch_size
    order = epoch_order(seed, epoch, num_chips)
    return order[: steps * batch_size].reshape(steps, batch_size)


def resident_batches(
    arrays: Arrays, mesh: Mesh, seed: int, batch_size: int, first_step: int
) -> Iterator[Batch]:
    """Batches gathered on the device, forever, from step `first_step` on.

    The arrays, [N, ...] each, go to every device once. An epoch's plan is its only other transfer,
    so that the steps of an epoch never wait for the host.
    """
    num_chips = length(arrays)
    chips = {
        name: sharding.place(Rows.of(array), sharding.replicated(mesh))
        for name, array in arrays.items()
    }
    steps_per_epoch = num_chips // batch_size
    gather = make_gather(mesh)
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        plan = epoch_plan(seed, epoch, num_chips, batch_size)
        plan = sharding.place(plan, sharding.split(mesh, axis=1))
        for i in range(step, steps_per_epoch):
            yield gather(chips, plan, np.int32(i))
        epoch, step = epoch + 1, 0


def make_gather(mesh: Mesh) -> jax.stages.Wrapped:
    """A function of `Rows` by feature, an epoch's plan and a step, that gives its batch."""

    @functools.partial(jax.jit, out_shardings=sharding.split(mesh))
    def gather(chips, plan, step):
        return {name: rows[plan[step]] for name, rows in chips.items()}

    return gather


def streamed_batches(
    records: Sequence[dict[str, Any]],
    names: Sequence[str],
    mesh: Mesh,
    seed: int,
    batch_size: int,
    first_step: int,
) -> Iterator[Batch]:
    """The same batches, read from random-access records by Grain's threads, ahead of the step."""
    import grain

    where = sharding.split(mesh)
    mine = sharding.local_rows(where, batch_size)  # a process reads what its devices need
    steps_per_epoch = len(records) // batch_size

    @functools.lru_cache(maxsize=2)  # reading ahead, threads may be in two epochs at once
    def plan(epoch):
        return epoch_plan(seed, epoch, len(records), batch_size)[:, mine]

    def read(step):
        epoch, place = divmod(int(step), steps_per_epoch)
        return take(records, plan(epoch)[place], names)

    # Grain's range must end somewhere; so many steps take years.
    dataset = grain.MapDataset.range(first_step, 2**40).map(read)
    threads = min(os.cpu_count() or 1, 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(8, threads))
    ahead = None
    for batch in dataset.to_iter_dataset(options):
        # One batch is on its way to the device while the step before it runs.
        batch = _from_rows(batch, where, batch_size)
        if ahead is not None:
            yield ahead
        ahead = batch


def in_order(
    chips: Chips, names: Sequence[str], mesh: Mesh, batch_size: int
) -> Iterator[tuple[Batch, int]]:
    """All chips once, in their order: batches, and how many chips of each count.

    The last is filled up with others. No process holds or reads more than its devices need.
    """
    where, count = sharding.split(mesh), length(chips)
    mine = sharding.local_rows(where, batch_size)
    for start in range(0, count, batch_size):
        rows = (start + mine) % count
        batch = _from_rows(take(chips, rows, names), where, batch_size)
        yield batch, min(batch_size, count - start)


def _from_rows(rows, where, batch_size):
    """A batch over all processes from the rows that this one has."""
    return {
        name: jax.make_array_from_process_local_data(where, part, (batch_size, *part.shape[1:]))
        for name, part in rows.items()
    }


def make_batches(
    chips: Chips,
    names: Sequence[str],
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    resident_gib: float,
    first_step: int = 0,
) -> tuple[Iterator[Batch], str]:
    """Training batches from `first_step` on, and a sentence on how they are made.

    Args:
      chips: What to learn from.
      names: The features that a batch is to have.
      mesh: Devices; a batch is split over them.
      seed: Of the order.
      batch_size: Chips in a batch, over all devices.
      resident_gib: A split above this size in GiB is streamed.
      first_step: Batches to pass over.

    Returns:
      An endless iterator of batches, and what was chosen.
    """
    if not isinstance(chips, dict):
        gib = chips.nbytes(*names) / 2**30
        if gib > resident_gib:
            return (
                streamed_batches(chips, names, mesh, seed, batch_size, first_step),
                f"streamed from disk: {gib:.2f} GiB, above data.resident_gib={resident_gib:g}",
            )
        chips = chips.arrays(*names)
    arrays = {name: chips[name] for name in names}
    gib = sum(array.nbytes for array in arrays.values()) / 2**30
    return (
        resident_batches(arrays, mesh, seed, batch_size, first_step),
        f"resident on each device: {gib:.2f} GiB as stored numbers",
    )
