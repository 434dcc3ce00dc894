"""Batches for training: which chips, in which order, and how they reach the device.

The order depends on the seed and the epoch alone. Data that fit lie on the device as stored
integers and are gathered there; data that don't are streamed from disk by Grain. Both give the
same batches in the same order.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import sharding

Batch = dict[str, jax.Array]


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
    arrays: dict[str, np.ndarray], mesh: Mesh, seed: int, batch_size: int, first_step: int
) -> Iterator[Batch]:
    """Batches gathered on the device, forever, from step `first_step` on.

    Images and elevations, [N, ...] each, go to every device once. An epoch's plan is its only
    other transfer, so that the steps of an epoch never wait for the host.
    """
    chips = {name: arrays[name] for name in ("image", "elevation")}
    chips = sharding.place(chips, sharding.replicated(mesh))
    num_chips = len(arrays["image"])
    steps_per_epoch = num_chips // batch_size

    @functools.partial(jax.jit, out_shardings=sharding.split(mesh))
    def gather(chips, plan, step):
        return jax.tree.map(lambda array: array[plan[step]], chips)

    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        plan = epoch_plan(seed, epoch, num_chips, batch_size)
        plan = sharding.place(plan, sharding.split(mesh, axis=1))
        for i in range(step, steps_per_epoch):
            yield gather(chips, plan, np.int32(i))
        epoch, step = epoch + 1, 0


def streamed_batches(
    records: Sequence[dict[str, Any]], mesh: Mesh, seed: int, batch_size: int, first_step: int
) -> Iterator[Batch]:
    """The same batches, read from random-access records by Grain's threads, ahead of the step."""
    import grain

    where = sharding.split(mesh)
    mine = sharding.local_rows(where, batch_size)  # a process reads what its devices need
    steps_per_epoch = len(records) // batch_size

    @functools.lru_cache(maxsize=2)  # reading ahead, threads may be in two epochs at once
    def plan(epoch):
        return epoch_plan(seed, epoch, len(records), batch_size)[:, mine].ravel()

    def read(position):
        epoch, place = divmod(int(position), steps_per_epoch * len(mine))
        record = records[plan(epoch)[place]]
        return {"image": record["image"], "elevation": record["elevation"]}

    # Grain's range must end somewhere; this many chips take years.
    dataset = grain.MapDataset.range(first_step * len(mine), 2**40).map(read).batch(len(mine))
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)  # counted in batches
    ahead = None
    for batch in dataset.to_iter_dataset(options):
        # One batch is on its way to the device while the step before it runs.
        batch = {
            name: jax.make_array_from_process_local_data(where, rows, (batch_size, *rows.shape[1:]))
            for name, rows in batch.items()
        }
        if ahead is not None:
            yield ahead
        ahead = batch


def make_batches(
    chips: dict[str, np.ndarray] | Any,
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    resident_gib: float,
    first_step: int = 0,
) -> tuple[Iterator[Batch], str]:
    """Training batches from `first_step` on, and a sentence on how they are made.

    Args:
      chips: Arrays `image` [N, H, W, C] and `elevation` [N, h, w], or a `source.Split`.
      mesh: Devices; a batch is split over them.
      seed: Of the order.
      batch_size: Chips in a batch, over all devices.
      resident_gib: A split above this size in GiB is streamed.
      first_step: Batches to pass over.

    Returns:
      An endless iterator of `image` and `elevation`, and what was chosen.
    """
    if not isinstance(chips, dict):
        gib = chips.nbytes / 2**30
        if gib > resident_gib:
            return (
                streamed_batches(chips, mesh, seed, batch_size, first_step),
                f"streamed from disk: {gib:.2f} GiB, above data.resident_gib={resident_gib:g}",
            )
        chips = chips.arrays("image", "elevation")
    gib = (chips["image"].nbytes + chips["elevation"].nbytes) / 2**30
    return (
        resident_batches(chips, mesh, seed, batch_size, first_step),
        f"resident on each device: {gib:.2f} GiB as stored integers",
    )
